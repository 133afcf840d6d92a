"""What the documents show is true: links lead somewhere, commands are understood, generated tables are fresh."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from experiments.cli import COMMANDS as COMMAND_MODULES
from experiments.compose import compose, load_yaml, names
from experiments.models import find_model
from experiments.reporting.docs import stale_blocks
from experiments.trace.options import parse as trace_options
from experiments.validate_inputs import check
from tests.house.tree import CODE, ROOT, files

DOCUMENTS = [file for file in files(".md") if not file.is_relative_to(ROOT / "reports")]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(rf"`((?:{'|'.join((*CODE, 'configs', 'tests', 'docs'))})/[\w./-]+)`")
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
# Places that only one machine has. Taken apart so that this file does not hold them itself.
ELSEWHERE = re.compile(
    r"(?<![\w.])/(?:work|root|home|Users)/\w|\b(?:py" r"pi\.org|pythonhosted\.|debian\.org|npm" r"js\.)"
)
BINARY = {".png", ".pdf", ".ico", ".gz", ".xz"}


def relative(file: Path) -> str:
    """For test ids."""
    return file.relative_to(ROOT).as_posix()


def prose(document: Path) -> str:
    """A document without its code blocks."""
    return FENCE.sub("", document.read_text())


def anchors(document: Path) -> set[str]:
    """The anchors that a renderer gives a document's headings."""
    titles = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_links_and_paths_exist(document: Path) -> None:
    """Every relative link, its anchor, and every path in monospace."""
    text = prose(document)
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = document.parent / name if name else document
        assert there.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors(there), f"{target}: no such heading"
    new = re.findall(r"^`([^`]+)`[^\n]*:\n+```", document.read_text(), re.MULTILINE)
    missing = [path for path in PATH.findall(text) if not (ROOT / path).exists() and path not in new]
    assert not missing


def shell_lines(document: Path) -> list[str]:
    """The lines of a document's ```sh blocks, comments taken off."""
    blocks = [body for kind, body in FENCE.findall(document.read_text()) if kind == "sh"]
    lines = [line.partition(" #")[0].strip() for body in blocks for line in body.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


COMMANDS = [(document, line) for document in DOCUMENTS for line in shell_lines(document)]


@pytest.mark.parametrize(("document", "line"), COMMANDS, ids=[f"{relative(d)}: {line}" for d, line in COMMANDS])
def test_commands_are_understood(document: Path, line: str) -> None:
    """Every command shown parses: overrides compose and pass every check, targets of make exist."""
    name, *arguments = shlex.split(line.removeprefix(".venv/bin/"))
    if name == "make":
        plan = ["make", "--dry-run", *arguments]
        subprocess.run(plan, cwd=ROOT, check=True, capture_output=True)
    elif name == "fusebench":
        understand(arguments[0], arguments[1:])
    else:
        assert name in (
            "git",
            "cd",
            "ls",
            "export",
            "ruff",
            "mypy",
            "lint-imports",
            "pre-commit",
            "pytest",
            "python",
        ), line


def understand(command: str, arguments: list[str]) -> None:
    """Parse the arguments of a fusebench command as it would."""
    if command == "sweep":
        check(compose(arguments))
    elif command == "trace":
        check(compose(trace_options(arguments)[1]))
    elif command == "report":
        from experiments.report import parse

        parse(arguments)
    elif command == "compare":
        from experiments.compare import parse as parse_compare

        parse_compare(arguments)
    elif command == "generate":
        from experiments.generate import parse as parse_generate

        parse_generate(arguments)
    else:
        assert command == "doctor"
        assert not arguments


def first_column(document: str, title: str) -> list[str]:
    """The first word in monospace of each row of the table that has this title over its first column."""
    table = re.search(
        rf"^\| {title} \|[^\n]*\n\|[-|]+\|\n((?:\|[^\n]*\n)+)", (ROOT / document).read_text(), re.MULTILINE
    )
    assert table, f"{document} has no table of {title}"
    return re.findall(r"^\| `(\w+)[^`]*` \|", table[1], re.MULTILINE)


def test_tables_of_names_are_complete() -> None:
    """Every command, variant and switch is in its table, and nothing else."""
    assert first_column("README.md", "command") == list(COMMAND_MODULES)
    assert sorted(first_column("README.md", "variant")) == names("variant")
    switches = [switch for variant in names("variant") for switch in load_yaml("variant", variant).get("switches", {})]
    assert sorted(first_column("docs/06_fusion_design.md", "switch")) == sorted(switches)


def test_generated_blocks_are_fresh() -> None:
    """`fusebench report --docs` would change nothing."""
    assert stale_blocks() == []


@pytest.mark.parametrize("name", names("experiment"))
def test_every_experiment_composes(name: str) -> None:
    """And passes every check that needs no worker."""
    config = compose([f"experiment={name}"])
    check(config)
    assert config.name == name
    assert config.question.endswith("?")


@pytest.mark.parametrize("group", ["model", "variant", "workload", "protocol"])
def test_every_config_composes(group: str) -> None:
    """Each file of the group, chosen from the command line."""
    for name in names(group):
        chosen = {
            "model": f"models={name}",
            "variant": f"variants=[{','.join(dict.fromkeys(['baseline', name]))}]",
            "workload": f"workloads={name}",
            "protocol": f"protocol={name}",
        }
        overrides = [chosen[group]] + (["models=qwen3-0.6b"] if group == "workload" else [])
        check(compose(overrides))
        if group == "model":
            assert find_model(name).max_positions


def test_nothing_names_one_machine() -> None:
    """No absolute path of a machine and no registry's host in any file but the licence."""
    found = []
    for file in files():
        if file.suffix not in BINARY and file.name != "LICENSE":
            lines = file.read_text(errors="replace").splitlines()
            found += [
                f"{relative(file)}:{i}: {line.strip()[:120]}"
                for i, line in enumerate(lines, 1)
                if ELSEWHERE.search(line)
            ]
    assert not found
