"""What an engine did before its steps are timed: each stage does what its name says, and the rows tell."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine import Engine
from experiments.compose import compose
from experiments.measuring import graph_states
from experiments.measuring.graph_states import STAGES, Options, main, measure_states, parse
from experiments.measuring.offline import Requests, prepare
from tests.experiments.measuring.sessions import with_graphs

FEW = Options(model="tiny", variants=("fused",), batches=(1, 3), context=40, requests=4, windows=2)


def words(options: Options) -> list[str]:
    return [
        f"model={options.model}",
        f"variants=[{','.join(options.variants)}]",
        f"batches=[{','.join(map(str, options.batches))}]",
        f"context={options.context}",
        f"requests={options.requests}",
        f"windows={options.windows}",
    ]


def test_every_batch_is_timed_after_every_stage_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    happened: list[str] = []

    def noted(name: str) -> None:
        stage = STAGES[name]

        def note(engine: Engine, requests: Requests) -> None:
            assert not engine.has_work
            happened.append(name)
            stage(engine, requests)

        monkeypatch.setitem(STAGES, name, note)  # type: ignore[arg-type]

    for name in STAGES:
        noted(name)
    out = tmp_path / "states.json"
    assert main([*words(FEW), f"out={out}"]) == 0
    assert happened == list(STAGES)
    kept = json.loads(out.read_text())
    assert [(row["stage"], row["batch"]) for row in kept["rows"]] == [(name, n) for name in STAGES for n in (1, 3)]
    for row in kept["rows"]:
        assert row["variant"] == "fused"
        assert len(row["host_us"]) == FEW.windows
        assert min(row["host_us"]) > 0
    assert capsys.readouterr().out.count("us on the host") == len(kept["rows"])
    assert {key: kept[key] for key in ("model", "context", "requests", "same_ops")} == {
        "model": "tiny",
        "context": 40,
        "requests": 4,
        "same_ops": False,
    }


def test_prompts_run_the_operations_of_decode_steps_only_when_asked() -> None:
    [fused] = compose(["variants=[fused]"]).variants
    apart = graph_states._session(fused, FEW)
    same = graph_states._session(fused, Options(model="tiny", requests=4, same_ops=True))
    assert apart.variant.prompt_ops is not None
    assert same.variant.prompt_ops is None


def test_the_prompts_of_a_run_are_served_and_gone() -> None:
    [baseline] = compose(["variants=[baseline]"]).variants
    engine, requests = prepare(session := graph_states._session(baseline, FEW), session.request.points[0])
    STAGES["prompts"](engine, requests)
    assert engine.metrics.num_prefilled_tokens == sum(len(prompt) for prompt, _ in requests)
    assert not engine.has_work


@pytest.mark.parametrize(
    ("word", "mend"),
    [
        ("stages=[all,last]", "there is no 'last'"),
        ("windows=0", "windows=0 must be at least 1"),
        ("batches=[8,300]", "holds 1 to 256 sequences; raise requests"),
        ("batches=[0]", "holds 1 to 256"),
        ("batches=[]", "leaves nothing to time"),
        ("contexts=3", "unknown key 'contexts'"),
    ],
)
def test_what_cannot_be_timed_is_refused_before_anything_is_loaded(
    word: str, mend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(graph_states, "_session", pytest.fail)
    assert main([word]) == 2
    assert mend in capsys.readouterr().err


@pytest.mark.parametrize("context", [5000, 1500])
def test_a_context_without_room_is_refused_and_not_moved(context: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Beyond the engine's positions, and beyond its pages for three sequences."""
    assert main([*words(FEW), f"context={context}"]) == 2
    assert f"context={context}: 3 sequences of {context + 1 + graph_states.STEPS} tokens" in capsys.readouterr().err


def test_stages_are_taken_in_the_order_of_the_command() -> None:
    assert parse(["stages=[anew,alone]"]).stages == ("anew", "alone")


def test_what_was_timed_before_an_interruption_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(engine: Engine, requests: Requests) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(STAGES, "decodes", interrupt)  # type: ignore[arg-type]
    out = tmp_path / "states.json"
    assert main([*words(FEW), f"out={out}"]) != 0
    kept = json.loads(out.read_text())
    assert [(row["stage"], row["batch"]) for row in kept["rows"]] == [("alone", 1), ("alone", 3)]
    assert "experiments.measuring.graph_states model=tiny" in kept["by"]


def test_pages_hold_noise_before_the_first_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    smallest: list[float] = []

    def seen(engine: Engine, requests: Requests) -> None:
        smallest.extend(float(pages.std()) for cache in engine.runner.caches for pages in (cache.k, cache.v))

    monkeypatch.setitem(STAGES, "alone", seen)  # type: ignore[arg-type]
    [fused] = compose(["variants=[fused]"]).variants
    options = replace(FEW, stages=("alone",), batches=(1,), windows=1)
    assert len([*measure_states(graph_states._session(fused, options), options)]) == 1
    assert min(smallest) > 0.5


@pytest.mark.parametrize("replayed", [True, pytest.param(False, marks=pytest.mark.gpu)])
def test_stages_capture_what_they_say(replayed: bool) -> None:
    [fused] = compose(["variants=[fused]"]).variants
    options = replace(FEW, batches=(2,), windows=1)
    session = graph_states._session(fused, options)
    rows = {row.stage: row for row in measure_states(with_graphs(session) if replayed else session, options)}
    num_graphs = {stage: row.num_graphs for stage, row in rows.items()}
    assert num_graphs["alone"] == 1
    assert num_graphs["prompts"] >= num_graphs["decodes"] == num_graphs["anew"] > 1
    assert num_graphs["all"] == num_graphs["reversed"] > num_graphs["decodes"]
    assert replayed or all(len(row.device_us) == 1 and row.device_us[0] > 0 for row in rows.values())
