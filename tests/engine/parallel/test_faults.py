"""A rank that dies, an engine that is interrupted or closed: a clear error within seconds, and nothing left behind.

The last test spawns its rank, as users do; the others fork theirs, which is quicker.
"""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import Engine, EngineConfig, EngineError, ModelError, SamplingParams
from engine.parallel.followers import Followers
from engine.parallel.ranks import Ranks
from tests.engine.tiny import prompt_of
from tests.processes import is_running
from tests.ranks import forked_ranks

GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)
PROMPTS = [prompt_of(length) for length in (5, 20)]
# Generous: the machine may be busy. A hang would take the 120 s after which a silent rank counts as lost.
SECONDS = 30.0


def engine_of(model: str = "tiny", **changes: Any) -> Engine:
    """An engine with a second rank of its own."""
    sizes = {"block_size": 16, "max_model_len": 128, "max_num_seqs": 4, "max_num_batched_tokens": 64}
    return Engine(EngineConfig(model, "float32", **{**sizes, "num_kv_blocks": 20, **changes}, tensor_parallel_size=2))


def second_rank(engine: Engine) -> Any:
    """Its process."""
    assert engine._own_followers is not None
    return engine._own_followers._processes[0]


@pytest.fixture
def forked() -> Iterator[None]:
    """New ranks within milliseconds."""
    with forked_ranks():
        yield


@pytest.fixture
def quick(forked: None) -> Iterator[None]:
    """The block may not take long."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < SECONDS


def test_a_dead_rank_is_named_and_the_engine_beside_it_goes_on(quick: None) -> None:
    """Two engines on one machine share nothing: one loses a rank between two steps, the other does not notice."""
    with engine_of() as lost, engine_of() as well:
        expected = well.generate(PROMPTS, GREEDY)
        process = second_rank(lost)
        lost.add_request(PROMPTS[0], GREEDY)
        lost.step()
        process.kill()
        process.join()
        for _ in range(2):
            with pytest.raises(EngineError, match=r"rank 1 of 2 was killed by SIGKILL \(exit code -9\); build a new"):
                lost.generate(PROMPTS, GREEDY)
        assert [o.token_ids for o in well.generate(PROMPTS, GREEDY)] == [o.token_ids for o in expected]
        # Ctrl-C in a terminal reaches every process of it; the ranks leave the answer to rank 0.
        other = second_rank(well)
        os.kill(other.pid, signal.SIGINT)
        assert [o.token_ids for o in well.generate(PROMPTS, GREEDY)] == [o.token_ids for o in expected]
        well.close()
        assert not other.is_alive()
        with pytest.raises(EngineError, match="the engine is closed"):
            well.generate(PROMPTS, GREEDY)


def test_a_rank_that_dies_in_mid_step_ends_the_wait_for_it(quick: None) -> None:
    """Rank 0 stands in a collective that the other rank, stopped, does not join; then it is killed."""
    engine = engine_of()
    process = second_rank(engine)
    os.kill(process.pid, signal.SIGSTOP)
    killer = threading.Timer(0.5, process.kill)
    killer.start()
    with pytest.raises(EngineError, match="rank 1 of 2 was killed by SIGKILL"):
        engine.generate(PROMPTS, GREEDY)
    killer.join()
    assert not process.is_alive()


def test_a_rank_that_is_slow_to_die_is_named_all_the_same(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU its files close seconds before it has an exit code; it is seen as alive until then."""
    engine = engine_of()
    process = second_rank(engine)
    popen = process._popen
    poll, dying_until = popen.poll, time.monotonic() + 1.0

    def late(*args: Any) -> int | None:
        code: int | None = poll(*args) if time.monotonic() > dying_until else None
        return code

    monkeypatch.setattr(popen, "poll", late)
    process.kill()
    with pytest.raises(EngineError, match="rank 1 of 2 was killed by SIGKILL"):
        engine.generate(PROMPTS, GREEDY)
    assert time.monotonic() > dying_until


def test_the_wait_for_an_exit_code_ends(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that does not let go of a process: nothing to name it by, but no hang."""
    monkeypatch.setattr("engine.parallel.followers.REAP_S", 0.2)
    engine = engine_of()
    process = second_rank(engine)
    with monkeypatch.context() as patch:
        poll, killed = process._popen.poll, time.monotonic()
        patch.setattr(process._popen, "poll", lambda *args: poll(*args) if time.monotonic() > killed + 1 else None)
        process.kill()
        with pytest.raises(EngineError, match="one of 2 ranks gives no answer"):
            engine.generate(PROMPTS, GREEDY)


def test_an_interrupted_step_ends_the_other_rank(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between two collectives leaves the ranks out of step: nothing may go on from there."""
    engine = engine_of()
    process = second_rank(engine)
    calls: list[int] = []
    add = Ranks.sum

    def interrupted(self: Ranks, x: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return add(self, x)

    monkeypatch.setattr(Ranks, "sum", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS, GREEDY)
    assert not process.is_alive()
    with pytest.raises(EngineError, match="out of step since run ended in KeyboardInterrupt"):
        engine.generate(PROMPTS, GREEDY)


def test_what_a_rank_fails_with_is_told(quick: None) -> None:
    """Its own words come with its exit code, and an engine that is not built leaves no process."""
    with pytest.raises(ModelError, match="no-such-model"):
        engine_of("no-such-model")
    engine = engine_of()
    process = second_rank(engine)
    assert engine.runner.mirror is not None
    mirror = engine.runner.mirror

    def call() -> None:
        assert mirror is not None
        with mirror.told("no_such_method", (), {}):
            process.join()
            raise RuntimeError("connection closed by peer")

    with pytest.raises(EngineError, match=r"rank 1 of 2 ended with exit code 1: AttributeError: .*no_such_method"):
        call()
    assert not process.is_alive()


def test_an_engine_that_is_forgotten_ends_its_ranks(quick: None) -> None:
    """As one does that is closed."""
    engine = engine_of()
    process = second_rank(engine)
    del engine
    gc.collect()
    assert not process.is_alive()


def test_a_rank_that_does_not_start_ends_the_wait_for_it(forked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies before it is ready."""
    monkeypatch.setattr("engine.parallel.followers.follow", sys.exit)
    with pytest.raises(EngineError, match="rank 1 of 2 ended with exit code"):
        Followers(2, "cpu")


SCRIPT = """
import os, signal
from engine.parallel.followers import Followers

if __name__ == "__main__":
    others = Followers(2, "cpu")
    print(others._processes[0].pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_ranks_do_not_outlive_a_rank_0_that_is_killed(tmp_path: Path) -> None:
    """It can say nothing; its end of the pipe closes."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": os.getcwd()}, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid = int(done.stdout)
    deadline = time.monotonic() + SECONDS
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(pid)
