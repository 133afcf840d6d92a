"""A prefix is paid for once, and only by the prompt that comes first."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from engine import Engine
from experiments.measuring import shared_prefix
from experiments.measuring.decode import window_steps
from experiments.measuring.shared_prefix import draw_alike, measure_shared_prefix
from experiments.records import Point
from tests.experiments.measuring.sessions import PROTOCOL, session_of

# 130 tokens shared of 150, in pages of 64: two pages can be.
POINT = Point("tiny", "shared_prefix", 3, 150)
SHARED, LENGTH = 130, 150


def test_prompts_share_their_prefix_and_no_more() -> None:
    """And none with those of another repeat."""
    session = session_of()
    first, others = draw_alike(session, POINT, salt=0)
    assert len(others) == 3
    assert all(len(prompt) == LENGTH and prompt[:SHARED] == first[:SHARED] for prompt in others)
    assert len({tuple(prompt[SHARED:]) for prompt in [first, *others]}) == 4
    assert draw_alike(session, POINT, salt=1)[0][:SHARED] != first[:SHARED]


def test_the_first_computes_all_and_the_others_what_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every repeat alike: a prefix that an earlier one left behind would make the first one warm."""
    computed: list[int] = []

    def launched(engine: Engine) -> Any:
        before = engine.metrics.num_prefilled_tokens
        outputs = step(engine)
        if done := engine.metrics.num_prefilled_tokens - before:
            computed.append(done)
        return outputs

    step = Engine.step
    monkeypatch.setattr(Engine, "step", launched)
    samples, engine = measure_shared_prefix(session_of(), POINT, PROTOCOL)
    repeats = len(computed) // 2
    assert computed == [LENGTH, 3 * (LENGTH - 128)] * repeats
    assert repeats > len(samples["warm_ttft_ms"]) >= PROTOCOL.windows
    assert engine.snapshot()["prefix_hit_rate"] == pytest.approx(3 * 128 / (4 * LENGTH))
    assert len(samples["cold_ttft_ms"]) == len(samples["warm_ttft_ms"])
    assert min(*samples["cold_ttft_ms"], *samples["warm_ttft_ms"]) > 0


def test_in_a_window_one_prompt_comes_behind_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """All are drawn before it. A time here is the number of prompts: one cold, three warm."""
    done: list[str] = []

    @contextmanager
    def window(engine: Engine) -> Iterator[None]:
        done.append("(")
        yield
        done.append(")")

    def served(engine: Engine, prompts: list[list[int]]) -> float:
        done.append("serve")
        return float(len(prompts))

    monkeypatch.setattr(shared_prefix, "draw_alike", lambda *args: [done.append("draw"), draw_alike(*args)][1])
    monkeypatch.setattr(shared_prefix, "first_token_ms", served)
    monkeypatch.setattr(shared_prefix, "undisturbed", window)
    samples, _ = measure_shared_prefix(session_of(), POINT, PROTOCOL)
    repeats = window_steps(PROTOCOL, 4.0)
    count = PROTOCOL.windows * repeats
    assert samples == {"warm_ttft_ms": [3.0] * count, "cold_ttft_ms": [1.0] * count}
    whole = ["draw"] * repeats + ["("] + ["serve"] * 2 * repeats + [")"]
    assert done[-len(whole) * PROTOCOL.windows :] == whole * PROTOCOL.windows


def test_answers_do_not_depend_on_who_brought_the_prefix() -> None:
    """The first tokens of warm prompts are those of an engine without a cache."""
    session = session_of()
    first, others = draw_alike(session, POINT, salt=5)
    cached = session.engine(4, LENGTH + 1, 3 * LENGTH, enable_prefix_caching=True)
    plain = session.engine(4, LENGTH + 1, 3 * LENGTH)
    cached.generate([first])
    assert [o.token_ids for o in cached.generate(others)] == [o.token_ids for o in plain.generate(others)]
    assert cached.blocks.num_hit_tokens == 3 * 128
    assert plain.blocks.num_hit_tokens == 0
