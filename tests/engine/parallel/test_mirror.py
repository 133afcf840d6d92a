"""What rank 0 tells the others is all they need: a second runner that only does as told ends up in the same state.

Both hold the whole model here, so that steps replayed from graphs can be followed without a second process.
"""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import Engine, SamplingParams
from engine.launch import Launch
from engine.parallel.ranks import Ranks
from engine.runner import Runner
from tests.engine.replay import graph_engine
from tests.engine.tiny import GREEDY, PROMPTS, expected, serve, tiny_engine


class Listening(Ranks):
    """Rank 1 as far as its runner can tell; what rank 0 broadcasts is what its runner has drawn."""

    def __init__(self, leader: Runner) -> None:
        super().__init__(1, 2)
        self.leader = leader

    def broadcast(self, x: Tensor) -> Tensor:
        return x.copy_(self.leader._sampled[: len(x)])


class Follower:
    """Pickles every call and makes it on another engine's runner, once rank 0 has made it."""

    def __init__(self, leader: Engine, follower: Engine) -> None:
        self.runner, self.telling = follower.runner, False
        self.calls: list[tuple[str, Any]] = []
        follower.runner.ranks = Listening(leader.runner)
        leader.runner.mirror = self

    @contextmanager
    def told(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
        if self.telling:
            yield
            return
        message = pickle.dumps((name, args, kwargs))
        self.telling = True
        yield
        self.telling = False
        name, args, kwargs = pickle.loads(message)
        self.calls.append((name, args))
        with torch.inference_mode():
            getattr(self.runner, name)(*args, **kwargs)

    def wait(self, event: torch.cuda.Event) -> None:
        raise AssertionError("there is no GPU to wait for")


def assert_same_state(one: Runner, other: Runner) -> None:
    """Newest tokens, pages, graphs. Padded rows write their token to the last row, which nobody reads."""
    assert torch.equal(one.last_token_R[:-1], other.last_token_R[:-1])
    for mine, theirs in zip(one.caches, other.caches, strict=True):
        assert torch.equal(mine.k, theirs.k)
        assert torch.equal(mine.v, theirs.v)
    assert one.graphs.graphs.keys() == other.graphs.graphs.keys()


SAMPLED = SamplingParams(temperature=1.0, seed=4, max_tokens=24, ignore_eos=True, repetition_penalty=1.1, logprobs=1)


@pytest.mark.parametrize("build", [graph_engine, tiny_engine])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("config", [{}, {"num_kv_blocks": 12, "max_num_batched_tokens": 40}], ids=["roomy", "full"])
def test_a_follower_keeps_step(build: Any, sampling: SamplingParams, config: dict[str, Any]) -> None:
    """Prefills, chunks, preemptions, padded and exact steps, drawn tokens."""
    engine, other = build(**config), build(**config)
    Follower(engine, other)
    assert serve(engine, PROMPTS, sampling) == expected(PROMPTS, sampling)
    assert_same_state(engine.runner, other.runner)


def test_an_unchanged_batch_is_told_in_a_few_bytes() -> None:
    """No inputs go with a decode step unless a block was added; greedy tokens are not sent at all."""
    engine, other = graph_engine(), graph_engine()
    follower = Follower(engine, other)
    engine.generate([PROMPTS[3]], GREEDY)
    steps: list[Launch] = [args[0] for name, args in follower.calls if name == "run"]
    # 17 tokens and 24 more: a prefill, the first decode, and the block border at 32.
    assert [i for i, step in enumerate(steps) if step.packed is not None] == [0, 1, 16]
    assert {name for name, _ in follower.calls} == {"capture", "run"}
    assert len(pickle.dumps(("run", steps[5]))) < 300


def test_what_a_call_makes_in_turn_is_not_sent_twice() -> None:
    """Warming up captures, and the largest step does too: each is one call."""
    engine, other = graph_engine(max_num_seqs=3), graph_engine(max_num_seqs=3)
    follower = Follower(engine, other)
    engine.runner.warm_up([1, 3])
    engine.runner.run_largest()
    engine.adopt(PROMPTS[2], replace(GREEDY, max_tokens=3))
    engine.runner.forget_graphs()
    assert [name for name, _ in follower.calls] == ["warm_up", "run_largest", "set_token", "forget_graphs"]
    assert_same_state(engine.runner, other.runner)
