"""The commands are found, helped with, and fail in one line."""

import ast
import importlib.util
import shlex
import subprocess
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from experiments import cli, command_line
from experiments.compose import compose
from experiments.environment import ROOT
from experiments.errors import UserError


def test_every_command_is_a_module_with_a_parse_and_a_main() -> None:
    for name in cli.COMMANDS:
        spec = importlib.util.find_spec(cli.module_of(name))
        assert spec is not None
        assert spec.origin is not None
        tree = ast.parse(Path(spec.origin).read_text())
        assert {"parse", "main"} <= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_usage_lists_every_command(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in cli.COMMANDS)


def test_a_terminal_without_our_characters_ends_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    written = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(written, "ascii"))
    assert command_line.run_command(lambda: print("1.05\N{MULTIPLICATION SIGN}") or 0) == 0
    assert written.getvalue() == b"1.05?\n"


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["swep"]) == 2
    said = capsys.readouterr().err
    assert said == "fusebench: there is no command 'swep'; did you mean 'sweep'? (see --help)\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("fusebench ")


def test_sweep_help_lists_keys_and_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sweep", "--help"]) == 0
    printed = capsys.readouterr().out
    shown = ("experiment: aa, ablation, batches, demo, headline", "variant: baseline", "batches: null")
    assert all(text in printed for text in shown)


def test_cfg_job_prints_what_composes_to_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sweep", "experiment=headline", "--cfg", "job", "seed=3"]) == 0
    printed = OmegaConf.create(capsys.readouterr().out)
    config = compose(["experiment=headline", "seed=3"])
    assert printed.seed == 3
    assert [variant.name for variant in printed.variants] == [variant.name for variant in config.variants]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["experiment=demo", "bathces=1"], "bathces is not a key of an experiment; did you mean 'batches'?"),
        (["--cfg"], "--cfg takes one word: job"),
        (["experiment=demo", "variants=[fused]"], "variants=['fused'] lacks 'baseline'"),
        (["--dry-run"], "'--dry-run' is not of the form key=value"),
        (["experiment=quick", "resume=latest", "results_dir=nowhere"], "nowhere/quick has no runs to resume"),
    ],
)
def test_bad_input_is_one_line_and_two(
    capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    assert cli.main(["sweep", *arguments]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("fusebench: ")
    assert said.err.count("\n") == 1
    assert complaint in said.err
    assert not said.out


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [(UserError("two\nlines"), 2, "fusebench: two lines\n"), (KeyboardInterrupt(), 130, "fusebench: interrupted\n")],
)
def test_errors_become_exit_codes(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, text: str
) -> None:
    def fail() -> int:
        raise error

    assert command_line.run_command(fail) == code
    assert capsys.readouterr().err == text


def test_interrupted_while_a_command_is_imported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.importlib, "import_module", interrupt)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "fusebench: interrupted\n"


@pytest.mark.parametrize("module", ["experiments", "experiments.sweep", "experiments.doctor", "experiments.kernels"])
def test_commands_run_as_modules_from_anywhere(tmp_path: Path, module: str) -> None:
    command = [sys.executable, "-m", module, "--help"]
    there = {"cwd": tmp_path, "env": {"PYTHONPATH": str(ROOT)}}
    done = subprocess.run(command, **there, capture_output=True, text=True, check=True)
    assert "fusebench" in done.stdout
    assert not list(tmp_path.iterdir())


def test_the_harness_loads_no_engine() -> None:
    program = (
        "import sys\nfrom experiments import cli\n"
        "cli.main(['sweep', 'experiment=demo', 'dry_run=true']); cli.main(['doctor'])\n"
        "heavy = {'torch', 'triton', 'transformers', 'engine', 'variants'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("python -m experiments sweep experiment=headline dry_run=true device=cpu | head -1", 1),
        # Nobody is there to read when help is printed.
        ("python -m experiments --help | true", 0),
        ("python -m experiments.calibrate --help | true", 0),
    ],
)
def test_a_closed_pipe_ends_quietly(command: str, shown: int) -> None:
    command = command.replace("python", shlex.quote(sys.executable))
    done = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.count("\n") == shown
    assert done.returncode in (0, command_line.NOBODY_READS)
    assert not done.stderr
