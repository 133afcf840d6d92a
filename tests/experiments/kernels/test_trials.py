"""Choices in words, and steps and prefills timed with them in turns; here with the twins of the kernels."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.errors import UserError
from experiments.kernel_records import new_stamp
from experiments.kernels import trials
from experiments.kernels.trial_words import trial_in_words
from experiments.kernels.trials import Place, Times, compare, main, parse
from experiments.models import find_model
from variants.kernels.attention_cut import Cut
from variants.kernels.tile_table import Trial, on_trial
from variants.kernels.tiles import Tile

SIZES = find_model("qwen3-0.6b").sizes
PLACE = Place("tiny", 2, "decode", 2, 40)


def test_a_choice_in_words_is_a_trial() -> None:
    words = "qkv:held-16x16x1024-4-1+down:skinny-8x32x256-2-5-4+gate_up:off+attention:hopper-2x4-1+whole_heads:on"
    assert trial_in_words(words, SIZES) == Trial(
        tiles={
            "norm_linear 4096x1024": Tile("held", 16, 16, 1024, 4, 1),
            "linear_add 1024x3072": Tile("skinny", 8, 32, 256, 2, 5, 4),
        },
        fused={
            "norm_linear 4096x1024": True,
            "linear_add 1024x3072": True,
            "gate_up_silu 6144x1024": False,
            "attention": True,
            "whole_heads": True,
        },
        cut=Cut(2, stages=4, ahead=1, hopper=True),
    )
    assert trial_in_words("attention:2x128-8-1", SIZES).cut == Cut(2, 128, 8, 1)
    assert trial_in_words("attention:off", SIZES) == Trial(fused={"attention": False})
    for word, parts, dependent in (("-dependent", 1, True), ("-3-dependent", 3, True), ("-3", 3, False)):
        [tile] = trial_in_words(f"o:wide-64x128x64-8-3{word}", SIZES).tiles.values()
        assert tile == Tile("wide", 64, 128, 64, 8, 3, parts, dependent)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["models=[tiny]"], r"give points=\[\[BATCH,CONTEXT\],...\] or prefills"),
        (["points=[[1]]"], "is no batch and its context"),
        (["prefills=[0]"], "must be at least 1"),
        (["models=[tiny]", "points=[[1,8],[1,4000]]"], "4,103 tokens, .* do not fit tiny's 4,096 positions"),
        (["models=[tiny]", "prefills=[64,4096]"], "4,097 tokens, .* do not fit tiny's 4,096 positions"),
        (["points=[[1,8]]", "choices=[head:on]"], "'head:on' is no SITE:HOW; sites are qkv"),
        (["points=[[1,8]]", "choices=[qkv:held]"], "'qkv:held' is neither on nor off nor a tile"),
        (["points=[[1,8]]", "choices=[attention:0x128-8-1]"], "'attention:0x128-8-1' is neither off nor a cut"),
        (["points=[[1,8]]", "choices=[attention:2x100-8-1]"], "has tokens or warps that are no power of two"),
        (["points=[[1,8]]", "choices=[o:skinny-8x16x64-4-2-dependent]"], "that are not wide"),
        (["points=[[1,8]]", "choices=[lm_head:wide-64x64x64-4-3-dependent]"], "the head's tiles"),
        (["points=[[1,8]]", "choices=[o:on+o:off]"], "says twice how o is to run"),
        (["points=[[1,8]]", "choices=[attention:3]"], "'attention:3' is neither off nor a cut"),
    ],
)
def test_what_is_no_choice_is_refused_by_its_name(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(arguments)


class Recorded:
    """Counts, and cannot run one of the choices."""

    def __init__(self) -> None:
        self.seen: list[Trial] = []

    def time_us(self, trial: Trial) -> list[float]:
        self.seen.append(trial)
        if trial.cut:
            raise ValueError("no room for this cut")
        return [1.0, float(len(self.seen)), 9.0]


def test_choices_take_turns_there_and_back_and_what_fails_says_why_once() -> None:
    own, off, cut = Trial(), Trial(fused={"attention": False}), Trial(cut=Cut(2))
    bench = Recorded()
    times = compare(bench, PLACE, {"own": own, "off": off, "cut": cut}, 3)
    assert bench.seen == [own, off, cut, off, own, own, off]
    assert times == Times(
        PLACE, {"own": [1.0, 5.0, 6.0], "off": [2.0, 4.0, 7.0]}, {"cut": "ValueError: no room for this cut"}
    )


def test_a_place_that_cannot_be_written_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trials, "compare", pytest.fail)
    assert main(["models=[tiny]", "prefills=[70]", f"out={tmp_path}"]) == 2
    assert f"out={tmp_path} cannot be written" in capsys.readouterr().err


def test_steps_and_prefills_are_timed_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trials, "PREFILLS", 2)
    monkeypatch.setattr(trials, "resolve_device", lambda *_: "cpu")
    seen = iter((0, 2))
    monkeypatch.setattr(trials, "others_on_gpu", lambda device: next(seen))
    out = tmp_path / "new" / "trials.json"
    arguments = ["models=[tiny]", "layers=1", "points=[[2,40]]", "prefills=[70]", "choices=[down:off]", "rounds=1"]
    assert main([*arguments, f"out={out}"]) == 0
    assert on_trial() == Trial()
    record = json.loads(out.read_text())
    assert record["by"].startswith("`python -m experiments.kernels.trials 'models=[tiny]' layers=1")
    kept = [(row["kind"], row["batch"], row["length"], sorted(row["us"]), row["failed"]) for row in record["trials"]]
    assert kept == [("decode", 2, 40, ["down:off", "own"], {}), ("prefill", 1, 70, ["down:off", "own"], {})]
    assert all(min(us) > 0 for row in record["trials"] for us in row["us"].values())
    assert [row["other_processes"] for row in record["trials"]] == [0, 2]
    printed = capsys.readouterr().out
    assert "tiny, 1 layers, prefill 1 x 70: own" in printed
    assert printed.count("other processes on the GPU: 2") == 1
    assert printed.count("(twins, which choose nothing)") == 2
    assert not re.search(r"\d+x", printed)  # No speed is claimed from a twin.


def test_a_shared_gpu_is_told_and_kept(tmp_path: Path) -> None:
    times = Times(PLACE, {"own": [3.0]}, {}, other_processes=2)
    assert "other processes on the GPU: 2" in trials._told(times, "cuda")
    assert "other processes" not in trials._told(replace(times, other_processes=0), "cuda")
    trials._write(tmp_path / "out.json", new_stamp("trials", "cpu"), [times])
    [row] = json.loads((tmp_path / "out.json").read_text())["trials"]
    assert row == vars(PLACE) | {"us": {"own": [3.0]}, "failed": {}, "other_processes": 2}


def test_on_a_gpu_each_choice_has_its_ratio() -> None:
    told = trials._told(Times(PLACE, {"own": [3.0], "off": [2.0]}, {}), "cuda")
    assert "own 3.0 us\n  off: 2.0 us, 1.500x" in told
