"""What the documents show is true: links lead somewhere, commands are understood, generated tables are fresh."""

import itertools
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from experiments.cli import COMMANDS as FUSEBENCH_COMMANDS
from experiments.cli import module_of
from experiments.compose import compose, load_yaml, names
from experiments.models import find_model
from experiments.reporting.docs import stale_blocks
from experiments.validate_inputs import check
from tests.house.tree import CODE, ROOT, files

DOCUMENTS = [file for file in files(".md") if not file.is_relative_to(ROOT / "reports")]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(rf"`((?:{'|'.join((*CODE, 'configs', 'tests', 'docs'))})/[\w./-]+)`")
ASSIGNMENT = re.compile(r"[A-Z_]+=.*")
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
    """Every command shown parses as fusebench would, checks included; targets of make and steps of .ci/gpu exist."""
    words = shlex.split(line.removeprefix(".venv/bin/"))
    name, *arguments = itertools.dropwhile(ASSIGNMENT.fullmatch, words)
    if name == "make":
        plan = ["make", "--dry-run", *arguments]
        subprocess.run(plan, cwd=ROOT, check=True, capture_output=True)
    elif name == "fusebench":
        import_module(module_of(arguments[0])).parse(arguments[1:])
    elif name == ".ci/gpu":
        usage = (ROOT / name).read_text().partition("\n\n")[0].split()
        assert set(arguments) <= set(usage)
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


def first_column(document: str, title: str) -> list[str]:
    """The first word in monospace of each row of the table that has this title over its first column."""
    table = re.search(
        rf"^\| {title} \|[^\n]*\n\|[-|]+\|\n((?:\|[^\n]*\n)+)", (ROOT / document).read_text(), re.MULTILINE
    )
    assert table, f"{document} has no table of {title}"
    return re.findall(r"^\| `(\w+)[^`]*` \|", table[1], re.MULTILINE)


def test_tables_of_names_are_complete() -> None:
    """Every command, variant, workload and switch is in its table, and nothing else."""
    assert first_column("README.md", "command") == list(FUSEBENCH_COMMANDS)
    assert sorted(first_column("README.md", "variant")) == names("variant")
    assert sorted(first_column("README.md", "workload")) == names("workload")
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


PARTS = ["Overview", "Background", "Analysis and Findings", "Key Insights", "References"]
NUMBERED = sorted((ROOT / "docs").glob("[0-9][0-9]_*.md"))


@pytest.mark.parametrize("document", NUMBERED, ids=relative)
def test_numbered_documents_have_five_parts(document: Path) -> None:
    """In this order, none of them empty, and each document is in the index."""
    sections = re.split(r"^## (.+)$", prose(document), flags=re.MULTILINE)[1:]
    assert sections[::2] == PARTS
    assert all(body.strip() for body in sections[1::2])
    assert f"({document.name})" in (ROOT / "docs/README.md").read_text()


def test_all_ten_are_there() -> None:
    assert [int(document.name[:2]) for document in NUMBERED] == list(range(1, 11))


SNIPPETS = [
    document for document in DOCUMENTS if "```python\n" in document.read_text() and document != ROOT / "CONTRIBUTING.md"
]


@pytest.mark.parametrize("document", SNIPPETS, ids=relative)
def test_snippets_run(document: Path) -> None:
    """A document's Python blocks, one after the other; CONTRIBUTING's have a test of their own (test_recipes.py)."""
    code = "\n".join(body for kind, body in FENCE.findall(document.read_text()) if kind == "python")
    exec(compile(code, relative(document), "exec"), {"__name__": relative(document)})


def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    """As `make docs` builds it. Not quiet: --strict counts warnings on the logger that --quiet silences."""
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert "Three engines, one traffic" in (tmp_path / "site/02_memory_management/index.html").read_text()
    for page in ("CONTRIBUTING", "CHANGELOG"):
        assert (tmp_path / "site" / page / "index.html").is_file()


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
