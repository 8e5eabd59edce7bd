"""What the reports of `ddpm_lab.reports` say of hand-made tables: every number at its place, and no other."""

import csv
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest
from PIL import Image

from ddpm_lab.ablations.spec import TIERS, load_ablation, names
from ddpm_lab.reports import formats, number_format, plots
from ddpm_lab.reports.figures import save_curves, save_lines
from ddpm_lab.reports.page import write
from ddpm_lab.reports.table import Claim, Column, Entry, Panel, Published, Source, Table

EVIL = "<script>alert(\"1\")</script> & a_b 5% $x$ | `c` {d} ~ ^ # \\ [e] *f* 'g'"
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def source(value, root, seed=0, status="done"):
    return Source(
        f'ddpm-evaluate "a=<{seed}>" ' + "x" * 300,
        f"{seed}abc",
        root / f"runs/{seed}/m.json",
        status,
        value,
    )


# The paper's number, whether it is recalled, ours by seed; what is then shown as ours, the paper's, the difference
KINDS = {
    "done": (3.17, False, [3.2149], "3.21†", "3.17", "+0.04"),
    "seeds": (13.36, False, [13.0, 13.5, 14.0], "13.50 ± 0.50", "13.36", "+0.14"),
    "recalled": (6.84, True, [7.0], "7.00", "(6.84)", "+0.16"),
    "word": ("unstable", False, [41.0], "41.0", "unstable", ""),
    "not run": (4.16, False, ["not run"], "not run", "4.16", ""),
    "failed": (4.04, False, ["failed"], "failed", "4.04", ""),
    "one seed of two": (9.5, False, [9.3, "not run"], "not run", "9.5", ""),
    "small": (0.0065, False, [0.00714], "0.00714", "0.0065", "+0.00064"),
    "whole": (250, False, [251], "251", "250", "+1"),
    "no paper": (None, False, [0.5], "0.500", "", ""),
    "negative": (-1.5, False, [-2.3], "−2.30", "−1.5", "−0.80"),
    "not measured": (1.25, False, [None], "no value", "1.25", ""),
}
WIDTH = 4


def entry(kind, root):
    paper, recalled, values, *_ = KINDS[kind]
    sources = [
        source(None, root, i, value) if isinstance(value, str) else source(value, root, i)
        for i, value in enumerate(values)
    ]
    published = None if paper is None else Published(paper, recalled)
    marks = ("†",) if kind in ("done", "failed") else ()
    return Entry(published, tuple(sources), {"steps": 10, "kind": kind}, marks)


@pytest.fixture
def tables(tmp_path):
    return make(tmp_path)


def make(root):
    """An absent tier and a full one."""
    Image.new("RGB", (40, 20), "teal").save(root / "samples.png")
    kinds = list(KINDS)
    rows = {
        f"{i} {EVIL}": tuple(entry(kind, root) for kind in kinds[i : i + WIDTH])
        for i in range(0, len(kinds), WIDTH)
    }
    columns = [Column(f"{i} {EVIL}", f"FID_{i % 2} & 1%", "lower") for i in range(WIDTH)]
    xs = [1, 10, 100]
    panels = (
        Panel(
            EVIL,
            "steps $",
            "FID_$",
            {"η": (xs, [3.0, 2, 1]), "η (paper)": (xs, [4.0, 2, 1])},
            log_x=True,
            log_y=True,
        ),
        Panel("bars", "", "FID", {"ours": (["a", "$b$"], [1.0, 2.0]), "paper": (["a"], [1.5])}),
    )
    claims = [Claim(f"{verdict} {EVIL}", verdict, "1 < 2") for verdict in (True, False, None)]
    full = Table(
        "t1-tiny",
        EVIL,
        f"of {EVIL}",
        "tiny",
        f"corner {EVIL}",
        tuple(columns),
        rows,
        f"theirs {EVIL}",
        f"own {EVIL}",
        {"†": f"note {EVIL}"},
        tuple(claims),
        {},
        panels,
        {EVIL: root / "samples.png"},
        f"make {EVIL}",
    )
    skip_reason = replace(
        full,
        name="t1-analytic",
        tier="analytic",
        rows={},
        skip_reason=f"why {EVIL}",
        panels=(),
        claims=(),
    )
    return [skip_reason, full]


def grid(cells):
    """By rows as in the table: [ours, paper, ours, paper, ...] to the kinds' names."""
    return dict(
        zip(
            KINDS,
            [tuple(row[i : i + 2]) for row in cells for i in range(0, len(row), 2)],
            strict=True,
        )
    )


@pytest.mark.parametrize(
    ("value", "like", "written"),
    [
        (3.2149, 3.17, "3.21"),
        (0.00714, 0.0065, "0.00714"),
        (0.01234, 3.17, "0.0123"),
        (0.99, 3.17, "0.990"),
        (9.996, None, "10.0"),
        (12345.6, None, "12346"),
        (1.5e-12, None, "1.50e−12"),
        (0.0, 3.17, "0.00"),
        (7, None, "7"),
        (4.2, 4, "4.20"),
        (2.5e9, 3.17, "2.50e+09"),
        (4.2, "unstable", "4.20"),
        (0.5, None, "0.500"),
    ],
)
def test_a_number_has_the_papers_decimals_or_three_digits(value, like, written):
    assert number_format.text(value, number_format.decimals(value, like)) == written


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_said(value, tmp_path):
    broken = Entry(Published(3.17), (source(value, tmp_path), source(value, tmp_path)))
    assert number_format.cell(broken) == str(value) and str(value) in number_format.difference(
        broken
    )


def test_csv_has_a_line_for_each_number_unrounded(tables, tmp_path):
    lines = list(csv.DictReader(formats.csv(tables, tmp_path).splitlines()))
    assert len(lines) == len(KINDS)
    places = [
        (row, column, entry)
        for row, cells in tables[1].rows.items()
        for column, entry in zip(tables[1].columns, cells, strict=True)
    ]
    for line, (row, column, expected) in zip(lines, places, strict=True):
        assert (line["row"], line["column"], line["metric"]) == (row, column.name, column.metric)
        for name, value in (
            ("ours", expected.ours),
            ("spread", expected.spread),
            ("difference", expected.difference),
        ):
            assert line[name] == ("" if value is None else repr(value)), (name, expected)
        paper = expected.paper
        assert line["paper"] == (str(paper.value) if paper else "")
        assert line["recalled"] == (("yes" if paper.recalled else "no") if paper else "")
        assert (line["status"], line["seeds"]) == (expected.status, str(len(expected.sources)))
        assert line["files"] == "; ".join(f"runs/{i}/m.json" for i in range(len(expected.sources)))
        assert line["commands"] == "; ".join(source.command for source in expected.sources)
        assert line["configs"].split("; ")[0] == "0abc" and line["marks"] == " ".join(
            expected.marks
        )


def test_terminal(tables):
    skip_reason, full = map(formats.terminal, tables)
    assert f"no such table: why {EVIL}" in skip_reason
    found = [line for line in full.splitlines() if re.match(r"  [048] <", line)]
    for line, i in zip(found, (0, 4, 8), strict=True):
        kinds = list(KINDS.values())[i : i + WIDTH]
        cells = [cell for _, _, _, ours, paper, _ in kinds for cell in (ours, paper)]
        assert line.split(EVIL)[1].split() == " ".join(cells).split()
    assert {len(line.rstrip()) for line in full.splitlines() if "─" in line} == {
        max(map(len, found))
    }
    for overrides in (
        "✓ True",
        "✗ False",
        "– None",
        "† note",
        "±: the standard deviation over 3 seeds",
        "In brackets",
    ):
        assert f"  {overrides}" in full


def test_markdown(tables):
    text = formats.markdown(tables)

    def plain(overrides):
        return re.sub(r"\\([^a-z0-9\s])", r"\1", overrides).strip()

    assert f"No such table: why {EVIL}" in plain(text)
    told = "\n".join(
        line for line in text.splitlines() if not line.startswith("    ")
    )  # a command stands as it is
    assert not re.search(r"(?<!\\)[<$`~]", told), "not escaped"
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    head, *rows = [
        list(map(plain, line.removeprefix("| ").removesuffix(" |").split(" | "))) for line in lines
    ]
    assert len(head) == 1 + 2 * WIDTH and [row[0] for row in rows] == list(tables[1].rows)
    assert grid([row[1:] for row in rows]) == {kind: value[3:5] for kind, value in KINDS.items()}
    for overrides in (
        "- ✓ True",
        "- ✗ False",
        "- – None",
        "† note",
        "±: the standard deviation",
        "In brackets",
    ):
        assert f"\n{overrides}" in text


def test_latex(tables):
    text = formats.latex(tables)
    known = re.compile(
        "|".join(sorted(map(re.escape, formats.TEX.values()), key=len, reverse=True))
    )
    signs = {value: sign for sign, value in reversed(formats.TEX.items())}

    def plain(overrides):
        assert not set(known.sub("", overrides)) & set("\\{}$&#^_~%<>|\"[]*`'"), (
            f"not escaped: {overrides}"
        )
        return known.sub(lambda found: signs[found[0]], overrides)

    body = (
        text.split(r"\toprule")[1]
        .split(r"\bottomrule")[0]
        .replace("\\midrule\n", "")
        .strip()
        .splitlines()
    )
    head, *rows = [list(map(plain, line.removesuffix(r" \\").split(" & "))) for line in body]
    assert len(head) == 1 + 2 * WIDTH and [row[0] for row in rows] == list(tables[1].rows)
    assert grid([row[1:] for row in rows]) == {kind: value[3:5] for kind, value in KINDS.items()}
    wrapped = r"\\caption\{(.*)\}|\\par\\smallskip\{\\footnotesize\\raggedright (.*)\\par\}|(No such table: .*)"
    rest = [plain("".join(found)) for found in re.findall(wrapped, text)]
    assert rest[1] == f"No such table: why {EVIL}" and f"† note {EVIL}" in rest
    assert len(rest) == 6 and text.count(r"\begin{") == text.count(r"\end{") == 3


HARMLESS = "$\\input{/etc/passwd}$ \\write18 $x_{$ =1+1 σ̂ ᾱ Σ ‖μ̃‖² é ü Ç “q” x̂ L₀ 10⁻³ 漢 \x07 \x00"
DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs}\usepackage{graphicx}\usepackage[T1]{fontenc}\extrafloats{200}
\begin{document}\input{table.tex}\end{document}"""


def every_table(root):
    """Each ablation in each tier, with numbers everywhere, and a sweep of many cells with hostile names."""
    made = []
    for name in names():
        ablation = load_ablation(name)
        columns = tuple(
            Column(column, "bits/dim over entropy", "lower") for column in ablation.columns
        )
        full = Entry(
            Published(12.345, True), (source(123.456, root), source(125.0, root, 1)), {}, ("†", "a")
        )
        rows = {row: (full,) * len(columns) for row in ablation.rows}
        for tier in TIERS:
            protocol = ", ".join(f"{key} {value}" for key, value in ablation.protocol.items())
            about = (
                ablation.title,
                ablation.source,
                tier,
                ablation.row_header,
                columns,
                rows,
                protocol,
            )
            stage = ablation.tiers[tier]
            made.append(
                Table(
                    f"{name}-{tier}",
                    *about,
                    stage.note,
                    {"†": protocol},
                    skip_reason=stage.skip_reason,
                )
            )
    rows = {f"{i} {HARMLESS} {EVIL}": (Entry(None, (source(1.0 * i, root),)),) for i in range(60)}
    return [
        *made,
        Table(
            "s", f"Sweep {HARMLESS}", "", "sweep", "cell", (Column(HARMLESS, "FID", "lower"),), rows
        ),
    ]


def test_every_latex_table_compiles_and_fits_a_page(tmp_path):
    text = formats.latex(every_table(tmp_path))
    assert text.isascii() and text.isprintable() is False and not set(text) & set("\x00\x07")
    assert (
        r"$\hat{\sigma}$" in text
        and r"$\bar{\alpha}$" in text
        and r"$\Sigma$" in text
        and r"\'{e}" in text
    )
    assert text.count(r"\begin{tabular}") == text.count(
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}"
    )
    for body in re.findall(r"\\begin\{tabular\}\{(l r*|lr*)\}(.*?)\\end\{tabular\}", text, re.S):
        lines = [line for line in body[1].splitlines() if line.endswith(r" \\")]
        assert 2 <= len(lines) <= formats.ROWS + 1
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {body[0].count("r")}
    if not (pdflatex := shutil.which("pdflatex")):
        return
    (tmp_path / "table.tex").write_text(text)
    (tmp_path / "document.tex").write_text(DOCUMENT)
    command = [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "document.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120)
    log = (tmp_path / "document.log").read_text(errors="replace")
    assert done.returncode == 0, log[-2000:]
    assert not re.findall(r"Overfull .*|Float too large.*|Missing character.*", log)


def test_names_are_harmless_text_in_plots_and_tables(tmp_path):
    plots.render(
        Panel(
            HARMLESS, HARMLESS, HARMLESS, {HARMLESS: ([1, 2], [1.0, 2.0]), "": ([1, 2], [3.0, 2.0])}
        )
    )
    plots.render(Panel(HARMLESS, "$", "$$", {"$": ([HARMLESS, "$b$"], [1.0, 2.0])}))
    curves = {
        HARMLESS: [(1, 1.0), (2, 2.0)],
        "": [(1, 1.0), (2, 2.0)],
        "$\\frac{$" * 100: [(1, 2.0)],
    }
    assert save_curves(curves, tmp_path / "curves.png", x=HARMLESS).is_file()
    lines = {HARMLESS: {HARMLESS: ([HARMLESS, "$"], [1.0, 2.0])}}
    assert save_lines(lines, tmp_path / "lines.png", x=HARMLESS, y={HARMLESS: HARMLESS}).is_file()
    rows = {
        f"{sign}cmd|'/C calc'!A0": (Entry(None, (source(-1.5, tmp_path),)),)
        for sign in ("=", "+", "-", "@", "\t")
    }
    table = Table(
        "=t",
        "# = x",
        "1. of",
        "",
        "c",
        (Column("=c", "@FID", None),),
        rows,
        command="python\n# a",
        notes={"=": "- a"},
    )
    for line in csv.DictReader(formats.csv([table], tmp_path).splitlines()):
        assert (
            line["row"][0] == line["column"][0] == line["metric"][0] == line["table"][0] == "'"
            and line["ours"] == "-1.5"
        )
    text = formats.markdown([table])
    assert not re.search(r"^(=|- a|1\. |# )", text, re.M), text


class Page(HTMLParser):
    """The cells of the rows of each class, the texts of each other class, and what is loaded."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.texts, self.loaded, self.tags, self.open = {}, {}, [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.loaded += [
            value for key, value in attrs.items() if key in ("src", "href", "srcset", "style")
        ]
        if tag in ("meta", "link", "img"):
            return
        self.open.append((tag, attrs.get("class", "")))
        if tag == "tr":
            self.rows.setdefault(attrs.get("class", ""), []).append([])
        elif tag in ("td", "th"):
            self.rows[next(name for tag, name in reversed(self.open) if tag == "tr")][-1].append("")
        if attrs.get("class"):
            self.texts.setdefault(attrs["class"], []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for tag, name in self.open:
            if tag in ("td", "th"):
                self.rows[next(name for tag, name in reversed(self.open) if tag == "tr")][-1][
                    -1
                ] += data.strip("\n")
            if name:
                self.texts[name][-1] += data


def cells(page, kind, skipped):
    """Of the rows of one kind, without what heads them, to the kinds' names."""
    found = [cell.strip() for row in page.rows[kind] for cell in row[skipped:]]
    return dict(zip(KINDS, found, strict=True))


def test_page(tables, tmp_path):
    write(tables, tmp_path / "out", tmp_path)
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    shown = {kind: value[3:] for kind, value in KINDS.items()}
    assert cells(page, "ours", 1) == {kind: value[0] for kind, value in shown.items()}
    assert cells(page, "paper", 2) == {kind: value[1] for kind, value in shown.items()}
    assert cells(page, "difference", 1) == {kind: value[2] for kind, value in shown.items()}
    assert [row[0] for row in page.rows["paper"]] == list(tables[1].rows)

    measured = [value[0] for value in shown.values() if re.search(r"\d", value[0])]
    assert [value.strip() for value in page.texts["value"] if value.strip()] == measured
    assert [float(one) for one in page.texts["one"]] == [13.0, 13.5, 14.0, 9.3], (
        "of what has several seeds, each"
    )
    assert "8 of 12 numbers measured (1 failed, 2 not run, 1 no value)" in page.texts["summary"][0]
    assert "1 of 3 claims passed (1 failed, 1 not run)" in page.texts["summary"][0]
    assert page.texts["absent"][0].split() == f"no such table why {EVIL}".split()
    assert page.texts["badge passed"] == ["✓ passed"] and page.texts["recalled"] == ["(6.84)"]
    for entry in (entry for row in tables[1].rows.values() for entry in row):
        for source in entry.sources:
            assert source.command in unescape(text) and source.config in text
    assert "runs/1/m.json" in text and str(tmp_path) not in text

    assert "script" not in dict(page.tags) and all(
        attrs.get("alt") for tag, attrs in page.tags if tag == "img"
    )
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")
    assert (
        all(re.match(r"data:|#", place) for place in page.loaded)
        and "url(" not in text
        and "@import" not in text
    )


def test_the_same_tables_make_the_same_bytes(tmp_path):
    made = []
    for name in ("a", "b/c"):
        root = tmp_path / name
        root.mkdir(parents=True)
        files = write(make(root), root / "out", root)
        assert sorted(files) == sorted((root / "out").iterdir()), (
            "nothing else, and nothing half done"
        )
        made.append({file.name: file.read_bytes() for file in files})
    assert made[0] == made[1]
    assert set(made[0]) == {
        "report.html",
        "table.md",
        "table.csv",
        "table.tex",
        "t1-tiny-1.png",
        "t1-tiny-2.png",
    }


def test_a_plot_shows_the_papers_line_dashed(tables):
    figure = plots.draw(tables[1].panels[0])
    ours, paper = figure.axes[0].lines
    assert (ours.get_linestyle(), paper.get_linestyle()) == ("-", "--")
    assert list(ours.get_ydata()) == [3, 2, 1] and list(paper.get_ydata()) == [4, 2, 1]
    bars = plots.draw(tables[1].panels[1]).axes[0].patches
    assert [(bar.get_height(), bar.get_hatch()) for bar in bars] == [
        (1, None),
        (2, None),
        (1.5, "///"),
    ]


def test_reports_need_neither_torch_nor_hydra():
    code = "import sys, ddpm_lab.reports.page; assert not {'torch', 'hydra', 'lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


CHECK = """<script>addEventListener("load", () => parent.postMessage({
  empty: [...document.images].filter(x => !x.naturalWidth).length, images: document.images.length,
  wide: document.documentElement.scrollWidth - innerWidth, width: innerWidth,
  ours: [...document.querySelectorAll("tr.ours td")].map(x => x.innerText.trim()),
  loaded: performance.getEntriesByType("resource").map(x => x.name).filter(x => !x.startsWith("data:")),
}, "*"))</script>"""
FRAME = """<iframe src="page.html" style="width: {}px; height: 900px; border: 0"></iframe><pre></pre><script>
addEventListener("message", event => document.querySelector("pre").textContent = JSON.stringify(event.data))</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_the_page(width, tables, tmp_path):
    write(tables, tmp_path, tmp_path)
    (tmp_path / "page.html").write_text((tmp_path / "report.html").read_text() + CHECK)
    (tmp_path / "frame.html").write_text(FRAME.format(width))
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--window-size=1400,1000",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=5000",
            "--dump-dom",
            (tmp_path / "frame.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = json.loads(unescape(re.search("<pre>(.*)</pre>", done.stdout)[1]))
    assert (found["empty"], found["images"], found["width"]) == (0, 3, width)
    assert found["wide"] <= 0, "the page scrolls sideways"
    assert found["ours"] == [value[3] for value in KINDS.values()]
    assert found["loaded"] == [] and ":CONSOLE" not in done.stderr
