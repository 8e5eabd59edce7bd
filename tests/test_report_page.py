"""Report pages in a browser: widths, color schemes, accessibility, print."""

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from conftest import ROOT
from test_reports import BROWSER, SHOWN, make

from ddpm_lab.reports.page import write

AXE = Path(os.environ.get("AXE_CORE", ROOT / "node_modules" / "axe-core" / "axe.min.js"))
"""Script of the npm package axe-core"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


def run_browser(file, profile, *flags):
    flags = ("headless", "no-sandbox", "disable-gpu", f"user-data-dir={profile}", *flags)
    command = [BROWSER, *(f"--{flag}" for flag in flags), file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def evaluate(page, script, tmp_path, width=1280, *flags):
    """Return the JSON that `script` passes to `send` in a page of `width` pixels."""
    (tmp_path / "page.html").write_text(
        f"{page}<script>const send = content => parent.postMessage(content, '*');{script}</script>"
    )
    (tmp_path / "frame.html").write_text(FRAME.format(width))
    size, budget = "window-size=1400,1000", "virtual-time-budget=20000"
    flags = (*flags, "enable-logging=stderr", "dump-dom", size, budget)
    process = run_browser(tmp_path / "frame.html", tmp_path / "profile", *flags)
    assert ":CONSOLE" not in process.stderr, process.stderr
    return json.loads(unescape(re.search("<pre>(.*)</pre>", process.stdout, re.S)[1]))


@pytest.fixture
def page(tmp_path):
    write(make(tmp_path), tmp_path, tmp_path)
    return (tmp_path / "report.html").read_text()


CHECK = """addEventListener("load", () => send({
  empty: [...document.images].filter(x => !x.naturalWidth).length, images: document.images.length,
  wide: document.documentElement.scrollWidth - innerWidth, width: innerWidth,
  ours: [...document.querySelectorAll("tr.ours td")].map(x => x.innerText.trim()),
  loaded: performance.getEntriesByType("resource").map(x => x.name)
    .filter(x => !x.startsWith("data:")),
  open: [...document.querySelectorAll("details")].map(x => x.open),
}))"""
FRAME = """<iframe src="page.html" style="width: {}px; height: 900px; border: 0"></iframe>
<pre></pre><script>addEventListener("message",
  event => document.querySelector("pre").textContent = JSON.stringify(event.data))</script>"""


@pytest.mark.parametrize("width", [1280, 390])
def test_browser_renders_page(width, page, tmp_path):
    content = evaluate(page, CHECK, tmp_path, width)
    assert (content["empty"], content["images"], content["width"]) == (0, 3, width)
    assert content["wide"] <= 0, "the page scrolls sideways"
    assert content["ours"] == [ours for ours, *_ in SHOWN.values()]
    assert content["loaded"] == [] and content["open"] == [False, False]
    opened = evaluate(page.replace("<details", "<details open"), CHECK, tmp_path, width)
    assert opened["open"] == [True, True] and opened["wide"] <= 0


AUDIT = """addEventListener("load", async () => {
  const {violations} = await axe.run(document);
  send({dark: matchMedia("(prefers-color-scheme: dark)").matches, violations: violations.map(
    each => `${each.id}: ${each.nodes[0].html.slice(0, 200)} ${each.nodes[0].failureSummary}`)});
})"""


@pytest.mark.nightly
@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed (npm install axe-core)")
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_page_passes_axe(width, dark, page, tmp_path):
    scheme = f"blink-settings=preferredColorScheme={int(not dark)}"
    script = f"{AXE.read_text()};{AUDIT}"
    opened = page.replace("<details", "<details open")
    content = evaluate(opened, script, tmp_path, width, scheme)
    assert content == {"dark": dark, "violations": []}
    gray = "#555555" if dark else "#999999"
    poor = re.sub("--muted: #[0-9a-f]{6}", f"--muted: {gray}", page).replace("alt=", "data-alt=")
    violations = evaluate(poor, script, tmp_path, width, scheme)["violations"]
    assert {each.partition(":")[0] for each in violations} >= {"image-alt", "color-contrast"}


@pytest.mark.skipif(not shutil.which("pdftotext"), reason="pdftotext is not installed")
def test_print_shows_the_details(page, tmp_path):
    run_browser(tmp_path / "report.html", tmp_path / "profile", f"print-to-pdf={tmp_path}/a.pdf")
    subprocess.run(["pdftotext", "-raw", "a.pdf", "a.txt"], cwd=tmp_path, check=True)
    text = "".join((tmp_path / "a.txt").read_text().split())
    for content in ("theirs<script>", "config0abc", "ddpm-evaluate", "runs/0/m.json"):
        assert content in text
