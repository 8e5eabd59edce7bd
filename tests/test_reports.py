"""Reports of hand-made tables: every number in its place, in every format."""

import csv
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from textwrap import dedent

import pytest
import torch
from PIL import Image

from ddpm_lab.ablations.spec import TIERS, load_ablation, names
from ddpm_lab.reports import figures, formats, latex, number_format
from ddpm_lab.reports.figures import save_bound, save_curves, save_panels
from ddpm_lab.reports.grids import read_caption, save_grid
from ddpm_lab.reports.page import write
from ddpm_lab.reports.table import Claim, Column, Entry, Line, Panel, Published, Source, Table
from ddpm_lab.reports.terminal import terminal

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


KINDS = {
    "done": (3.17, False, [3.2149], "3.21†", "3.17", ""),
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
"""Paper's number, recalled, ours by seed; the texts of ours, the paper's and the difference"""
WIDTH = 4
VERDICTS = ("passed", "failed", "not resolved", "not run")
FAILED = ("failed", "not resolved")


def entry(kind, root):
    paper, recalled, values, *_ = KINDS[kind]
    sources = [
        source(None, root, i, value) if isinstance(value, str) else source(value, root, i)
        for i, value in enumerate(values)
    ]
    published = None if paper is None else Published(paper, recalled)
    marks = ("†",) if kind in ("done", "failed") else ()
    protocol = {"steps": 10, "kind": kind}
    return Entry(published, tuple(sources), protocol, marks, comparable=not marks)


@pytest.fixture
def tables(tmp_path):
    return make(tmp_path)


def make(root):
    """Return the tables of a skipped tier and of a full one."""
    pixels = torch.full((2, 1, 8, 8), 200, dtype=torch.uint8)
    save_grid(pixels, root / "samples.png", 2, f"caption {EVIL}")
    kinds = list(KINDS)
    rows = {
        f"{i} {EVIL}": tuple(entry(kind, root) for kind in kinds[i : i + WIDTH])
        for i in range(0, len(kinds), WIDTH)
    }
    columns = [Column(f"{i} {EVIL}", f"FID_{i % 2} & 1%", "lower") for i in range(WIDTH)]
    xs = [1, 10, 100]
    lines = {"η": Line(xs, [3.0, 2, 1]), "σ̂": Line(xs, [4.0, 2, 1])}
    bars = {"ours": Line(["a", "$b$"], [1.0, 2.0]), "paper": Line(["a"], [1.5])}
    panels = (
        Panel(EVIL, "steps $", "FID_$", lines, log_x=True, log_y=True),
        Panel("bars", "", "FID", bars, bars=True),
    )
    claims = [
        Claim(
            f"{verdict} {EVIL}", verdict, ("1 < 2",), f"because {EVIL}" if verdict in FAILED else ""
        )
        for verdict in VERDICTS
    ]
    full = Table(
        name="t1-tiny",
        title=EVIL,
        source=f"of {EVIL}",
        tier="tiny",
        row_header=f"corner {EVIL}",
        columns=tuple(columns),
        rows=rows,
        paper_protocol=f"theirs {EVIL}",
        our_protocol=f"own {EVIL}",
        notes={"†": f"note {EVIL}"},
        claims=tuple(claims),
        panels=panels,
        images={EVIL: root / "samples.png"},
        provenance=f"provenance {EVIL}",
        command=f"make {EVIL}",
    )
    skipped = replace(full, name="t1-analytic", tier="analytic", rows={}, panels=(), claims=())
    return [replace(skipped, skip_reason=f"why {EVIL}"), full]


SHOWN = {kind: value[3:] for kind, value in KINDS.items()}
PAIRS = {kind: value[:2] for kind, value in SHOWN.items()}
STD, RECALLED = "±: the standard deviation over 3 seeds", "In parentheses"
CLAIMS = [f"{tick} {verdict}: {verdict}" for tick, verdict in zip("✓✗≈–", VERDICTS, strict=True)]
CLAIMS_LEGEND = (
    "In the claims, numbers are means, and brackets",
    "≈ not resolved: the difference is within two",
)


def by_kind(rows):
    """Return the pairs (ours, paper) of table rows by kind."""
    pairs = [tuple(row[i : i + 2]) for row in rows for i in range(0, len(row), 2)]
    return dict(zip(KINDS, pairs, strict=True))


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
        (0.5, None, "0.500"),
    ],
)
def test_decimals_are_the_papers_or_three_digits(value, like, written):
    assert number_format.text(value, number_format.decimals(value, like)) == written


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_numbers_are_shown(value, tmp_path):
    broken = Entry(Published(3.17), (source(value, tmp_path), source(value, tmp_path)))
    assert number_format.cell(broken) == str(value)
    assert str(value) in number_format.difference(broken)


def test_csv_has_one_unrounded_line_per_number(tables, tmp_path):
    lines = list(csv.DictReader(formats.csv(tables, tmp_path).splitlines()))
    assert len(lines) == len(KINDS)
    places = [
        (row, column, entry)
        for row, entries in tables[1].rows.items()
        for column, entry in zip(tables[1].columns, entries, strict=True)
    ]
    for line, (row, column, expected) in zip(lines, places, strict=True):
        assert (line["row"], line["column"], line["metric"]) == (row, column.name, column.metric)
        assert line["paper_metric"] == column.metric
        for name in ("ours", "std", "difference"):
            value = getattr(expected, name)
            assert line[name] == ("" if value is None else repr(value)), (name, expected)
        paper = expected.paper
        assert line["paper"] == (str(paper.value) if paper else "")
        assert line["recalled"] == (("yes" if paper.recalled else "no") if paper else "")
        assert (line["status"], line["seeds"]) == (expected.status, str(len(expected.sources)))
        assert line["files"] == "; ".join(f"runs/{i}/m.json" for i in range(len(expected.sources)))
        assert line["commands"] == "; ".join(source.command for source in expected.sources)
        assert line["configs"].split("; ")[0] == "0abc"
        assert line["marks"] == " ".join(expected.marks)


def test_csv_of_claims(tables):
    full = replace(tables[1], omitted={f"=text {EVIL}": "why"})
    lines = [*csv.DictReader(formats.claims_csv([tables[0], full]).splitlines())]
    assert [line["verdict"] for line in lines] == [*VERDICTS, "not claimed"]
    assert [bool(line["reason"]) for line in lines] == [False, True, True, False, True]
    assert lines[0]["claim"] == f"passed {EVIL}" and lines[0]["numbers"] == "1 < 2"
    assert lines[4]["claim"] == f"'=text {EVIL}" and lines[4]["reason"] == "why"


@pytest.mark.parametrize(
    ("seeds", "exact", "verdict", "start"),
    [
        (2, False, "passed", "In the claims, numbers are means, and brackets"),
        (1, False, "passed", "One seed, no errors"),
        (1, True, "passed", None),
        (1, False, "not run", None),
    ],
)
def test_legend_of_claims(seeds, exact, verdict, start, tmp_path):
    entry = Entry(None, tuple(source(1.0, tmp_path, i) for i in range(seeds)))
    columns, claims = (Column("c", "FID", "lower"),), (Claim("a", verdict, ("1 < 2",)),)
    table = Table("t", "t", "", "tiny", "r", columns, {"a": (entry,)}, claims=claims, exact=exact)
    lines = number_format.claims_legend(table)
    assert len(lines) == bool(start) and all(line.startswith(start) for line in lines)
    assert all(line[:60] in terminal(table) for line in lines)


def test_terminal(tables):
    skipped, full = map(terminal, tables)
    assert f"not available: why {EVIL}" in skipped
    rows = [line for line in full.splitlines() if re.match(r"  [048] <", line)]
    for line, i in zip(rows, (0, 4, 8), strict=True):
        cells = [text for pair in list(PAIRS.values())[i : i + WIDTH] for text in pair]
        assert line.split(EVIL)[1].split() == " ".join(cells).split()
    rules = {len(line.rstrip()) for line in full.splitlines() if "─" in line}
    assert rules == {max(map(len, rows))}
    for text in (*CLAIMS, "† note", STD, RECALLED, *CLAIMS_LEGEND):
        assert f"  {text}" in full
    assert full.count("Reason: because") == 2 and "  runs: provenance" in full


def test_markdown(tables):
    text = formats.markdown(tables, "1.2.3")

    def unescape_md(escaped):
        return re.sub(r"\\([^a-z0-9\s])", r"\1", escaped).strip()

    assert f"Not available: why {EVIL}" in unescape_md(text)
    lines = text.splitlines()
    escaped = "\n".join(line for line in lines if not line.startswith("    "))  # no commands
    assert not re.search(r"(?<!\\)[<$`~]", escaped), "not escaped"
    head, *rows = [
        [*map(unescape_md, line.removeprefix("| ").removesuffix(" |").split(" | "))]
        for line in lines
        if line.startswith("| ")
    ]
    assert len(head) == 1 + 2 * WIDTH and [row[0] for row in rows] == list(tables[1].rows)
    assert by_kind(row[1:] for row in rows) == PAIRS
    starts = [f"- {claim}" for claim in CLAIMS]
    for start in (*starts, "† note", STD, RECALLED, *CLAIMS_LEGEND):
        assert f"\n{start}" in text
    assert text.count("Reason: because") == 2 and "\nRuns: provenance" in text
    assert text.endswith("\nReport: ddpm-lab 1.2.3\n")


def test_latex_table(tables):
    text = latex.latex(tables)
    commands = sorted(map(re.escape, latex.TEX.values()), key=len, reverse=True)
    pattern = re.compile("|".join(commands))
    signs = {value: sign for sign, value in reversed(latex.TEX.items())}

    def unescape_tex(escaped):
        rest = set(pattern.sub("", escaped))
        assert not rest & set("\\{}$&#^_~%<>|\"[]*`'"), f"not escaped: {escaped}"
        return pattern.sub(lambda match: signs[match[0]], escaped)

    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0].replace("\\midrule\n", "")
    head, *rows = [
        [*map(unescape_tex, line.removesuffix(r" \\").split(" & "))]
        for line in body.strip().splitlines()[2:]
    ]
    spans, rules = body.strip().splitlines()[:2]
    pattern_of_heads = r"multicolumn\{2\}\{c\}\{(.*?)\}(?= & \\multicolumn| \\\\)"
    names = [*map(unescape_tex, re.findall(pattern_of_heads, spans))]
    assert names == [number_format.header(column, False) for column in tables[1].columns]
    assert rules == "".join(rf"\cmidrule(lr){{{i}-{i + 1}}}" for i in range(2, 10, 2))
    assert head == [tables[1].row_header, *("ours", "paper") * WIDTH]
    assert [row[0] for row in rows] == list(tables[1].rows)
    assert by_kind(row[1:] for row in rows) == PAIRS
    note = r"\\par\\smallskip\{\\footnotesize\\raggedright (.*)\\par\}"
    pattern_of_rest = rf"\\caption\{{(.*)\}}\\smallskip|{note}|(Not available: .*)"
    rest = [unescape_tex("".join(groups)) for groups in re.findall(pattern_of_rest, text)]
    assert rest[1] == f"Not available: why {EVIL}" and f"† note {EVIL}" in rest
    assert len(rest) == 13 and text.count(r"\begin{") == text.count(r"\end{") == 3


HOSTILE = "$\\input{/etc/passwd}$ \\write18 $x_{$ =1+1 σ̂ ᾱ Σ ‖μ̃‖² é ü Ç “q” x̂ L₀ 10⁻³ 漢 \x07 \x00"
DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs}\usepackage{graphicx}\usepackage[T1]{fontenc}\extrafloats{200}
\begin{document}\input{table.tex}\end{document}"""


def every_table(root):
    """Return full tables of all ablations and tiers, and a long sweep with hostile names."""
    sources = (source(123.456, root), source(125.0, root, 1))
    full = Entry(Published(12.345, True), sources, {}, ("†", "a"))
    tables = []
    for name in names():
        ablation = load_ablation(name)
        label = "bits/dim above the entropy"
        protocol = ", ".join(f"{key} {value}" for key, value in ablation.protocol.items())
        verdicts = dict(zip([claim.text for claim in ablation.claims], VERDICTS * 2, strict=False))
        for tier in TIERS:
            paper_metric = "FID" if tier == "analytic" else ""
            columns = tuple(Column(each, label, "lower", paper_metric) for each in ablation.columns)
            table = Table(
                name=f"{name}-{tier}",
                title=ablation.title,
                source=ablation.source,
                tier=tier,
                row_header=ablation.row_header,
                columns=columns,
                rows={row: (full,) * len(columns) for row in ablation.rows},
                paper_protocol=protocol,
                our_protocol=ablation.tier(tier).note,
                notes={"†": protocol},
                claims=tuple(Claim(text, each, ("1 < 2",)) for text, each in verdicts.items()),
                skip_reason=ablation.tier(tier).skip_reason,
            )
            tables.append(table)
    rows = {f"{i} {HOSTILE} {EVIL}": (Entry(None, (source(1.0 * i, root),)),) for i in range(60)}
    column = Column(HOSTILE, "FID", "lower")
    return [*tables, Table("s", f"Sweep {HOSTILE}", "", "sweep", "job", (column,), rows)]


LATEX_COMMANDS = """medskip
alpha approx bar begin beta bottomrule caption cdot centering cmidrule ddagger dagger ddot ell
end epsilon eta fi footnotesize gamma geq grave hat ifdim infty in ldots leq linewidth mathrm
midrule mu multicolumn omega par phi pi pm raggedright resizebox sigma Sigma smallskip surd
textasciicircum textasciigrave textasciitilde textbackslash textgreater textless textquotedbl
textbar theta tilde times toprule uparrow downarrow Vert width else neq to
"""
"""Commands of LaTeX and booktabs that tables use"""


def check_latex(text):
    """Check braces, environments, commands, and the number of cells in each row."""
    text = "\n".join(line for line in text.splitlines() if line[:1] != "%")
    plain = re.sub(r"\\[\\{}&%$#_^'`~\"=.]", "", text)
    depth = 0
    for sign in plain:
        depth += (sign == "{") - (sign == "}")
        assert depth >= 0, "an opening brace is missing"
    assert depth == 0 and plain.count("$") % 2 == 0
    assert set(re.findall(r"\\([A-Za-z]+)", plain)) <= {*LATEX_COMMANDS.split(), "c", "r", "u", "v"}
    environments = []
    for verb, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if verb == "begin":
            environments.append(name)
        else:
            assert environments.pop() == name
    assert not environments
    tabulars = re.findall(r"\\begin\{tabular\}\{(l r*|lr*)\}(.*?)\\end\{tabular\}", text, re.S)
    assert tabulars
    for alignment, body in tabulars:
        lines = [line for line in body.splitlines() if line.endswith(r" \\")]
        assert 2 <= len(lines) <= latex.MAX_ROWS + 2
        for line in lines:
            spans = sum(int(span) - 1 for span in re.findall(r"\\multicolumn\{(\d+)\}", line))
            assert len(re.findall(r"(?<!\\)&", line)) + 1 + spans == len(alignment), line


@pytest.mark.parametrize(
    ("correct", "wrong"),
    [
        (r"\caption{", r"\caption{{"),
        (r"\end{table}", r"\end{tabular}"),
        (r"\midrule", r"\middlerule"),
        (" & ours", " & ours & ours"),
        (r"$\pm$", r"$\pm"),
    ],
)
def test_check_of_latex_finds_errors(correct, wrong, tmp_path):
    text = latex.latex(every_table(tmp_path))
    assert correct in text
    check_latex(text)
    with pytest.raises(AssertionError):
        check_latex(text.replace(correct, wrong, 1))


def test_every_latex_table_compiles_and_fits_a_page(tmp_path):
    text = latex.latex(every_table(tmp_path))
    assert text.isascii() and text.isprintable() is False and not set(text) & set("\x00\x07")
    for command in (r"$\hat{\sigma}$", r"$\bar{\alpha}$", r"$\Sigma$", r"\'{e}"):
        assert command in text
    resizebox = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}"
    assert text.count(r"\begin{tabular}") == text.count(resizebox)
    check_latex(text)
    if not (pdflatex := shutil.which("pdflatex")):
        return
    (tmp_path / "table.tex").write_text(text)
    (tmp_path / "document.tex").write_text(DOCUMENT)
    command = [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "document.tex"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120)
    log = (tmp_path / "document.log").read_text(errors="replace")
    assert process.returncode == 0, log[-2000:]
    assert not re.findall(r"Overfull .*|Float too large.*|Missing character.*", log)


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("ε, L_simple", r"$\epsilon$, $L_{\mathrm{simple}}$"),
        ("ᾱ_t and β̃", r"$\bar{\alpha}_{t}$ and $\tilde{\beta}$"),
        ("σ̂ Σ η", r"$\hat{\sigma}$ $\Sigma$ $\eta$"),
        ("|mean - mean_θ|²", r"\textbar{}mean {-} $\mathrm{mean}_{\theta}$\textbar{}$^{2}$"),
        ("x̂_0, L_0", r"$\hat{x}_{0}$, $L_{0}$"),
        ("5.17e−05 1.5e+12", r"$5.17 \times 10^{-5}$ $1.5 \times 10^{12}$"),
        ("data_L_simple a_b L_simple_2", r"data\_L\_simple a\_b L\_simple\_2"),
        ("a.1.5e3 v1.2e3x", r"a.1.5e3 v1.2e3x"),
    ],
)
def test_latex_has_the_papers_symbols(text, formula):
    assert latex.tex(text) == formula


def incomparable(root):
    """Return a table that measures a Fréchet distance, of a paper with FID."""
    entries = [
        Entry(Published(paper), (source(ours, root),), {"data": "digits"}, comparable=False)
        for paper, ours in ((3.17, 0.5), (4.04, 0.25))
    ]
    columns = tuple(Column(name, "Fréchet distance", "lower", "FID") for name in ("10", "20"))
    rows = {"σ̂": tuple(entries), "η = 1": tuple(reversed(entries))}
    return Table("t", "title", "", "analytic", "noise", columns, rows)


def test_two_metrics_share_no_column(tmp_path):
    table = incomparable(tmp_path)
    captions = ("Fréchet distance (ours), lower is better", "FID (paper), lower is better")
    printed = terminal(table)
    assert re.search(r"σ̂ +0.500 +0.250\n", printed) and re.search(r"σ̂ +3.17 +4.04\n", printed)
    text = formats.markdown([table])
    assert r"| η = 1 | 0.250 | 0.500 |" in text and r"| η = 1 | 4.04 | 3.17 |" in text
    assert all(caption in printed and caption in text for caption in captions)
    lines = latex.latex([table]).splitlines()
    ours, paper = map(latex.tex, captions)
    spans = rf" & \multicolumn{{2}}{{c}}{{{ours}}} & \multicolumn{{2}}{{c}}{{{paper}}} \\"
    assert spans in lines and r"\cmidrule(lr){2-3}\cmidrule(lr){4-5}" in lines
    assert r"noise & 10 & 20 & 10 & 20 \\" in lines
    assert r"$\hat{\sigma}$ & 0.500 & 0.250 & 3.17 & 4.04 \\" in lines
    write([table], tmp_path / "out", tmp_path)
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert [[cell.strip() for cell in row] for row in page.rows["ours"]] == [
        ["σ̂", "0.500", "0.250"],
        ["η = 1", "0.250", "0.500"],
    ]
    assert len(page.rows["paper"]) == 2 and "difference" not in page.rows
    (line, *_) = csv.DictReader(formats.csv([table], tmp_path).splitlines())
    assert (line["metric"], line["paper_metric"]) == ("Fréchet distance", "FID")
    assert line["difference"] == ""


def test_mixed_metrics_are_in_the_headers(tmp_path):
    table = incomparable(tmp_path)
    first, second = table.columns
    columns = (replace(first, metric="NLL", paper_metric=""), replace(second, name="FID of 20"))
    text = terminal(replace(table, columns=columns))
    assert "10 (NLL) ↓  Fréchet distance of 20 ↓" in text
    assert "10 (NLL) ↓  FID of 20 ↓" in text


def test_plots_escape_names(tmp_path):
    lines = {HOSTILE: Line([1, 2], [1.0, 2.0]), "": Line([1, 2], [3.0, 2.0])}
    figures.render(Panel(HOSTILE, HOSTILE, HOSTILE, lines))
    bars = {"$": Line([HOSTILE, "$b$"], [1.0, 2.0])}
    figures.render(Panel(HOSTILE, "$", "$$", bars, bars=True))
    points = [(1, 1.0), (2, 2.0)]
    curves = {HOSTILE: points, "": points, "$\\frac{$" * 100: [(1, 2.0)]}
    assert save_curves(curves, tmp_path / "curves.png", x=HOSTILE).is_file()
    words = Panel(HOSTILE, HOSTILE, HOSTILE, {HOSTILE: Line([HOSTILE, "$"], [1.0, 2.0])})
    assert save_panels([words], tmp_path / "lines.png").is_file()


def test_csv_has_no_formulas_and_markdown_no_lists(tmp_path):
    entries = (Entry(None, (source(-1.5, tmp_path),)),)
    rows = {f"{sign}cmd|'/C calc'!A0": entries for sign in ("=", "+", "-", "@", "\t")}
    table = Table(
        name="=t",
        title="# = x",
        source="1. of",
        tier="",
        row_header="c",
        columns=(Column("=c", "@FID", None),),
        rows=rows,
        command="python\n# a",
        notes={"=": "- a"},
    )
    for line in csv.DictReader(formats.csv([table], tmp_path).splitlines()):
        for field in ("row", "column", "metric", "table"):
            assert line[field][0] == "'"
        assert line["ours"] == "-1.5"
    text = formats.markdown([table])
    assert not re.search(r"^(=|- a|1\. |# )", text, re.M), text


class Page(HTMLParser):
    """Table rows and texts by CSS class, all tags, and the URLs that are loaded."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.texts, self.urls, self.tags, self.open = {}, {}, [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.urls += [attrs[key] for key in ("src", "href", "srcset", "style") if key in attrs]
        if tag in ("meta", "link", "img"):
            return
        self.open.append((tag, attrs.get("class", "")))
        if tag == "tr":
            self.rows.setdefault(attrs.get("class", ""), []).append([])
        elif tag in ("td", "th"):
            self.row.append("")
        if attrs.get("class"):
            self.texts.setdefault(attrs["class"], []).append("")

    @property
    def row(self):
        return self.rows[next(name for tag, name in reversed(self.open) if tag == "tr")][-1]

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for tag, name in self.open:
            if tag in ("td", "th"):
                self.row[-1] += data.strip("\n")
            if name:
                self.texts[name][-1] += data


def test_page(tables, tmp_path):
    write(tables, tmp_path / "out", tmp_path, "1.2.3 <x>")
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    for i, (kind, headers) in enumerate((("ours", 1), ("paper", 2), ("difference", 1))):
        cells = [cell.strip() for row in page.rows[kind] for cell in row[headers:]]
        assert cells == [texts[i] for texts in SHOWN.values()]
    assert [row[0] for row in page.rows["paper"]] == list(tables[1].rows)

    measured = [ours for ours, *_ in SHOWN.values() if re.search(r"\d", ours)]
    assert [value.strip() for value in page.texts["value"] if value.strip()] == measured
    assert [float(one) for one in page.texts["one"]] == [13.0, 13.5, 14.0, 9.3], "each seed"
    assert "8 of 12 numbers measured (1 failed, 2 not run, 1 no value)" in page.texts["summary"][0]
    counts = "1 of 4 claims passed (1 failed, 1 not resolved, 1 not run)"
    assert counts in page.texts["summary"][0]
    assert unescape(text).count(f"</strong> caption {EVIL}") == 1
    assert page.texts["provenance"] == [f"Runs: provenance {EVIL}"]
    assert page.texts["badge not-resolved"] == ["≈ not resolved"]
    assert page.texts["reason"] == [f"Reason: because {EVIL}"] * 2
    assert all(line in unescape(text) for line in CLAIMS_LEGEND)
    assert page.texts["skip-reason"][0].split() == f"not available why {EVIL}".split()
    assert page.texts["badge passed"] == ["✓ passed"] and page.texts["recalled"] == ["(6.84)"]
    sources = [each for row in tables[1].rows.values() for entry in row for each in entry.sources]
    for each in sources:
        assert each.command in unescape(text) and each.config_hash in text
    assert "runs/1/m.json" in text and str(tmp_path) not in text

    assert "script" not in dict(page.tags)
    assert "<footer>Report: ddpm-lab 1.2.3 &lt;x&gt;</footer>" in text
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")
    assert all(re.match(r"data:|#", url) for url in page.urls)
    assert "url(" not in text and "@import" not in text


def test_equal_tables_give_equal_bytes(tmp_path):
    contents = []
    for name in ("a", "b/c"):
        root = tmp_path / name
        root.mkdir(parents=True)
        files = write(make(root), root / "out", root)
        assert sorted(files) == sorted((root / "out").iterdir()), "no other and no partial files"
        contents.append({file.name: file.read_bytes() for file in files})
    assert contents[0] == contents[1]
    tables = {"claims.csv", *(f"table.{suffix}" for suffix in ("md", "csv", "tex"))}
    assert set(contents[0]) == {"report.html", "t1-tiny-1.png", "t1-tiny-2.png", *tables}


def test_papers_bars_are_hatched(tables):
    bars = figures.draw([tables[1].panels[1]]).axes[0].patches
    assert [(bar.get_height(), bar.get_hatch()) for bar in bars] == [
        (1, None),
        (2, None),
        (1.5, "///"),
    ]


def legend(figure):
    return [text.get_text() for parent in (figure, *figure.axes) for text in texts_of(parent)]


def texts_of(parent):
    legends = getattr(parent, "legends", None) or [getattr(parent, "legend_", None)]
    return [text for each in legends if each for text in each.get_texts()]


@pytest.mark.parametrize(
    ("recalled", "style", "suffix"),
    [
        ((), "-", ""),
        ((True, True), ":", " (from memory)"),
        ((True, False), ":", " (open: from memory)"),
    ],
)
def test_lines_from_memory_are_dotted_with_open_markers(recalled, style, suffix):
    lines = {"a": Line([1, 2], [3.0, 2.0], recalled=recalled), "b": Line([1, 2], [1.0, 2.0])}
    figure = figures.draw([Panel("t", "x", "y", lines)])
    a, b = figure.axes[0].lines
    assert (a.get_linestyle(), b.get_linestyle()) == (style, "-")
    assert legend(figure) == [f"a{suffix}", "b"]
    if recalled:
        faces = figure.axes[0].collections[0].get_facecolors()[:, :3].tolist()
        assert [face == [1, 1, 1] for face in faces] == [*recalled]


@pytest.mark.parametrize("panels", [1, 2])
@pytest.mark.parametrize("name", ["η = {}", "FID, 0.{} dropped (open)", "{}" * 60])
def test_legend_fits_the_figure(name, panels):
    lines = {name.replace("{}", str(i)): Line([1, 2], [i, 2.0]) for i in range(7)}
    figure = figures.draw([Panel("t", "x", "y", lines)] * panels)
    figure.draw_without_rendering()
    (box,) = [each.get_window_extent() for each in figure.legends]
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0
    assert box.y1 <= figure.axes[0].get_tightbbox().y0 + 1, "below the axes"


def test_bars_from_memory_are_lighter():
    lines = {"paper": Line(["a", "b"], [1.0, 2.0], recalled=(True, False))}
    figure = figures.draw([Panel("t", "", "y", lines, bars=True)])
    assert [bar.get_alpha() for bar in figure.axes[0].patches] == [0.4, None]
    assert legend(figure) == ["paper (lighter: from memory)"]
    single = figures.draw([Panel("t", "x", "y", {"a": Line([1, 2], [1.0, 2.0])})])
    assert legend(single) == []


@pytest.mark.parametrize("bars", [True, False])
def test_plots_have_error_bars(bars):
    xs = ["a", "b"] if bars else [1, 2]
    line = Line(xs, [3.0, 2.0], [2.5, 1.75], [3.5, 2.25])
    figure = figures.draw([Panel("t", "x", "y", {"ours": line}, bars=bars, note="std")])
    (segments,) = (each.get_segments() for each in figure.axes[0].collections)
    assert [segment[:, 1].tolist() for segment in segments] == [[2.5, 3.5], [1.75, 2.25]]
    assert figure.axes[0].get_xlabel() == "x\nstd"


def test_long_lines_have_bands():
    xs = list(range(30))
    line = Line(xs, [2.0] * 30, [1.0] * 30, [4.0] * 30)
    (band,) = figures.draw([Panel("t", "x", "y", {"ours": line})]).axes[0].collections
    assert band.get_paths()[0].vertices[:, 1].min() == 1
    assert band.get_paths()[0].vertices[:, 1].max() == 4


def test_all_plots_share_a_style(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, file: drawn.append(figure))
    term = {"t": 1, "bits": 1.0, "rate": 2.0, "rmse": 3.0}
    save_bound([term, term | {"t": 2}], tmp_path)
    save_curves({"train/loss": [(1, 2.0), (2, 1.0)], "train/loss_q1": [(1, 3.0)]}, tmp_path)
    save_panels([Panel("t", "x", "y", {"a": Line([1, 2], [1.0, 2.0])})] * 2, tmp_path)
    for figure in (*drawn, figures.draw([Panel("t", "x", "y", {"a": Line([1], [1.0])})])):
        for axes in figure.axes:
            spines = [
                axes.spines[side].get_visible() for side in ("left", "bottom", "top", "right")
            ]
            assert spines == [True, True, False, False]
            assert axes.get_xlabel() and axes.get_ylabel() and axes.get_title("left")
            assert axes.lines[0].get_color() == figures.COLORS[0]
            assert axes.xaxis.get_gridlines()[0].get_alpha() == figures.STYLE["grid.alpha"]
    assert len(drawn) == 3


def test_captions_are_visible_and_described(tmp_path):
    pixels = torch.full((4, 1, 8, 8), 255, dtype=torch.uint8)
    caption = "Rows are σ̂, columns are x_t at t = 3, 2, 1, 0, in this order, and the text is long"
    file = save_grid(pixels, tmp_path / "grid.png", 2, caption)
    with Image.open(file) as image:
        grid = image.size
        text = image.convert("L").crop((0, 140, *grid))
    assert grid[0] < 150 and grid[1] > 200, "several lines below the grid of 2 x 2 images"
    assert text.getextrema()[0] < 50 < 200 < text.getextrema()[1], "black on white"
    assert read_caption(file) == caption
    pixels_only = save_grid(pixels, tmp_path / "none.png", 2, "")
    assert read_caption(pixels_only) == ""
    (tmp_path / "damaged.png").write_bytes(file.read_bytes()[:50])
    assert read_caption(tmp_path / "damaged.png") == ""


def test_reports_import_neither_torch_nor_hydra():
    code = """
        import sys, ddpm_lab.reports.page
        assert not {'torch', 'hydra', 'lightning'} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", dedent(code)], check=True)
