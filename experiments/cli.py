"""`fusebench COMMAND [arguments]`: each command is a module, imported only when it is asked for."""

import importlib
import sys
from collections.abc import Sequence

from experiments.command_line import run_command
from experiments.compose import suggest
from experiments.environment import package_version

COMMANDS = {
    "sweep": "plan, measure interleaved, keep every cell; dry_run=true prints the plan, resume=RUN_ID goes on",
    "trace": "capture the same cells under a profiler, and keep what each kernel took",
    "report": "make the report of a run: pages, tables, figures, summary.json",
    "compare": "hold a run against another, or a variant against another: exit code 1 on a regression",
    "kernels": "measure one kernel at a time against what it replaces and the roofline",
    "tune": "search tiles for the fused linear layers on this GPU, and where fusing pays",
    "validate": "hold kernels and variants to every numerics gate, and show the figures",
    "sanitize": "watch every kernel under compute-sanitizer",
    "traffic": "the same traffic through several engines' schedulers and block managers, without a model",
    "generate": "run the engine on a prompt, streamed, with its speed",
    "fetch": "fetch a real model into the cache",
    "calibrate": "count how often the analysis is right, on sweeps with a known truth",
    "doctor": "say what this machine has and lacks, and how to mend it",
}
# Those that are packages; of the others each is one module.
PACKAGES = ("trace", "kernels", "traffic")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> int:
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help", "help"):
        print(usage())
        return 0
    if command == "--version":
        print(f"fusebench {package_version('fusebench') or '(not installed)'}")
        return 0
    if command not in COMMANDS:
        print(f"fusebench: there is no command {command!r}{suggest(command, COMMANDS)} (see --help)", file=sys.stderr)
        return 2
    code: int = importlib.import_module(module_of(command)).main(arguments[1:])
    return code


def module_of(command: str) -> str:
    """The module that has the command's `main`, and the `parse` of its arguments."""
    return f"experiments.{command}" + ".command" * (command in PACKAGES)


def usage() -> str:
    """All commands, one line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(["fusebench COMMAND [key=value ...]", "", *lines, "", "fusebench COMMAND --help says more."])
