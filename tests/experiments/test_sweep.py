"""A sweep measures every planned cell once, interleaved, one worker at a time, whatever its workers do."""

import itertools
import math
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments import durable
from experiments.compose import compose
from experiments.environment import Environment, Gpu
from experiments.errors import UserError
from experiments.messages import Answer
from experiments.plan import make_plan
from experiments.progress import Display
from experiments.records import OUT_OF_TIME, CellResult, Status
from experiments.sweep import prepare, run_sweep
from experiments.worker_process import WorkerProcess
from tests.experiments.sweeping import arguments, outcome, sweep, worker_command

NUM_CELLS = 4 * 2 * 2
OK = {Status.OK}


def test_every_cell_is_measured_once_in_the_order_planned(tmp_path: Path) -> None:
    found = sweep(tmp_path)
    assert found.code == 0
    assert len(found.results) == NUM_CELLS
    assert set(found.statuses().values()) == OK
    planned = make_plan(compose(arguments(tmp_path)), ["tiny"]).cells
    assert found.measured == [(cell.variant, cell.id) for cell in planned]
    for result in found.results.values():
        assert result.verdict is not None
        assert result.verdict.ok
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", result.started)
    assert found.manifest.weights == {"tiny": "fake"}
    assert found.manifest.weights_hash == {"tiny": "0123"}
    assert found.manifest.ceilings == {"read_bytes_per_s": 1e12, "bf16_flop_per_s": 1e14}


def test_one_worker_measures_at_a_time_and_stays_warm(tmp_path: Path) -> None:
    found = sweep(tmp_path, "models=[tiny,tiny-llama]")
    lines = [line.split() for line in (tmp_path / "rules.json.log").read_text().splitlines()]
    assert len(lines) == 2 * NUM_CELLS
    spans = [(float(start), float(end)) for *_, start, end in lines]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert sorted(p.name for p in (found.path / "logs").iterdir()) == [
        f"{model}.{variant}.log" for model in ("tiny-llama", "tiny") for variant in ("baseline", "fused")
    ]


def test_dry_run_prints_the_plan_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = arguments(tmp_path, "dry_run=true")
    assert run_sweep(compose(asked), asked, ["false"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "16 cells: 4 points x 2 variants x 2 rounds"
    assert printed[1:] == [cell.id for cell in make_plan(compose(asked), ["tiny"]).cells]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("spread", [[], ["devices=[0,1]"]])
def test_a_plan_for_gpus_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], spread: list[str]
) -> None:
    laptop = Environment("3.12", "Linux", "cpu", 2, None, {"torch": "2.13.0+cpu"})
    monkeypatch.setattr("experiments.sweep.machine", lambda: laptop)
    monkeypatch.setattr("experiments.cluster.hosts.machine", lambda: laptop)
    asked = arguments(tmp_path, "device=cuda", "dry_run=true", *spread)
    assert run_sweep(compose(asked), asked, ["false"]) == 0
    assert capsys.readouterr().out.startswith("16 cells")
    with pytest.raises(UserError, match="no GPU"):
        prepare(compose(arguments(tmp_path, "device=cuda")))


@pytest.mark.parametrize("what", ["exit", "kill", "orphan"])
def test_a_worker_that_dies_costs_one_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr("experiments.worker_process.LOOK_S", 0.2)
    found = sweep(tmp_path, rules=[{"do": what, "on": "measure", "variant": "fused", "times": 1}])
    assert found.code == 0
    assert Counter(found.statuses().values()) == {Status.OK: NUM_CELLS - 1, Status.ERROR: 1}
    lost = next(result for result in found.results.values() if result.status is Status.ERROR)
    assert lost.cell.variant == "fused"
    said = {
        "exit": "the worker exited with code 3: RuntimeError: the fake worker gives up",
        "kill": "the worker was killed by SIGKILL (by the system, for want of memory?)",
        "orphan": "the worker exited with code 3",
    }
    assert lost.reason == said[what]


def test_a_worker_that_hangs_is_killed_and_given_up_after_two_tries(tmp_path: Path) -> None:
    rules = [{"do": "hang", "on": "measure", "variant": "fused", "batch": 2, "length": 8}]
    found = sweep(tmp_path, "protocol.cell_timeout_s=1", "protocol.rounds=3", rules=rules)
    ended = {name: result for name, result in found.results.items() if "b2.l8.fused" in name}
    assert [ended[name].status for name in sorted(ended)] == [Status.TIMEOUT, Status.TIMEOUT, Status.SKIPPED]
    assert ended["tiny.decode.b2.l8.fused.r00"].reason == "killed after 1 s without an answer"
    assert "failed 2 times before: killed after 1 s" in ended["tiny.decode.b2.l8.fused.r02"].reason
    assert Counter(found.statuses().values())[Status.OK] == 24 - 3


def test_out_of_memory_is_inferred_for_larger_cells_and_later_rounds(tmp_path: Path) -> None:
    rules = [{"do": "oom", "on": "measure", "variant": "fused", "batch": 2, "length": length} for length in (8, 16)]
    found = sweep(tmp_path, "protocol.rounds=3", rules=rules)
    ended = {name: result for name, result in found.results.items() if "b2" in name and "fused" in name}
    asked = {cell for _, cell in found.measured}
    assert {name for name, result in ended.items() if result.status is Status.OOM} == asked & ended.keys()
    skipped = [result for result in ended.values() if result.status is Status.SKIPPED]
    assert all(
        re.fullmatch(r"inferred from tiny\.decode\.b2\.l\d+\.fused\.r0\d, no larger.*", r.reason) for r in skipped
    )
    # A cell of its own size at most twice over all rounds: the smaller one once, the larger one where it came first.
    assert 1 <= len(ended) - len(skipped) <= 2
    assert Counter(found.statuses().values())[Status.OK] == 24 - 6


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("nan", "step_ms has samples that are not finite"),
        ("empty", "no samples came back"),
        ("other", r"the worker measured tiny\.decode\.b\d\.l\d+\.other\.r00 instead"),
        ("error", "as the rules say: error"),
        ("user", "as the rules say: user"),
    ],
)
def test_a_result_that_cannot_be_is_an_error(tmp_path: Path, what: str, reason: str) -> None:
    found = sweep(tmp_path, rules=[{"do": what, "on": "measure", "variant": "fused", "times": 1}])
    wrong = [result for result in found.results.values() if result.status is not Status.OK]
    assert [result.status for result in wrong] == [Status.ERROR]
    assert re.fullmatch(reason, wrong[0].reason)


def test_what_libraries_print_does_no_harm(tmp_path: Path) -> None:
    found = sweep(tmp_path, rules=[{"do": "junk", "on": "measure"}])
    assert set(found.statuses().values()) == OK
    log = (found.path / "logs" / "tiny.fused.log").read_text(errors="replace")
    assert all(text in log for text in ("a library says hello", "so does its child", "not json", "unknown"))


def test_no_speed_without_a_right_answer(tmp_path: Path) -> None:
    found = sweep(tmp_path, rules=[{"do": "wrong", "on": "verify", "variant": "fused"}])
    assert {variant for variant, _ in found.measured} == {"baseline"}
    for result in found.results.values():
        if result.cell.variant == "fused":
            assert result.status is Status.INVALID
            assert result.reason == "wrong answers: tokens differ at position 3"
            assert result.verdict is not None
            assert math.isnan(result.verdict.kl_mean)
            assert not result.samples


@pytest.mark.parametrize(
    ("rule", "status", "reason"),
    [
        ({"do": "oom", "on": "load"}, Status.OOM, "could not load: as the rules say: oom"),
        ({"do": "error", "on": "load"}, Status.ERROR, "could not load: as the rules say: error"),
        ({"do": "oom", "on": "verify"}, Status.INVALID, "no verdict: as the rules say: oom"),
        ({"do": "exit", "on": "load"}, Status.ERROR, "could not load: the worker exited with code 3: RuntimeError: .*"),
        ({"do": "hang", "on": "verify"}, Status.TIMEOUT, "no verdict: killed after 2 s without an answer"),
    ],
)
def test_a_variant_that_cannot_be_loaded_costs_its_cells_only(
    tmp_path: Path, rule: dict[str, str], status: Status, reason: str
) -> None:
    timeout = ["protocol.load_timeout_s=2"] if rule["do"] == "hang" else []
    found = sweep(tmp_path, *timeout, rules=[{**rule, "variant": "fused"}])
    assert found.code == 0
    for result in found.results.values():
        if result.cell.variant == "fused":
            assert result.status is status
            assert re.fullmatch(reason, result.reason)
        else:
            assert result.status is Status.OK


def test_a_variant_that_a_workload_leaves_out_has_rows_that_say_why(tmp_path: Path) -> None:
    """Its worker is not even started where nothing else is asked of it."""
    rules = [{"do": "exit", "on": "load", "variant": "fused"}]
    found = sweep(tmp_path, "workload.decode.skip.fused='it takes minutes'", rules=rules)
    for result in found.results.values():
        left_out = result.cell.variant == "fused"
        assert result.status is (Status.SKIPPED if left_out else Status.OK)
        assert result.reason == ("it takes minutes" if left_out else "")
    assert found.code == 0


def test_a_load_that_fails_once_is_tried_again(tmp_path: Path) -> None:
    found = sweep(tmp_path, rules=[{"do": "kill", "on": "load", "variant": "fused", "times": 1}])
    assert set(found.statuses().values()) == OK


def test_bad_input_that_only_loading_can_tell_ends_the_sweep(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tiny, fused: as the rules say: user \(nothing was measured\)"):
        sweep(tmp_path, rules=[{"do": "user", "on": "load", "variant": "fused"}])
    assert not list(tmp_path.glob("results/quick/*"))


def test_a_sweep_without_one_good_cell_says_so(tmp_path: Path) -> None:
    assert sweep(tmp_path, rules=[{"do": "error", "on": "load"}]).code == 1


def test_a_full_disk_ends_the_sweep_and_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0
    write_through = durable._write_through

    def fill_up(path: Path, data: bytes) -> None:
        nonlocal written
        written += "cells" in path.parts
        if written > 5:
            raise OSError(28, os.strerror(28))
        write_through(path, data)

    monkeypatch.setattr(durable, "_write_through", fill_up)
    with pytest.raises(UserError, match=r"no space left in the results folder; make room \(every finished .* resume="):
        sweep(tmp_path)
    monkeypatch.undo()
    assert len(outcome(tmp_path).results) == 5
    found = sweep(tmp_path, "resume=latest")
    assert len(found.results) == NUM_CELLS
    assert set(found.statuses().values()) == OK


def test_interrupting_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json = durable.write_json
    finished = 0

    def interrupt_after(path: Path, payload: object, indent: int | None = None) -> None:
        nonlocal finished
        write_json(path, payload, indent)
        finished += "cells" in path.parts
        if finished == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("experiments.store.write_json", interrupt_after)
    assert sweep(tmp_path).code == 130
    monkeypatch.undo()
    said = capsys.readouterr().err
    stopped = outcome(tmp_path)
    assert len(stopped.results) == 5
    assert said.strip().endswith(f"resume={stopped.path.name}")
    found = sweep(tmp_path, f"resume={stopped.path.name}")
    assert found.path == stopped.path
    assert set(found.statuses().values()) == OK
    # Each cell was asked for once over both sweeps, but for the half of a pair: the other half is of another sitting.
    half = stopped.measured[-1][1]
    assert Counter(cell for _, cell in found.measured) == Counter([*found.results, half])


def test_what_is_left_of_a_torn_round_is_gone_before_its_other_half_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two once more, the round must not look whole."""
    first = sweep(tmp_path)
    lost, left = (cell for _, cell in first.measured[:2])
    (first.path / "cells" / f"{lost}.json").unlink()
    end = Display.end

    def interrupt(display: Display, result: CellResult, took_s: float) -> None:
        end(display, result, took_s)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Display, "end", interrupt)
    assert sweep(tmp_path, "resume=latest").code == 130
    monkeypatch.undo()
    assert first.results.keys() - outcome(tmp_path).results.keys() == {left}
    found = sweep(tmp_path, "resume=latest")
    assert [cell for _, cell in found.measured[NUM_CELLS:]] == [lost, lost, left]


def test_workers_load_side_by_side_on_many_cores_and_all_are_ended_by_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    many_cores = Environment("3.12", "Linux", "cpu", 8, None, {"torch": "2.13.0"})
    monkeypatch.setattr("experiments.sweep.machine", lambda: many_cores)
    started: list[WorkerProcess] = []

    class Counted(WorkerProcess):
        def ask(self, *asked: Any) -> Answer:
            started.append(self)
            if len(started) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return super().ask(*asked)

    monkeypatch.setattr("experiments.pool.WorkerProcess", Counted)
    start = time.monotonic()
    asked = arguments(tmp_path)
    assert run_sweep(compose(asked), asked, worker_command(tmp_path, [{"do": "hang", "on": "load"}])) == 130
    assert time.monotonic() - start < 60
    assert "stopped; nothing was measured" in capsys.readouterr().err
    for worker in started:
        with pytest.raises(ProcessLookupError):
            os.kill(worker.pid, 0)


@pytest.mark.parametrize("do", ["oom", "error", "kill"])
def test_a_variant_that_did_not_load_may_after_a_resume(tmp_path: Path, do: str) -> None:
    """What it failed of is no cell's size, and no cell's crash."""
    rounds = "protocol.rounds=3"
    found = sweep(tmp_path, rounds, rules=[{"do": do, "on": "load", "variant": "fused"}])
    for file in (found.path / "cells").glob("*.r02.json"):
        file.unlink()
    found = sweep(tmp_path, rounds, "resume=latest")
    assert {result.status for result in found.results.values() if result.cell.round == 2} == OK


def test_resume_does_not_repeat_verdicts_or_failures(tmp_path: Path) -> None:
    rules = [
        {"do": "oom", "on": "measure", "variant": "fused", "batch": 1, "length": 8},
        {"do": "wrong", "on": "verify", "variant": "folded"},
    ]
    listed = "variants=[baseline,folded,fused]"
    first = sweep(tmp_path, listed, rules=rules)
    for name in ("tiny.decode.b2.l16.fused.r01", "tiny.decode.b2.l16.folded.r01", "tiny.decode.b1.l8.baseline.r00"):
        (first.path / "cells" / f"{name}.json").unlink()
    found = sweep(tmp_path, listed, "resume=latest", rules=rules)
    assert found.results["tiny.decode.b2.l16.fused.r01"].status is Status.SKIPPED
    assert found.results["tiny.decode.b2.l16.folded.r01"].status is Status.INVALID
    assert found.results["tiny.decode.b1.l8.baseline.r00"].status is Status.OK
    # The rounds of these three, whole; only the size that memory ran out at is tried again.
    again = {"tiny.decode.b1.l8.baseline.r00", "tiny.decode.b1.l8.fused.r00", "tiny.decode.b2.l16.baseline.r01"}
    assert {cell for _, cell in found.measured[len(first.measured) :]} == again


def test_a_damaged_cell_is_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = sweep(tmp_path)
    file = first.path / "cells" / "tiny.decode.b1.l8.fused.r01.json"
    file.write_bytes(file.read_bytes()[:40])
    found = sweep(tmp_path, "resume=latest")
    assert f"warning: {file.name}: truncated" in capsys.readouterr().out
    assert len(found.results) == NUM_CELLS
    assert not found.damaged


def test_other_weights_in_one_run_are_refused(tmp_path: Path) -> None:
    first = sweep(tmp_path)
    (first.path / "cells" / "tiny.decode.b1.l8.fused.r01.json").unlink()
    script = (tmp_path / "other_worker.py", Path("tests/experiments/fake_worker.py").read_text())
    script[0].write_text(script[1].replace('"0123"', '"4567"'))
    command = worker_command(tmp_path, [])
    asked = arguments(tmp_path, "resume=latest")
    with pytest.raises(UserError, match="loaded tiny with weights 4567, this run began with 0123"):
        run_sweep(compose(asked), asked, [*command[:2], str(script[0]), command[3]])


def test_the_time_budget_ends_whole_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that moves by a second whenever it is read: a round of 8 cells takes 17 or so.
    monkeypatch.setattr("experiments.sweep.time", SimpleNamespace(monotonic=itertools.count().__next__))
    asked = ("protocol.rounds=5", "protocol.time_budget_s=40")
    found = sweep(tmp_path, *asked)
    by_round = [{c.status for c in found.results.values() if c.cell.round == r} for r in range(5)]
    assert by_round == [OK, OK, OK, {Status.SKIPPED}, {Status.SKIPPED}]
    assert found.results["tiny.decode.b1.l8.fused.r04"].reason == OUT_OF_TIME
    # Going on later gives them another chance.
    assert set(sweep(tmp_path, *asked, "resume=latest").statuses().values()) == OK


def test_workers_are_replaced_after_so_many_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = sweep(tmp_path, "protocol.rounds=5", "protocol.restart_rounds=2")
    assert set(found.statuses().values()) == OK
    said = capsys.readouterr().out
    assert said.count("loading tiny, fused") == said.count("loading tiny, baseline") == 3
    # Their verdicts were known.
    assert said.count("checking the answers of tiny, fused") == 1


def test_one_process_at_a_time_where_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu("Small GPU", "1", 8 << 30, 1)
    machine = Environment("3.12", "Linux", "cpu", 2, gpu, {"torch": "2.13.0"})
    monkeypatch.setattr("experiments.sweep.machine", lambda: machine)
    asked = ("models=qwen3-0.6b", "device=cuda")
    assert prepare(compose(arguments(tmp_path, *asked))).plan.models[0].by_process
    found = sweep(tmp_path, *asked)
    assert set(found.statuses().values()) == OK
    assert found.manifest.plan.by_process == ("qwen3-0.6b",)
    variants = [variant for variant, _ in found.measured]
    assert [variants[i : i + 4] for i in range(0, 16, 4)] in (
        [[a] * 4, [b] * 4, [c] * 4, [d] * 4]
        for a, b, c, d in (
            ("baseline", "fused", "fused", "baseline"),
            ("baseline", "fused", "baseline", "fused"),
            ("fused", "baseline", "baseline", "fused"),
            ("fused", "baseline", "fused", "baseline"),
        )
    )


def test_two_sweeps_into_one_folder_do_not_mix(tmp_path: Path) -> None:
    first, second = sweep(tmp_path), sweep(tmp_path)
    assert first.path != second.path
    assert len(outcome(tmp_path).results) == NUM_CELLS
    assert len(list((first.path / "cells").iterdir())) == NUM_CELLS
