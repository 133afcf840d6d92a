"""What every command has in common: help, exit codes, and `--cfg job` for those that compose an experiment."""

import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.resources import files
from io import TextIOWrapper
from types import FrameType

from experiments.compose import compose, names
from experiments.config import ExperimentConfig
from experiments.errors import UserError
from experiments.validate_inputs import check

BAD_INPUT = 2
INTERRUPTED = 130
NOBODY_READS = 141


def run_command(command: Callable[[], int]) -> int:
    """The command's exit code; a UserError is one line and 2, Ctrl-C and SIGTERM are 130."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    if isinstance(sys.stdout, TextIOWrapper):
        # A terminal that has no × shows a question mark; that ends no sweep.
        sys.stdout.reconfigure(errors="replace")
    try:
        code = command()
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"fusebench: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("fusebench: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output, `head` for instance, has had enough; Python must not try to flush to it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOBODY_READS
    finally:
        signal.signal(signal.SIGTERM, before)


def run_or_help(argv: Sequence[str] | None, usage: str | None, command: Callable[[list[str]], int]) -> int:
    """`run_command` of the arguments, those of this process unless given; the usage instead where `--help` is there."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        if not _asks_for_help(arguments):
            return command(arguments)
        print((usage or "").strip())
        return 0

    return run_command(run)


def _asks_for_help(arguments: Sequence[str]) -> bool:
    return bool({"-h", "--help"} & set(arguments))


def composed(arguments: Sequence[str], usage: str) -> ExperimentConfig | None:
    """The experiment asked for, checked; None after `--help` or `--cfg job`, which are answered here."""
    arguments = list(arguments)
    if _asks_for_help(arguments):
        print(help_text(usage))
        return None
    show_config = False
    if "--cfg" in arguments:
        at = arguments.index("--cfg")
        if arguments[at + 1 : at + 2] not in (["job"], ["all"]):
            raise UserError("--cfg takes one word: job")
        del arguments[at : at + 2]
        show_config = True
    config = compose(arguments)
    if show_config:
        print(as_yaml(config), end="")
        return None
    check(config)
    return config


def help_text(usage: str) -> str:
    """The command's own words, every key with its default, and every name that a key can take."""
    keys = (files("configs") / "config.yaml").read_text(encoding="utf-8")
    groups = ("experiment", "model", "variant", "workload", "protocol", "cluster")
    known = [f"{group}: {', '.join(names(group))}" for group in groups]
    return "\n".join([usage.strip(), "", *known, "", "Keys and defaults (configs/config.yaml):", "", keys.rstrip()])


def as_yaml(config: ExperimentConfig) -> str:
    """The composed experiment, as `--cfg job` prints it."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
