"""The whole report: reproducible bytes, a page that stands alone, honest pages for broken runs, size and speed."""

import dataclasses
import errno
import hashlib
import itertools
import json
import math
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest

from experiments.errors import UserError
from experiments.records import CellResult, Status, Verdict
from experiments.reporting.files import build, write
from experiments.reporting.run import Run, assemble
from experiments.reporting.summary import SCHEMA_FILE
from tests.experiments.reporting.synthetic import Synthetic, ledger

ROOT = Path(__file__).resolve().parents[3]
SMALL = {"models": ("qwen3-0.6b",), "workloads": ("decode",), "batches": (1, 8), "lengths": (128, 1024)}
ONE_POINT = SMALL | {"batches": (1,), "lengths": (128,)}
VOID = {"meta", "link", "input", "br"}
# Their end tags may be left out in HTML.
OPTIONAL = {"tr", "td", "li", "dt", "dd", "p"}


class Page(HTMLParser):
    """Collects what a page refers to, and whether its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.open: list[str] = []
        self.headings: list[int] = []
        self.unnamed_charts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [values["id"]] if values.get("id") else []
        self.targets += [v for k, v in attrs if k in ("href", "src") and v]
        if tag == "svg" and not (values.get("aria-label") or values.get("aria-hidden")):
            self.unnamed_charts += 1
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID | OPTIONAL:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID | OPTIONAL:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID | OPTIONAL:
            assert self.open.pop() == tag


def parse(files: dict[str, bytes]) -> Page:
    page = Page()
    page.feed(files["index.html"].decode())
    page.close()
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return build(Synthetic(**SMALL).run(ledgers=[ledger("baseline"), ledger("fused")]))


def test_the_page_stands_alone(files: dict[str, bytes]) -> None:
    page, text = parse(files), files["index.html"].decode()
    assert not [t for t in page.targets if re.match(r"https?:|//|/", t)]
    assert "@import" not in text
    assert "url(" not in text
    assert len(page.ids) == len(set(page.ids))
    assert page.unnamed_charts == 0


def test_every_link_of_the_page_leads_somewhere(files: dict[str, bytes]) -> None:
    page = parse(files)
    relative = {t for t in page.targets if not t.startswith(("#", "data:"))}
    assert relative <= files.keys()
    assert {t[1:] for t in page.targets if t.startswith("#")} <= set(page.ids)
    csvs = {name for name in files if name.endswith(".csv")}
    assert csvs <= relative


def test_headings_never_skip_a_level(files: dict[str, bytes]) -> None:
    levels = parse(files).headings
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_every_mark_says_value_interval_and_n(files: dict[str, bytes]) -> None:
    text = files["index.html"].decode()
    titles = re.findall(r'<g class="m"><title>([^<]*fused, batch 8, length 1024[^<]*)</title>', text)
    assert titles
    assert all(re.search(r"step_ms [\d.]+ ms \([\d.]+ to [\d.]+\), n=5", t) for t in titles if "step_ms" in t)


@pytest.mark.parametrize("where", ["index.html", "report.md"])
def test_the_first_screen_says_what_was_asked_found_checked_and_where(files: dict[str, bytes], where: str) -> None:
    start = files[where].decode().split("How much faster?</h2>" if where == "index.html" else "\n## ")[0]
    for words in (
        "How much faster does the whole engine get",
        "fused: 4 faster, 0 same, 0 slower, 0 unresolved",
        "top-1 agreement with the fp32 reference at least 99.6 %",
        "3.90e-03",
        "NVIDIA H200",
        "0a1b2c3d4e5f",
        "80 planned, 80 ok",
    ):
        assert words in start
    assert "Twin" not in start


def test_summary_holds_to_its_schema(files: dict[str, bytes]) -> None:
    summary = json.loads(files["summary.json"])
    jsonschema.Draft202012Validator.check_schema(json.loads(SCHEMA_FILE.read_text()))
    jsonschema.validate(summary, json.loads(SCHEMA_FILE.read_text()))
    assert summary["ledger"]["planned"] == 80
    assert len([r for r in summary["rows"] if r["metric"] == "step_ms"]) == 16


def test_the_same_results_in_any_order_give_the_same_bytes(files: dict[str, bytes]) -> None:
    synthetic = Synthetic(**SMALL)
    results = synthetic.results()
    random.Random(5).shuffle(results)
    again = build(assemble(synthetic.manifest(), results, [], [ledger("fused"), ledger("baseline")]))
    assert again == files


def test_bytes_depend_on_no_clock_zone_locale_or_hash_seed(files: dict[str, bytes]) -> None:
    code = (
        "import hashlib\n"
        "from experiments.reporting.files import build\n"
        "from tests.experiments.reporting.synthetic import Synthetic, ledger\n"
        f"files = build(Synthetic(**{SMALL!r}).run(ledgers=[ledger('baseline'), ledger('fused')]))\n"
        "print(hashlib.sha256(repr(files).encode()).hexdigest())"
    )
    elsewhere = {"TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "77", "LC_ALL": "C", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | elsewhere, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == hashlib.sha256(repr(files).encode()).hexdigest()


def test_no_machine_path_and_no_date_of_making_gets_in(files: dict[str, bytes]) -> None:
    for name, data in files.items():
        assert str(ROOT).encode() not in data, name
        assert time.strftime("%Y-%m-%d").encode() not in data, name


def test_making_it_needs_no_torch() -> None:
    code = (
        "import sys\nfrom experiments.reporting.files import build\nfrom experiments.report import main\n"
        "from tests.experiments.reporting.synthetic import Synthetic\n"
        "build(Synthetic(models=('qwen3-0.6b',), workloads=('decode',), batches=(1,), lengths=(128,)).run())\n"
        "print(sorted({'torch', 'triton', 'engine', 'variants'} & {m.split('.')[0] for m in sys.modules}))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def _change(**changes: object) -> Callable[[CellResult], CellResult]:
    return lambda r: dataclasses.replace(r, **changes)  # type: ignore[arg-type]


def _nan(r: CellResult) -> CellResult:
    return dataclasses.replace(r, samples={name: [math.nan, math.inf, *v] for name, v in r.samples.items()})


def _wrong(r: CellResult) -> CellResult:
    bad = Verdict(False, "top-1 agreement 61.2 % is under 99 %", 256, 0.612, 1.2, 9.1, 3, 4, 0.5)
    wrong = r.cell.variant == "norm_linear"
    return dataclasses.replace(r, status=Status.INVALID, reason=bad.reason, samples={}, verdict=bad) if wrong else r


def _unequal(r: CellResult) -> CellResult | None:
    return None if r.cell.variant == "fused" and (r.cell.point.batch == 8 or r.cell.round > 2) else r


def _hostile(r: CellResult) -> CellResult:
    reason = '<script>alert("x")</script> & |pipe| _under_ {brace} \\ 100 %'
    return dataclasses.replace(r, status=Status.ERROR, reason=reason, samples={}) if r.cell.round == 0 else r


BROKEN: dict[str, tuple[Callable[[], Run], list[str]]] = {
    "nothing at all": (lambda: Synthetic(models=()).run(), ["Nothing was measured", "0 planned"]),
    "planned only": (lambda: assemble(Synthetic(**SMALL).manifest(), []), ["80 planned, 0 ok, 80 skipped", "resume"]),
    "all failed": (
        lambda: Synthetic(**SMALL, mend=_change(status=Status.OOM, reason="boom", samples={}, kernels="")).run(),
        ["80 planned, 0 ok, 80 oom", "boom", "none of 4 points could be compared"],
    ),
    "baseline only": (
        lambda: Synthetic(**SMALL, variants=("baseline",)).run(),
        ["nothing to compare", "the only check passes", "none in this run"],
    ),
    "no baseline": (
        lambda: Synthetic(**SMALL, variants=("fused",)).run(),
        [
            "baseline is not in this run, so there is nothing to compare fused with",
            "none of 4 points could be compared",
            "0 unresolved",
        ],
    ),
    "one point": (
        lambda: Synthetic(**ONE_POINT, variants=("baseline", "norm_linear"), mend=_wrong).run(),
        ["none of 1 point could be compared"],
    ),
    "stored as ok": (
        lambda: Synthetic(**SMALL, mend=lambda r: dataclasses.replace(r, verdict=_wrong(r).verdict)).run(),
        ["wrong: norm_linear on qwen3-0.6b (top-1 agreement 61.2 % is under 99 %)", "60 ok, 20 invalid"],
    ),
    "not finite": (lambda: Synthetic(**SMALL, mend=_nan).run(), ["2 of 7 samples are not finite and positive"]),
    "wrong answers": (
        lambda: Synthetic(**SMALL, mend=_wrong).run(),
        ["wrong: norm_linear on qwen3-0.6b (top-1 agreement 61.2 % is under 99 %)", "20 invalid"],
    ),
    "unequal": (lambda: Synthetic(**SMALL, mend=_unequal).run(), ["2 of 4 points", "14 skipped"]),
    "one sample": (
        lambda: Synthetic(**SMALL, rounds=1, windows=1).run(),
        ["no interval: 1 round", "4 unresolved", "in the rounds that all of them have"],
    ),
    "damaged file": (
        lambda: Synthetic(**SMALL, rounds=1).run(problems=["a.json: truncated"]),
        ["1 problem in reading them", "a.json: truncated"],
    ),
    "unknown workload": (
        lambda: Synthetic(**(SMALL | {"workloads": ("mystery",)}), rounds=1).run(),
        ["workload mystery: no metric is registered for it", "16 planned, 16 ok"],
    ),
    "disturbed": (
        lambda: Synthetic(**SMALL, mend=_change(status=Status.INVALID, reason="a kernel was compiled")).run(),
        ["80 invalid", "a kernel was compiled", "all 4 checks pass"],
    ),
    "hostile text": (lambda: Synthetic(**SMALL, rounds=1, mend=_hostile).run(), ["alert("]),
    "twins": (
        lambda: Synthetic(**SMALL, rounds=3, kernels="twin", ceilings=False).run(),
        ["no speed is claimed", "twin timings, no claim", "fused (twin)", "no ceilings measured"],
    ),
    "no verdicts": (
        lambda: Synthetic(**SMALL, rounds=1, mend=_change(verdict=None)).run(),
        ["no verdict on its answers"],
    ),
    "empty ledger": (
        lambda: Synthetic(**SMALL, rounds=1).run(ledgers=[dataclasses.replace(ledger("fused"), steps=0, kernels=[])]),
        ["Traces"],
    ),
}


@pytest.mark.parametrize("case", sorted(BROKEN))
def test_a_broken_run_gives_an_honest_page(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is drawn by matplotlib here is drawn by other tests; these are about words and figures.
    monkeypatch.setattr("experiments.reporting.charts.paper.render", lambda figure: {})
    make, said = BROKEN[case]
    files = build(make())
    parse(files)
    jsonschema.validate(json.loads(files["summary.json"]), json.loads(SCHEMA_FILE.read_text()))
    for words in said:
        assert words in files["index.html"].decode().replace("\u00a0", " ")
        assert words in files["report.md"].decode()
    assert b"<script>alert" not in files["index.html"] + files["report.md"]
    assert not re.search(r"\bNone\b|Traceback|\binf\b", files["index.html"].decode())


@pytest.mark.parametrize("case", ["planned only", "all failed", "one sample", "empty ledger"])
def test_figures_of_a_broken_run_can_be_drawn(case: str) -> None:
    files = build(BROKEN[case][0]())
    assert all(data for data in files.values())


def test_ten_thousand_cells_and_twenty_ledgers_are_quick_and_small() -> None:
    synthetic = Synthetic(
        models=("qwen3-0.6b",),
        workloads=("decode",),
        batches=range(1, 41),
        lengths=range(64, 64 * 51, 64),
        variants=("baseline", "control", "compiled", "norm_linear", "fused"),
        rounds=1,
    )
    run = synthetic.run(ledgers=[ledger(v) for v in ("baseline", "fused") * 10])
    assert len(run.results) == 10_000
    start = time.process_time()
    files = build(run)
    assert time.process_time() - start < 30
    assert len(files["index.html"]) < 5_000_000


def test_writing_replaces_an_older_report_and_nothing_else(tmp_path: Path) -> None:
    write({"index.html": b"old", "figures/old.svg": b"x", "tables/t.csv": b"1"}, tmp_path)
    (tmp_path / "mine.txt").write_text("kept")
    write({"index.html": b"new", "tables/t.csv": b"1"}, tmp_path)
    left = {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {"index.html": b"new", "tables/t.csv": b"1", "mine.txt": b"kept"}


def test_two_reports_at_once_are_one_after_the_other(tmp_path: Path) -> None:
    reports = [{f"tables/{i}.csv": b"%d" % number for i in range(40)} for number in range(24)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, reports, itertools.repeat(tmp_path)))
    assert len({file.read_bytes() for file in (tmp_path / "tables").iterdir()}) == 1
    assert len(list((tmp_path / "tables").iterdir())) == 40


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        write({"index.html": b"x"}, tmp_path / "file")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="no space left for"):
        write({"index.html": b"x"}, tmp_path / "report")
    assert [path.name for path in (tmp_path / "report").rglob("*") if path.is_file()] == []
