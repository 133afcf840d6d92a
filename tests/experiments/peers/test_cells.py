"""Cells made of calls: on a clock that only the engine moves, a cell's samples are the engine's costs exactly."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from engine import ModelConfig
from experiments.errors import Unsupported
from experiments.measuring.guard import Disturbed
from experiments.peers import cells
from experiments.peers.cells import measure
from experiments.peers.lengths import decode_lengths
from experiments.peers.session import PeerSession
from experiments.records import Point
from tests.experiments.measuring.sessions import PROTOCOL, WORKLOADS
from tests.experiments.peers.loads import load_peer, points

CONFIG = ModelConfig("qwen3", 256, 64, 160, 2, 4, 2, 16, 4096, qk_norm=True)
PREFILL_S, STEP_S = 0.5, 0.25
DECODE, PREFILL, OFFLINE = points()


class Clocked:
    """An engine that takes PREFILL_S for the prompts of a call and STEP_S for each step after the first token."""

    includes = ""

    def __init__(self) -> None:
        self.facts: dict[str, str] = {}
        self.now_s = 0.0
        self.prompts: list[tuple[int, ...]] = []
        self.calls: list[tuple[int, ...]] = []

    def generate(self, prompts: Sequence[list[int]], num_tokens: Sequence[int]) -> list[list[int]]:
        """Zeros."""
        self.now_s += PREFILL_S + STEP_S * (max(num_tokens) - 1)
        self.prompts += map(tuple, prompts)
        self.calls.append(tuple(num_tokens))
        return [[0] * count for count in num_tokens]

    def logits(self, tokens_T: Tensor) -> Tensor | None:
        """None."""

    def rest(self) -> None:
        """Nothing runs."""

    def counters(self) -> dict[str, float]:
        """One."""
        return {"kv_blocks": 7.0}


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Clocked:
    """A peer that moves the clock."""
    peer = Clocked()
    monkeypatch.setattr(cells.time, "perf_counter", lambda: peer.now_s)
    return peer


def session_of(peer: Clocked) -> PeerSession:
    return PeerSession(load_peer("transformers"), peer, CONFIG, "random", "0123")


@pytest.mark.parametrize(("length", "windows", "steps"), [(128, 3, 64), (24, 2, 4), (1024, 3, 64), (513, 1, 7)])
def test_the_mean_context_of_the_timed_steps_is_the_cell_s(length: int, windows: int, steps: int) -> None:
    """Counted one by one: the step that makes token k has the prompt and the k - 1 tokens before it in the cache."""
    protocol = replace(PROTOCOL, windows=windows, steps_per_window=steps)
    lengths = decode_lengths(Point("m", "decode", 1, length), protocol, 4096)
    assert lengths.steps == windows * steps
    contexts = [lengths.prompt + k - 1 for k in range(lengths.short, lengths.long)]
    assert len(contexts) == lengths.steps
    # An even number of steps has its mean between two lengths.
    assert abs(sum(contexts) / len(contexts) - length) <= 0.5


def test_a_cell_at_the_last_position_is_moved_back_and_a_short_one_starts_at_one_token() -> None:
    last = decode_lengths(Point("m", "decode", 1, 100), PROTOCOL, 100)
    assert last.most == 100
    assert decode_lengths(Point("m", "decode", 1, 1), PROTOCOL, 100).prompt == 1


def mixed_s(prompts: int, per_step: int, answer: int) -> float:
    """Seconds of an engine that prefills so many prompts a step and decodes whoever has begun: a second a sequence."""
    begun = [index // per_step for index in range(prompts)]
    steps = max(begun) + answer
    return float(sum(sum(start < step < start + answer for start in begun) for step in range(steps)))


@pytest.mark.parametrize("batch", [64, 256])
def test_prefills_mixed_with_decodes_cancel(batch: int) -> None:
    """The step of a whole batch remains, though the first prompts decode while the last are prefilled."""
    lengths = decode_lengths(Point("m", "decode", batch, 1024), replace(PROTOCOL, windows=2, steps_per_window=24), 4096)
    per_step = 16_384 // lengths.prompt
    assert lengths.short > batch // per_step
    more_s = mixed_s(batch, per_step, lengths.long) - mixed_s(batch, per_step, lengths.short)
    assert more_s / lengths.steps == batch


def test_a_decode_cell_is_the_step_alone(peer: Clocked) -> None:
    """Prefill and first steps cancel: 8 more steps, each STEP_S. The windows' 0.4 s are spent after one pair."""
    samples, counters = measure(session_of(peer), DECODE, PROTOCOL)
    assert samples == {"step_ms": [1e3 * STEP_S]}
    assert counters == {"kv_blocks": 7.0, "prompt_tokens": 18.0, "timed_steps": 8.0}
    assert peer.calls == [(4, 4), (4, 4), (12, 12)]


def test_pairs_are_repeated_while_there_is_time(peer: Clocked) -> None:
    samples, _ = measure(session_of(peer), DECODE, replace(PROTOCOL, windows=3, window_ms=1e6))
    assert samples == {"step_ms": [1e3 * STEP_S] * 3}


def test_a_prefill_cell_is_a_call_for_one_token(peer: Clocked) -> None:
    samples, _ = measure(session_of(peer), PREFILL, replace(PROTOCOL, window_ms=1000.0))
    # Two calls fit a window, and there are two windows.
    assert samples == {"ttft_ms": [1e3 * PREFILL_S] * 4}
    assert set(peer.calls) == {(1, 1)}
    assert {len(prompt) for prompt in peer.prompts} == {24}


def test_an_offline_cell_counts_the_output_tokens_of_one_call(peer: Clocked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the second: the first one, all prompts and the beginning of the answers, warms up."""
    monkeypatch.setattr(cells, "WARM_UP_TOKENS", 3)
    samples, _ = measure(session_of(peer), OFFLINE, PROTOCOL)
    warm_up, asked = peer.calls
    assert warm_up == tuple(min(tokens, 3) for tokens in asked)
    assert max(asked) > 3
    assert len(asked) == OFFLINE.batch
    assert samples == {"output_tokens_per_s": [sum(asked) / (PREFILL_S + STEP_S * (max(asked) - 1))]}


def test_no_prompt_comes_twice(peer: Clocked) -> None:
    """Else a prefix cache that cannot be switched off would answer for the second: over all cells and rounds."""
    session = session_of(peer)
    for point in (DECODE, PREFILL, OFFLINE) * 2:
        measure(session, point, PROTOCOL)
    # The shortest offline prompts, of 3 tokens, are among them.
    assert len(set(peer.prompts)) == len(peer.prompts) > 30


def test_calls_that_differ_by_nothing_are_no_measurement(peer: Clocked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "call", lambda *_: 1.0)
    with pytest.raises(RuntimeError, match=r"8 more steps took no longer .* raise protocol\.steps_per_window"):
        measure(session_of(peer), DECODE, PROTOCOL)


def test_an_answer_that_is_too_short_is_no_measurement(peer: Clocked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "generate", lambda prompts, num_tokens: [[0] * (n - 1) for n in num_tokens])
    with pytest.raises(RuntimeError, match="gave 0 where 1 were asked for"):
        measure(session_of(peer), PREFILL, PROTOCOL)


def test_an_engine_that_compiles_in_every_call_is_invalid(peer: Clocked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once is warm-up; each time is no state to be measured in."""
    compiled = iter(range(1000))
    monkeypatch.setattr(cells.Compilations, "now", classmethod(lambda cls: cls(next(compiled), 0)))
    with pytest.raises(Disturbed, match="4 times over: 1 triton compilations"):
        measure(session_of(peer), PREFILL, PROTOCOL)


def test_another_kind_of_cell_is_skipped(peer: Clocked) -> None:
    session = session_of(peer)
    session.request = replace(session.request, workloads=(replace(WORKLOADS[0], kind="serving"),))
    with pytest.raises(Unsupported, match="kind serving is not measured through another engine"):
        measure(session, DECODE, PROTOCOL)


def test_prompts_are_those_of_the_model_s_vocabulary(peer: Clocked) -> None:
    measure(session_of(peer), PREFILL, PROTOCOL)
    assert torch.tensor(peer.prompts).max() < CONFIG.vocab_size
