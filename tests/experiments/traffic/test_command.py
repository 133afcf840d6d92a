"""`fusebench traffic`: what it prints and keeps, and how it refuses."""

from pathlib import Path

import pytest

from experiments.durable import read_json
from experiments.traffic import command
from experiments.traffic.command import main, parse
from experiments.traffic.requests import TRAFFICS


def test_a_run_is_printed_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["traffics=bench", f"results_dir={tmp_path}"]) == 0
    assert "256/256" in capsys.readouterr().out
    (path,) = (tmp_path / "traffic").glob("*/traffic.json")
    kept = read_json(path)
    (row,) = kept["rows"]
    assert (row["engine"], row["traffic"], row["answered"]) == ("ours", "bench", 256)
    assert row["computed_tokens"] == row["needed_tokens"]
    assert kept["traffics"] == {"bench": TRAFFICS["bench"]().description}
    assert kept["commit"]


def test_an_engine_that_cannot_be_had_is_said_and_is_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["engines=nano_vllm", f"nano_vllm_path={tmp_path}", f"results_dir={tmp_path}"]
    assert main(arguments) == 1
    assert "nano_vllm is left out: nano_vllm_path=" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(command, "drive", pytest.fail)
    assert main([f"results_dir={tmp_path / 'file'}"]) == 2
    assert f"cannot write {tmp_path / 'file'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("engine=ours", "unknown key 'engine'; did you mean 'engines'"),
        ("engines=[our]", "there is no 'our'; did you mean 'ours'? (there are ours, nano_vllm, vllm)"),
        ("traffics=[chatty]", "there is no 'chatty'; did you mean 'chat'? (there are bench, tight, chat, arrivals)"),
        ("engines=[nano_vllm]", "needs nano_vllm_path=FOLDER"),
        ("engines", "'engines' is not of the form key=value"),
    ],
)
def test_bad_input_is_one_line(argument: str, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([argument]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


def test_defaults_are_every_traffic_through_this_engine() -> None:
    assert parse([]).engines == ("ours",)
    assert parse([]).traffics == tuple(TRAFFICS)
