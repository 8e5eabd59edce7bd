"""Findings: the two sentences that open a table."""

from dataclasses import replace
from pathlib import Path

import pytest

from ddpm_lab.reports import formats, latex
from ddpm_lab.reports.findings import findings
from ddpm_lab.reports.page import write
from ddpm_lab.reports.table import Claim, Column, Entry, Source, Table
from ddpm_lab.reports.terminal import terminal

COLUMNS = (Column("10", "FID", "lower", x=10), Column("20", "FID", "lower", x=20))


def table(verdicts, data="digits", exact=False, columns=COLUMNS):
    def entry(value):
        return Entry(None, (Source("", "", Path(), "done", value),), {"data": data})

    claims = tuple(
        Claim(f"with {i} steps, η is {i}", verdict) for i, verdict in enumerate(verdicts)
    )
    rows = {"η = 0": (entry(3.0), entry(2.5)), "η = 1": (entry(4.0), entry(float("nan")))}
    return Table("t", "t", "", "tiny", "r", columns, rows, claims=claims, exact=exact)


LOWEST = "Among the numbers measured, the lowest FID is 2.50 (η = 0, 20)."


@pytest.mark.parametrize(
    ("verdicts", "sentences"),
    [
        (
            ["passed", "failed", "passed", "not resolved", "not run"],
            [
                "As in the paper, on digits (2 of 4 claims, 1 without numbers): with 0 steps, η is "
                "0; and with 2 steps, η is 2.",
                "Not shown: with 1 steps, η is 1 (the numbers contradict it); and with 3 steps, η "
                "is 3 (within two standard errors).",
            ],
        ),
        (["passed"], ["As in the paper, on digits (1 of 1 claims): with 0 steps, η is 0.", LOWEST]),
        (
            ["failed"],
            [
                "None of the paper's claims shows on digits (0 of 1 claims).",
                "Not shown: with 0 steps, η is 0 (the numbers contradict it).",
            ],
        ),
        (["not run", "not run"], [LOWEST]),
        ([], [LOWEST]),
    ],
)
def test_findings(verdicts, sentences):
    assert findings(table(verdicts)) == sentences


def test_table_without_numbers_names_its_command():
    full = table(["not run"])
    empty = replace(full, rows={"a": (Entry(None), Entry(None))}, command="python train.py")
    assert findings(empty) == ["No number has been measured yet; to run the table: python train.py"]
    assert findings(replace(full, command="python train.py")) == [LOWEST]


def test_findings_name_our_metric():
    columns = tuple(replace(each, metric="W2", paper_metric="FID") for each in COLUMNS)
    columns = (columns[0], replace(columns[1], name="FID of 20"))
    (sentence,) = findings(table([], columns=columns))
    assert sentence == "Among the numbers measured, the lowest W2 is 2.50 (η = 0, W2 of 20)."


def test_findings_name_the_data_of_all_numbers():
    (first, _) = findings(table(["passed"], exact=True))
    assert first.startswith("As in the paper, for the exact denoiser (1 of 1 claims)")
    (first, _) = findings(table(["passed"], data=""))
    assert first.startswith("As in the paper (1 of 1 claims)")


def test_columns_of_different_quantities_have_no_best_number():
    columns = (Column("L_T", "bits/dim", "lower"), Column("L_0", "bits/dim", "lower"))
    assert findings(table([], columns=columns)) == []


def test_every_format_opens_with_the_findings(tmp_path):
    example = table(["passed", "failed"])
    first, second = findings(example)
    assert " ".join(terminal(example).split()).index(first) < terminal(example).index("─")
    assert f"{first} {second}" in formats.markdown([example]).replace("\\", "")
    assert latex.tex(f"{first} {second}") in latex.latex([example])
    write([example], tmp_path, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.index(first) < page.index("<table") and second in page
