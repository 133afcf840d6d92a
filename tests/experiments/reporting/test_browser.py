"""The page in a real browser: no errors, no requests, and sorting, filtering, hovering, keys and theme that work."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from experiments.reporting.files import build, write
from tests.experiments.reporting.synthetic import Synthetic, ledger

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")

QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --enable-logging=stderr"
).split()

# Acts on the page as a reader would, and leaves what it saw in an attribute.
ACTS = """
<script>
const said = {};
const table = document.querySelector("#results tbody");
const column = (i) => [...table.rows].filter((r) => !r.hidden).map((r) => r.cells[i].firstChild.textContent);
const heads = [...document.querySelectorAll("#results th button")];
const at = heads.findIndex((h) => h.textContent === "Median");
heads[at].click(); said.up = column(at);
heads[at].click(); said.down = column(at);
said.sort = heads[at].parentNode.getAttribute("aria-sort");
const input = document.querySelector("#results input");
input.value = "fused 1,024"; input.dispatchEvent(new Event("input"));
said.filtered = column(4);
const mark = document.querySelector(".m");
mark.dispatchEvent(new PointerEvent("pointermove", {bubbles: true, clientX: 5, clientY: 5}));
said.tip = document.getElementById("tip").textContent;
const chart = document.querySelector("figure svg[tabindex]");
chart.focus();
document.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
document.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
said.key = document.getElementById("tip").textContent;
document.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape", bubbles: true}));
said.hidden = document.getElementById("tip").hidden;
const before = getComputedStyle(document.body).backgroundColor;
document.getElementById("theme").click();
said.themes = [before, getComputedStyle(document.body).backgroundColor];
said.requests = performance.getEntriesByType("resource").map((e) => e.name);
said.wide = document.documentElement.scrollWidth > innerWidth;
document.body.dataset.said = JSON.stringify(said);
</script>
"""


def _browse(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    return subprocess.run(
        [BROWSER, *QUIET, profile, *arguments], capture_output=True, text=True, timeout=120, check=True
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    synthetic = Synthetic(models=("qwen3-0.6b",), workloads=("decode",), batches=(1, 8), rounds=3)
    write(build(synthetic.run(ledgers=[ledger("fused")])), folder)
    page = (folder / "index.html").read_text()
    (folder / "acts.html").write_text(page.replace("</body>", f"{ACTS}</body>"))
    return folder


@pytest.mark.parametrize("width", [400, 1280])
def test_a_reader_can_sort_filter_hover_and_change_the_theme(report: Path, tmp_path: Path, width: int) -> None:
    ran = _browse(tmp_path, f"--window-size={width},900", "--dump-dom", f"file://{report / 'acts.html'}")
    assert "CONSOLE" not in ran.stderr
    found = re.search(r'data-said="([^"]*)"', ran.stdout)
    assert found is not None
    said = json.loads(unescape(found[1]))
    values = [float(v.replace(",", "")) for v in said["up"]]
    assert len(values) == 16
    assert values == sorted(values)
    assert said["down"] == said["up"][::-1]
    assert said["sort"] == "descending"
    assert said["filtered"] == ["fused", "fused"]
    assert said["tip"] == "faster: 4 of 4"
    assert re.search(r"batch \d+, length \d+", said["key"])
    assert said["hidden"]
    assert said["themes"][0] != said["themes"][1]
    assert said["requests"] == []
    assert not said["wide"], "the page scrolls sideways"


def test_it_prints_on_several_pages(report: Path, tmp_path: Path) -> None:
    pdf = tmp_path / "page.pdf"
    _browse(tmp_path, f"--print-to-pdf={pdf}", "--no-pdf-header-footer", f"file://{report / 'index.html'}")
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes()))
    assert 3 <= pages <= 25
