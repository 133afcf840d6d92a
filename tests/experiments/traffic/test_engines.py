"""Each engine's books serve small traffics, and what they spare and repeat adds up."""

import importlib.util
import random
import sys
from pathlib import Path

import pytest

from experiments.errors import UserError
from experiments.traffic.drive import drive
from experiments.traffic.nano_vllm import NanoVllm
from experiments.traffic.ours import Ours
from experiments.traffic.records import Books, Limits, Request
from experiments.traffic.requests import TRAFFICS, Traffic
from experiments.traffic.vllm import Vllm

# The interface of nano-vLLM's scheduler at its smallest: one sequence at a time, a block for each.
FAKE = {
    "__init__": "raise ImportError('the package itself needs flash-attn')",
    "sampling_params": """
from dataclasses import dataclass
@dataclass
class SamplingParams:
    max_tokens: int = 64
    ignore_eos: bool = False
""",
    "engine/__init__": "",
    "engine/sequence": """
from itertools import count
class Sequence:
    block_size = 0
    counter = count()
    def __init__(self, token_ids, sampling):
        self.seq_id = next(Sequence.counter)
        self.token_ids, self.num_prompt_tokens = token_ids, len(token_ids)
        self.max_tokens, self.block_table = sampling.max_tokens, []
        self.num_cached_tokens = self.num_scheduled_tokens = 0
    def __len__(self):
        return len(self.token_ids)
    @property
    def num_completion_tokens(self):
        return len(self) - self.num_prompt_tokens
""",
    "engine/scheduler": """
from types import SimpleNamespace
class Scheduler:
    def __init__(self, config):
        self.running, self.waiting = [], []
        self.block_manager = SimpleNamespace(used_block_ids=set())
    def is_finished(self):
        return not self.running and not self.waiting
    def add(self, sequence):
        self.waiting.append(sequence)
    def preempt(self, sequence):
        pass
    def schedule(self):
        prefill = not self.running
        if prefill:
            sequence = self.waiting.pop(0)
            sequence.block_table, self.running = [0], [sequence]
            self.block_manager.used_block_ids = {0}
        sequence = self.running[0]
        sequence.num_scheduled_tokens = len(sequence) if prefill else 1
        return [sequence], prefill
    def postprocess(self, sequences, tokens, prefill):
        (sequence,) = sequences
        sequence.num_cached_tokens += sequence.num_scheduled_tokens
        sequence.token_ids.append(tokens[0])
        if sequence.num_completion_tokens == sequence.max_tokens:
            self.running, self.block_manager.used_block_ids = [], set()
""",
}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a checkout of nano-vLLM."""
    (tmp_path / "nanovllm/engine").mkdir(parents=True)
    for name, text in FAKE.items():
        (tmp_path / f"nanovllm/{name}.py").write_text(text)
    for name in [name for name in sys.modules if name.split(".")[0] == "nanovllm"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def random_traffic(pool_tokens: int, shared: int = 0, seed: int = 0) -> Traffic:
    """Twelve requests that begin with the same `shared` tokens."""
    draw = random.Random(seed)
    stem = tuple(draw.randrange(100) for _ in range(shared))

    def tokens(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw.randrange(100) for _ in range(draw.randint(least, most)))

    requests = tuple(Request(3 * i, stem + tokens(10, 200), tokens(5, 120)) for i in range(12))
    return Traffic("random", "", requests, Limits(pool_tokens, 8, 256))


def test_with_room_and_nothing_shared_each_token_is_computed_once() -> None:
    traffic = random_traffic(64 * 64)
    usage = drive(Ours(traffic.limits), "ours", traffic)
    assert usage.answered == usage.requests == 12
    assert usage.computed_tokens == usage.needed_tokens
    assert (usage.reused_tokens, usage.preemptions, usage.stalled_steps) == (0, 0, 0)
    assert 0 < usage.mean_waste < usage.mean_used < usage.peak_used <= 1


def test_a_shared_prefix_is_computed_by_the_first_alone() -> None:
    traffic = random_traffic(64 * 64, shared=192)
    usage = drive(Ours(traffic.limits), "ours", traffic)
    assert usage.answered == 12
    assert usage.computed_tokens + usage.reused_tokens == usage.needed_tokens
    assert usage.reused_tokens == 11 * 192  # Three whole blocks of 64, which whoever comes later finds.


def test_in_a_pool_too_small_requests_are_preempted_and_still_answered() -> None:
    traffic = random_traffic(64 * 9)
    usage = drive(Ours(traffic.limits), "ours", traffic)
    assert usage.answered == 12
    assert usage.preemptions > 0
    assert usage.computed_tokens + usage.reused_tokens > usage.needed_tokens
    assert usage.longest_stall > 0


def test_nano_vllm_is_driven_from_a_checkout(checkout: Path) -> None:
    traffic = random_traffic(256 * 4)
    books: Books = NanoVllm(traffic.limits, checkout)
    usage = drive(books, "nano_vllm", traffic)
    assert usage.answered == 12
    assert usage.computed_tokens == usage.needed_tokens
    assert usage.peak_used == 1 / 4


def test_a_folder_that_is_no_checkout_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nano_vllm_path=.*no nanovllm/engine/scheduler\.py there"):
        NanoVllm(Limits(1024), tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed here")
def test_without_vllm_the_mend_is_said() -> None:
    with pytest.raises(UserError, match="install vllm, or leave it out of engines"):
        Vllm(Limits(1024))


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed here")
def test_vllm_computes_each_token_once_too() -> None:
    traffic = random_traffic(64 * 64, shared=192)
    usage = drive(Vllm(traffic.limits), "vllm", traffic)
    assert usage.answered == 12
    assert usage.computed_tokens + usage.reused_tokens == usage.needed_tokens


@pytest.mark.parametrize("name", TRAFFICS)
def test_traffics_are_the_same_each_time_and_in_order(name: str) -> None:
    traffic, again = TRAFFICS[name](), TRAFFICS[name]()
    assert traffic == again
    assert traffic.description.endswith(".")
    arrivals = [request.arrival for request in traffic.requests]
    assert arrivals == sorted(arrivals)
    longest = max(len(request.prompt) + len(request.answer) for request in traffic.requests)
    assert longest <= min(8192, traffic.limits.pool_tokens)
