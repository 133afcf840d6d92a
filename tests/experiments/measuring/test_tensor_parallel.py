"""A variant on two ranks is verified and measured as any other; here the second rank is a process on the CPU."""

import dataclasses
from types import SimpleNamespace

import pytest

from engine.parallel.followers import Followers
from engine.parallel.ranks import Ranks
from experiments.config import RuntimeConfig, VariantConfig
from experiments.measuring.decode import measure_decode
from experiments.measuring.session import Session
from experiments.measuring.verdict import verify
from experiments.records import Point
from tests.experiments.measuring.sessions import PROTOCOL, load


@pytest.fixture
def session(followers: Followers) -> Session:
    """fused, over two ranks."""
    tp2 = VariantConfig("tp2", "fused", runtime=RuntimeConfig(tensor_parallel_size=2))
    session = Session(dataclasses.replace(load(), variant=tp2))
    # Those of all tests, in place of some of its own.
    session._followers = followers
    return session


def test_answers_of_two_ranks_are_verified(session: Session) -> None:
    """Prefills, decode batches of every size and greedy answers, against the reference on the whole weights."""
    verdict = verify(session, PROTOCOL.verdict_tokens)
    assert verdict.ok, verdict.reason
    assert verdict.positions > PROTOCOL.verdict_tokens
    assert verdict.kl_mean < 1e-9


def test_wrong_answers_of_one_rank_are_found(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here rank 0 adds nothing to any sum."""
    add = Ranks.sum
    monkeypatch.setattr(Ranks, "sum", lambda ranks, x: add(ranks, x.zero_()))
    verdict = verify(session, PROTOCOL.verdict_tokens)
    assert not verdict.ok
    assert "answers differ from the fp32 reference" in verdict.reason


def test_a_decode_cell_runs_on_two_ranks(session: Session) -> None:
    """Adopted sequences, noise in the pages, and the number of ranks beside its counters."""
    samples, engine = measure_decode(session, Point("tiny", "decode", 2, 24), PROTOCOL)
    assert len(samples["step_ms"]) == PROTOCOL.windows
    assert engine.snapshot()["ranks"] == 2


def test_lost_ranks_are_replaced(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that ran out of memory half-way through a step takes its ranks along, and not the cells after it."""
    started: list[SimpleNamespace] = []

    def start(size: int, device: str) -> SimpleNamespace:
        started.append(SimpleNamespace(size=size, device=device, usable=True))
        return started[-1]

    monkeypatch.setattr("experiments.measuring.session.Followers", start)
    first = session.followers
    assert not started
    session._followers = None
    assert session.followers is session.followers is started[0]
    started[0].usable = False
    assert session.followers is started[1]
    assert (started[1].size, started[1].device) == (2, "cpu")
    session._followers = first
