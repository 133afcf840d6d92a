"""Two GPUs of one machine over NCCL, collectives captured in CUDA graphs."""

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from engine import Engine, EngineConfig, EngineError, Variant
from engine.parallel.followers import Followers
from tests.engine.parallel.test_two_ranks import GREEDY, PROMPTS, SAMPLED
from tests.engine.tiny import serve
from tests.shipped import VARIANTS

pytestmark = pytest.mark.gpu
CONFIG = EngineConfig("tiny", "float32", "cuda", 256, 8, 256, block_size=16, num_kv_blocks=64)


@pytest.fixture(scope="module")
def gpus() -> Iterator[Followers]:
    """The second GPU."""
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two GPUs, torch sees {torch.cuda.device_count()}")
    others = Followers(2, "cuda")
    yield others
    others.close()


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=lambda variant: variant.name)
def test_two_gpus_give_the_tokens_of_one(gpus: Followers, variant: Variant) -> None:
    """Greedy and drawn, from replayed graphs."""
    one, two = Engine(CONFIG, variant), Engine(replace(CONFIG, tensor_parallel_size=2), variant, followers=gpus)
    for sampling in (GREEDY, SAMPLED[1]):
        assert serve(two, PROMPTS, sampling) == serve(one, PROMPTS, sampling)
    assert two.snapshot()["graph_replays"] == one.snapshot()["graph_replays"] > 0
    two.close()


def test_the_pool_of_both_fits_beside_graphs(gpus: Followers) -> None:
    """Sized by what each GPU has left; both take the smaller."""
    config = replace(CONFIG, num_kv_blocks=None, tensor_parallel_size=2)
    with Engine(config, followers=gpus) as engine:
        assert len(engine.blocks.blocks) == 8 * 256 // 16
        assert engine.generate([PROMPTS[2]], GREEDY)[0].finish_reason == "length"


def test_a_gpu_that_is_lost_ends_the_wait_for_it(gpus: Followers) -> None:
    """A kernel that waits for a dead rank would spin for ever; the host looks after the processes meanwhile."""
    engine = Engine(replace(CONFIG, tensor_parallel_size=2))
    engine.generate(PROMPTS, GREEDY)
    assert engine._own_followers is not None
    start = time.monotonic()
    for prompt in PROMPTS:
        engine.add_request(prompt, GREEDY)
    engine.step()
    engine._own_followers._processes[0].kill()
    with pytest.raises(EngineError, match="rank 1 of 2 was killed by SIGKILL"):
        engine.generate(PROMPTS, GREEDY)
    assert time.monotonic() - start < 30
