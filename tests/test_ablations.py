"""Ablations: all tiers compose, claims hold for the papers' numbers, reports match the files."""

import csv
import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from html import unescape
from pathlib import Path

import pytest
import torch
from conftest import CONFIGS, FAST
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image

from ddpm_lab import __version__
from ddpm_lab.ablations import build_plots, spec, tables
from ddpm_lab.ablations.claims import check_claim
from ddpm_lab.ablations.plan import JobKey, Plan
from ddpm_lab.ablations.spec import OrderClaim, load_ablation, names
from ddpm_lab.reports import number_format
from ddpm_lab.reports.grids import save_grid
from ddpm_lab.reports.page import write
from ddpm_lab.reports.table import Column, Entry, Line, Source, Table
from ddpm_lab.sweeps.job import get_nested


@pytest.fixture
def settings(tmp_path):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield OmegaConf.create(
            {"jobs_dir": str(tmp_path / "jobs"), "overrides": [], "evaluate": [], "weights": None}
        )


def paper_table(ablation):
    """Return the table of the paper's numbers."""
    nothing = [None] * len(ablation.columns)
    rows = {
        name: tuple(Entry(tables.published(value)) for value in row.paper or nothing)
        for name, row in ablation.rows.items()
    }
    columns = tuple(Column(name, "", None) for name in ablation.columns)
    return Table("", "", "", "", "", columns, rows)


@pytest.mark.parametrize("name", names())
def test_claims_hold_for_the_papers_numbers(name):
    ablation = load_ablation(name)
    table = paper_table(ablation)
    for order in ablation.claims:
        headers = {*order.order, *(order.rows or []), *(order.columns or [])}
        assert headers <= {*ablation.rows, *ablation.columns}
        assert check_claim(table, order, paper=True).verdict != "failed", order.text
    for row in ablation.rows.values():
        assert len(row.paper) in (0, len(ablation.columns))


@pytest.mark.parametrize("name", names())
def test_claims_on_fid_exceed_the_differences_between_laboratories(name):
    ablation = load_ablation(name)
    table = paper_table(ablation)
    metrics = {column: item.metric or ablation.metric for column, item in ablation.columns.items()}
    for order in ablation.claims:
        by_row = order.order[0] in ablation.rows
        columns = (order.columns or [*ablation.columns]) if by_row else order.order
        if order.ratio == 1 and all(metrics[column] == "fid" for column in columns):
            stricter = order.model_copy(update={"ratio": 1.05})
            assert check_claim(table, stricter, paper=True).verdict != "failed", order.text


@pytest.mark.parametrize("name", names())
def test_claims_do_not_use_recalled_numbers(name):
    ablation = load_ablation(name)
    table = paper_table(ablation)
    columns = [column.name for column in table.columns]
    for order in ablation.claims:
        by_row = order.order[0] in ablation.rows
        for other in (order.columns or columns) if by_row else (order.rows or [*table.rows]):
            for one in order.order:
                row, column = (one, other) if by_row else (other, one)
                paper = table.rows[row][columns.index(column)].paper
                assert paper is None or not paper.recalled, (order.text, row, column)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tier", "ablations"),  # the analytic tier is run below
    [
        pytest.param("paper", names(), marks=pytest.mark.nightly),
        ("paper", ["adm_table1", "iddpm_figure5"]),
        (
            "tiny",
            ["adm_table1", "adm_table4", "cascade_augmentation", "iddpm_table2", "ldm_factors"],
        ),
    ],
)
def test_paper_and_tiny_tiers_compose(typed, tier, ablations, tmp_path):
    overrides = (f"tier={tier}", "dry=true", f"jobs_dir={tmp_path}")
    status, out, err = typed("train", f"ablation=[{','.join(ablations)}]", *overrides)
    assert status == 0, err
    for name in ablations:
        skip_reason = load_ablation(name).tiers[tier].skip_reason
        assert (f"{name} has no tier={tier}: {skip_reason}" in out) == bool(skip_reason)


SHORT = "[adm_table4,ddim_table2,iddpm_figure2,iddpm_figure5,iddpm_table2]"
"""Tables of few jobs"""


@pytest.fixture(scope="session", params=[SHORT, pytest.param("all", marks=pytest.mark.nightly)])
def analytic(request, typed, tmp_path_factory):
    """Run analytic tables; return their folder, the printed report, and if all tables are in it."""
    where = tmp_path_factory.mktemp("analytic")
    overrides = (f"ablation={request.param}", "tier=analytic", f"jobs_dir={where}/jobs")
    status, out, err = typed("train", *overrides, "jobs=2")
    assert status == 0, out + err
    status, out, err = typed("report", *overrides, f"out={where}/report")
    assert status == 0, err
    return where, out, request.param == "all"


@pytest.mark.slow
def test_analytic_claims_hold(analytic):
    _, out, complete = analytic
    assert out.count("✓") >= (20 if complete else 10) and "✗" not in out and "failed" not in out


@pytest.mark.slow
def test_report_has_the_provenance_of_its_jobs(analytic):
    where, out, complete = analytic
    skipped = [name for name in names() if load_ablation(name).tiers["analytic"].skip_reason]
    page, text = ((where / "report" / name).read_text() for name in ("report.html", "table.md"))
    count = len(names()) - len(skipped) if complete else SHORT.count(",") + 1
    line = rf"uns: ddpm-lab {__version__}.*; torch "
    for content in (out, page, text.replace("\\", "")):
        assert len(re.findall(line, content)) == count
    for name in ("table.csv", "table.tex", "claims.csv"):
        assert str(datetime.now(UTC).date()) not in (where / "report" / name).read_text()


@pytest.mark.slow
def test_report_numbers_equal_those_in_the_files(analytic):
    where, _, complete = analytic
    count = 0
    for line in csv.DictReader((where / "report" / "table.csv").open()):
        ablation = load_ablation(line["table"].removesuffix("-analytic"))
        paper_key = ablation.columns[line["column"]].metric or ablation.metric
        key = ablation.tiers["analytic"].metrics.get(paper_key, paper_key)
        if line["ours"]:
            metrics = json.loads(Path(line["files"]).read_text())
            assert float(line["ours"]) == get_nested(metrics, key)
            other_protocol = key != paper_key or "†" in line["marks"]
            assert (line["difference"] == "") == (other_protocol or not line["paper"])
            count += 1
        else:
            assert line["status"] == "not run"
    assert count > (100 if complete else 40)


def test_tables_share_trained_models(settings):
    def training_folders(name):
        ablation = load_ablation(name)
        columns = dict([*ablation.columns.items()][:1])
        plan = Plan(name, ablation.model_copy(update={"columns": columns}), "tiny", settings)
        return {folder for folder, job in plan.jobs.items() if job.verb == "train"}

    first, *others = map(
        training_folders, ("ddim_table1", "ddim_table2", "samplers_steps", "analytic_dpm_nll")
    )
    assert len(first) == 2, "seeds"
    assert all(first <= folders for folders in others)


def test_tier_substitutes_overrides(settings):
    plan = Plan("iddpm_table2", load_ablation("iddpm_table2"), "tiny", settings)
    job = plan.by_key[JobKey("4000, cosine, L_vlb", "NLL", 1)]
    (training,) = job.needs
    config = plan.configs[str(training.folder)]
    assert (config.schedule.steps, config.seed) == (1000, 1)
    assert config.timestep_sampler._target_.endswith(".Importance")
    assert f"run={training.folder}" in job.overrides


def test_user_overrides_reach_all_runs(typed, tmp_path):
    def training_folders(*overrides):
        _, out, _ = typed(
            "train", "ablation=ddpm_table2", "dry=true", f"jobs_dir={tmp_path}", *overrides
        )
        return {line.split()[-1] for line in out.splitlines() if " train-" in line}

    default = training_folders()
    changed = training_folders("trainer.max_steps=7", "~callbacks.losses")
    assert len(default) == len(changed) == 12 and not default & changed


@pytest.mark.nightly
def test_paper_tier_trains(typed, tmp_path):
    """Train one step of tier=paper on a folder of images, with a small network."""
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.effect_noise((32, 32), 50 + i).convert("RGB").save(tmp_path / "images" / f"{i}.png")
    overrides = (
        "ablation=ddpm_table2",
        "tier=paper",
        f"jobs_dir={tmp_path}/jobs",
        "data=folder",
        f"data.path={tmp_path}/images",
        "model.channels=8",
        "model.blocks=1",
        "trainer=cpu",
        "trainer.max_steps=1",
        "lr_schedule.warmup=0",
        "data.batch_size=2",
        "logger=csv",
        "trainer.val_check_interval=1",
        "trainer.limit_val_batches=1",
        "~callbacks.sample_grid",
        "sampler.steps=2",
        "callbacks.fid.count=4",
        "extractor.weights=nowhere",
    )
    status, out, err = typed("train", *overrides, "jobs=2")
    assert status == 0, out + err
    status, out, err = typed("report", *overrides, f"out={tmp_path}/report")
    assert status == 0 and out.count("no value") == 12, out + err  # no FID without Inception


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [[0], pytest.param([0, 1, 2], marks=pytest.mark.nightly)])
def test_tiny_tier_and_report(typed, tmp_path, monkeypatch, seeds):
    def load_with_seeds(name):
        ablation = load_ablation(name)
        tier = ablation.tiers["tiny"].model_copy(update={"seeds": seeds})
        return ablation.model_copy(update={"tiers": ablation.tiers | {"tiny": tier}})

    monkeypatch.setattr(spec, "load_ablation", load_with_seeds)
    overrides = (
        "ablation=cascade_augmentation",
        f"jobs_dir={tmp_path}/jobs",
        *FAST[:5],
        "trainer.max_steps=2",
        "evaluate.count=20",
        "data.batch_size=16",
    )
    status, out, err = typed("train", *overrides, "jobs=2")
    assert status == 0, out + err
    status, out, err = typed("report", *overrides, f"out={tmp_path}/report")
    assert status == 0, err
    lines = [*csv.DictReader((tmp_path / "report" / "table.csv").open())]
    assert len(lines) == 5 and {line["seeds"] for line in lines} == {str(len(seeds))}
    assert all(line["ours"] and line["status"] == "done" for line in lines)
    assert all(("†" in line["marks"]) == bool(line["paper"]) for line in lines)
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("data:image/png") >= 3 and "python evaluate.py" in page
    assert str(tmp_path) not in page.replace(f"{tmp_path}/jobs", "")


def finish(job, metrics):
    """Write the files of a finished job."""
    state = {"status": 0, "seconds": 1, "config": job.config_hash}
    job.folder.mkdir(parents=True, exist_ok=True)
    job.metrics.write_text(json.dumps(metrics))
    (job.folder / "job.json").write_text(json.dumps(state))


def test_plots_of_another_metric_are_named_after_it(settings):
    plan = Plan("cfg_imagenet64", load_ablation("cfg_imagenet64"), "analytic", settings)
    for i, job in enumerate(plan.jobs.values()):
        finish(job, {"sliced_wasserstein": 0.1 + i, "inception_score": 5.0 + i})
    table = tables.from_plan(plan)
    assert [column.paper_metric for column in table.columns] == ["FID"] * 3 + [""] * 3
    panels = {panel.title: panel for panel in table.panels}
    paper = panels["FID against guidance: the paper"]
    ours = panels["sliced W2 against guidance: ours, analytic"]
    assert (paper.y, ours.y) == ("FID", "sliced W2")
    assert [*ours.lines] == [f"sliced W2, 0.{i} dropped" for i in (1, 2, 5)]
    line = paper.lines["FID, 0.1 dropped"]
    recalled = dict(zip(line.xs, line.recalled, strict=True))
    assert recalled[0.2] and not recalled[0.1]
    assert not any(any(line.recalled) for line in ours.lines.values())
    assert not any(entry.comparable for row in table.rows.values() for entry in row[:3])


def test_metrics_of_one_label_share_a_table(settings):
    plan = Plan("ddim_table2", load_ablation("ddim_table2"), "analytic", settings)
    assert {plan.metric(column) for column in plan.ablation.columns} == {"reconstruction"}
    table = tables.from_plan(plan)
    assert {column.paper_metric for column in table.columns} == {""}
    (block,) = number_format.blocks(table)
    assert block.pairs and block.caption == "mean squared error, lower is better"


def test_plots_show_the_spread_over_seeds(settings):
    plan = Plan("ddpm_table2", load_ablation("ddpm_table2"), "tiny", settings)
    for key, job in plan.by_key.items():
        finish(job, {"fid": 10.0 + 2 * key.seed, "inception_score": 5.0})
        losses = "".join(f"{step},{step + key.seed}\n" for step in (1, 2))
        extra = f"3,{key.seed}\n" * (not key.seed)
        (job.folder / "metrics.csv").write_text(f"step,train/loss\n{losses}{extra}")
    table = tables.from_plan(plan)
    bars, losses = table.panels
    std = 2**0.5
    ours = bars.lines["ours"]
    assert ours.ys[0] == 11 and ours.low[0] == pytest.approx(11 - std)
    assert ours.high[0] == pytest.approx(11 + std) and "standard deviation" in bars.note
    (line,) = losses.lines.values()
    assert line == Line([1, 2], [1.5, 2.5], [1.0, 2.0], [2.0, 3.0]), "the steps of both seeds"
    assert "range over seeds" in losses.note


def test_models_are_named_by_the_rows_and_columns_that_share_them(settings):
    plan = Plan("ddpm_table2", load_ablation("ddpm_table2"), "tiny", settings)
    models = build_plots.models(plan)
    assert [*models] == [*plan.ablation.rows] and {len(jobs) for jobs in models.values()} == {2}
    plan = Plan("cfg_imagenet64", load_ablation("cfg_imagenet64"), "tiny", settings)
    columns = [f"FID, 0.{i} dropped; IS, 0.{i} dropped" for i in (1, 2, 5)]
    assert [*build_plots.models(plan)] == columns
    plan = Plan("ddim_table1", load_ablation("ddim_table1"), "tiny", settings)
    assert [*build_plots.models(plan)] == ["all numbers"]


def test_page_has_the_sample_grid_of_each_model(settings, tmp_path):
    plan = Plan("ddpm_table2", load_ablation("ddpm_table2"), "tiny", settings)
    for name, (first, second) in build_plots.models(plan).items():
        for job in (first, second):
            finish(job, {"fid": 1.0})
        (first.folder / "images").mkdir()
        pixels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
        for step in (5, 10):
            file = first.folder / "images" / f"samples-{step:06d}.png"
            save_grid(pixels, file, 2, f"step {step} of {name}")
    table = tables.from_plan(plan)
    write([table], tmp_path / "out", tmp_path)
    page = unescape((tmp_path / "out" / "report.html").read_text())
    for name in plan.ablation.rows:
        assert f"<figcaption><strong>{name}</strong> step 10 of {name}<" in page


def test_page_has_the_sample_grid_of_each_evaluation(settings, tmp_path):
    plan = Plan("cfg_imagenet64", load_ablation("cfg_imagenet64"), "tiny", settings)
    for name, (job, _) in build_plots.cells(plan).items():
        finish(job, {"fid": 1.0})
        save_grid(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), job.folder / "samples.png", 2, name)
    images = tables.from_plan(plan).images
    rows = [name for name, row in plan.ablation.rows.items() if "tiny" in row.tiers]
    assert len(images) == 3 * len(rows), "FID and IS of a model share their samples"
    assert "w = 1, FID, 0.1 dropped; IS, 0.1 dropped" in images


def test_deviating_protocols_are_marked(settings):
    plan = Plan("ddpm_table2", load_ablation("ddpm_table2"), "tiny", settings)
    for i, (key, job) in enumerate(plan.by_key.items()):
        count = 500 if key.row == "ε, L_simple" else 1000
        protocol = {"count": count, "split": "train", "extractor": "digits", "seed": key.seed}
        metrics = {"fid": 10.0 + i, "inception_score": 5.0 - i, "protocol": protocol}
        finish(job, metrics)
    table = tables.from_plan(plan)
    assert table.rows["ε, L, fixed Σ"][1].marks == ("†",)
    assert "no checkpoint, the paper best" in table.notes["†"]
    assert table.rows["ε, L, fixed Σ"][1].difference is None, "another protocol"
    assert table.rows["ε, L_simple"][1].marks == ("†", "a")
    assert table.notes["a"] == "count 500, elsewhere 1000"
    assert "count 1000, the paper 50000" in table.notes["†"]


def seeds_table(values, tier="tiny"):
    """Return a table of rows a, b, ... of columns x, y; `values` has lists by seed or numbers."""

    def entry(value):
        sources = [
            Source("", "", Path(), "not run" if one is None else "done", one)
            for one in (value if isinstance(value, list) else [value])
        ]
        return Entry(None, tuple(sources))

    rows = {name: tuple(map(entry, row)) for name, row in zip("abc", values, strict=False)}
    columns = tuple(Column(name, "", None) for name, _ in zip("xy", values[0], strict=False))
    return Table("", "", "", tier, "", columns, rows, exact=tier == "analytic")


@pytest.mark.parametrize(
    ("values", "ratio", "verdict"),
    [
        ([[1.0, 1.0], [2.0, 3.0]], 1.0, "passed"),
        ([[1.0, 3.0], [2.0, 1.0]], 1.0, "failed"),
        ([[3.0, 1.0], [1.0, 2.0]], 1.0, "failed"),
        ([[1.0, 1.0], [2.0, 1.0]], 1.0, "failed"),
        ([[1.0, 1.0], [2.0, 3.0]], 2.0, "passed"),
        ([[1.0, 1.0], [2.0, 3.0]], 2.5, "failed"),
        ([[1.0, 1.0], [2.0, None]], 1.0, "not run"),
        ([[1.0, 3.0], [None, 2.0]], 1.0, "failed"),
    ],
)
@pytest.mark.parametrize("tier", ["tiny", "analytic"])
def test_claim_of_one_seed_compares_all_columns_plainly(values, ratio, verdict, tier):
    order = OrderClaim(text="", order=["a", "b"], ratio=ratio)
    assert check_claim(seeds_table(values, tier), order).verdict == verdict


@pytest.mark.parametrize(
    ("values", "ratio", "verdict", "detail"),
    [
        # Differences 1 and 1.2: the mean is 1.1, and two standard errors are 0.2.
        ([[[1.0, 2.0]], [[2.0, 3.2]]], 1, "passed", "x: 1.5 (a) < 2.6 (b) [+1.1 ± 0.2]"),
        ([[[2.0, 3.2]], [[1.0, 2.0]]], 1, "failed", "x: 2.6 (a) ≥ 1.5 (b) [−1.1 ± 0.2]"),
        # Differences -1 and 3: the mean is 1, and two standard errors are 4.
        ([[[2.0, 1.0]], [[1.0, 4.0]]], 1, "not resolved", "x: 1.5 (a) ≈ 2.5 (b) [+1 ± 4]"),
        # The values of a seed go up and down together: only unpaired, they would overlap.
        ([[[1.0, 9.0]], [[2.0, 10.1]]], 1, "passed", "x: 5 (a) < 6.05 (b) [+1 ± 0.1]"),
        ([[[1.0, 1.0]], [[3.0, 3.1]]], 2, "passed", "x: 2 × 1 (a) < 3.05 (b) [+1.1 ± 0.1]"),
        ([[[1.0, 1.0]], [[3.0, 3.1]]], 4, "failed", "x: 4 × 1 (a) ≥ 3.05 (b) [−0.95 ± 0.1]"),
        ([[[1.0, 1.0]], [[1.0, 1.0]]], 1, "not resolved", "x: 1 (a) ≈ 1 (b) [+0 ± 0]"),
        (
            [[[1.0, 1.0]], [[2.0, 2.1]], [[2.0, 2.3]]],
            1,
            "not resolved",
            "x: 1 (a) < 2.05 (b) [+1.1 ± 0.1] ≈ 2.15 (c) [+0.1 ± 0.2]",
        ),
    ],
)
def test_claim_of_several_seeds_needs_two_standard_errors(values, ratio, verdict, detail):
    order = OrderClaim(text="", order=[*"abc"[: len(values)]], ratio=ratio)
    claim = check_claim(seeds_table(values), order)
    assert (claim.verdict, claim.details) == (verdict, (detail,))
    exact = check_claim(seeds_table(values, "analytic"), order)
    assert exact.verdict in ("passed", "failed") and "±" not in exact.details[0]


def test_worst_comparison_is_the_verdict():
    clear, unclear, opposite = [2.0, 2.1], [1.0, 2.0], [0.1, 0.2]

    def verdict(*others):
        table = seeds_table([[[1.0, 1.1]] * len(others), [*others]])
        return check_claim(table, OrderClaim(text="", order=["a", "b"])).verdict

    assert verdict(clear) == "passed"
    assert verdict(clear, unclear) == "not resolved"
    assert verdict(unclear, [None, 1.0]) == "not run"
    assert verdict(opposite, [None, 1.0]) == "failed" == verdict(opposite, unclear)


def test_reason_belongs_to_a_tier_and_to_claims_that_did_not_pass():
    order = OrderClaim(text="", order=["a", "b"], reasons={"tiny": "the network is small"})
    failed, passed = [[2.0], [1.0]], [[1.0], [2.0]]
    assert check_claim(seeds_table(failed), order).reason == "the network is small"
    assert check_claim(seeds_table([[[1.0, 2.0]], [[2.0, 1.0]]]), order).reason
    assert not check_claim(seeds_table(passed), order).reason
    assert not check_claim(seeds_table(failed, "analytic"), order).reason


def test_claim_names_the_metric_of_the_tier():
    table = seeds_table([[1.0, 2.0], [2.0, 3.0]])
    first, second = (replace(column, paper_metric="FID", metric="W2") for column in table.columns)
    table = replace(table, columns=(replace(first, name="FID"), second))
    order = OrderClaim(text="a improves FID", order=["a", "b"], columns=["FID"], ratio=1.5)
    claim = check_claim(table, order)
    assert claim.text == "a improves W2 (by a factor of 1.5 or more)"
    assert claim.details == ("W2: 1.5 × 1 (a) < 2 (b)",)
    columns = tuple(replace(column, paper_metric="") for column in table.columns)
    assert check_claim(replace(table, columns=columns), order).text.startswith("a improves FID")


def test_get_nested_indexes_dicts_and_lists():
    content = {"a": {"b": [{"c": 1}, {"c": 2}]}}
    assert get_nested(content, "a.b.1.c") == 2
    assert get_nested(content, "a.x") is None and get_nested(content, "a.b.7.c") is None
