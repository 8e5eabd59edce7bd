"""Papers' tables: that the files say what can be run, that claims hold of the papers' own numbers, that ours follow."""

import csv
import json
from pathlib import Path

import pytest
from conftest import CONFIGS, FAST
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image

from ddpm_lab.ablations import tables
from ddpm_lab.ablations.plan import JobKey, Plan
from ddpm_lab.ablations.spec import OrderClaim, load_ablation, names
from ddpm_lab.reports.table import Column, Entry, Source, Table
from ddpm_lab.sweeps.job import get_nested


@pytest.fixture
def settings(tmp_path):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield OmegaConf.create(
            {"jobs_dir": str(tmp_path / "cells"), "overrides": [], "evaluate": []}
        )


def own_numbers(ablation):
    """The paper's table, as a Table."""
    rows = {
        name: tuple(
            Entry(tables.published(value)) for value in row.paper or [None] * len(ablation.columns)
        )
        for name, row in ablation.rows.items()
    }
    return Table(
        "", "", "", "", "", tuple(Column(name, "", None) for name in ablation.columns), rows
    )


@pytest.mark.parametrize("name", names())
def test_claims_hold_of_the_papers_own_numbers(name):
    ablation = load_ablation(name)
    table = own_numbers(ablation)
    for order in ablation.claims:
        assert {*order.order, *(order.rows or []), *(order.columns or [])} <= {
            *ablation.rows,
            *ablation.columns,
        }
        assert tables.claim(table, order, paper=True).passed is not False, order.text
    for row in ablation.rows.values():
        assert len(row.paper) in (0, len(ablation.columns))


@pytest.mark.parametrize("name", names())
def test_nothing_is_claimed_of_numbers_from_memory(name):
    ablation = load_ablation(name)
    table = own_numbers(ablation)
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
    ("tier", "some"),  # the analytic tier is run below
    [
        pytest.param("paper", names(), marks=pytest.mark.nightly),
        ("paper", ["adm_table1", "iddpm_figure5"]),
        (
            "tiny",
            ["adm_table1", "adm_table4", "cascade_augmentation", "iddpm_table2", "ldm_factors"],
        ),
    ],
)
def test_cells_of_the_other_tiers_compose(typed, tier, some, tmp_path):
    status, out, err = typed(
        "train", f"ablation=[{','.join(some)}]", f"tier={tier}", "dry=true", f"jobs_dir={tmp_path}"
    )
    assert status == 0, err
    for name in some:
        skip_reason = load_ablation(name).tiers[tier].skip_reason
        assert (f"{name} has no tier={tier}: {skip_reason}" in out) == bool(skip_reason)


SHORT = "[adm_table4,cfg_imagenet64,ddim_table2,iddpm_figure2,iddpm_figure5,iddpm_table2]"
"""Tables of few cells"""


@pytest.fixture(scope="session", params=[SHORT, pytest.param("all", marks=pytest.mark.nightly)])
def analytic(request, typed, tmp_path_factory):
    """The cells of analytic tables, the report, and whether they are all."""
    where = tmp_path_factory.mktemp("analytic")
    overrides = (f"ablation={request.param}", "tier=analytic", f"jobs_dir={where}/cells")
    status, out, err = typed("train", *overrides, "jobs=2")
    assert status == 0, out + err
    status, out, err = typed("report", *overrides, f"out={where}/report")
    assert status == 0, err
    return where, out, request.param == "all"


@pytest.mark.slow
def test_the_analytic_tier_shows_the_orders_of_the_papers(analytic):
    _, out, everything = analytic
    assert out.count("✓") >= (20 if everything else 8) and "✗" not in out and "failed" not in out


@pytest.mark.slow
def test_every_number_of_a_report_is_in_the_file_that_it_names(analytic):
    where, _, everything = analytic
    found = 0
    for line in csv.DictReader((where / "report" / "table.csv").open()):
        ablation = load_ablation(line["table"].removesuffix("-analytic"))
        key = ablation.columns[line["column"]].metric or ablation.metric
        key = ablation.tiers["analytic"].metrics.get(key, key)
        if line["ours"]:
            assert float(line["ours"]) == get_nested(
                json.loads(Path(line["files"]).read_text()), key
            )
            assert (line["difference"] == "") == (
                key != (ablation.columns[line["column"]].metric or ablation.metric)
                or not line["paper"]
            )
            found += 1
        else:
            assert line["status"] == "not run"
    assert found > (100 if everything else 20)


def test_what_tables_share_is_trained_once(typed, tmp_path):
    def folders(*ablations):
        _, out, _ = typed(
            "train", f"ablation=[{','.join(ablations)}]", "dry=true", f"jobs_dir={tmp_path}"
        )
        return {line.split()[-1] for line in out.splitlines() if " train-" in line}

    assert len(folders("ddim_table2")) == 1 and folders("ddim_table2") == folders(
        "ddim_table1", "ddim_table2"
    )


def test_a_tier_says_the_papers_words_in_its_own(settings):
    plan = Plan("iddpm_table2", load_ablation("iddpm_table2"), "tiny", settings)
    cell = plan.places[JobKey("4000, cosine, L_vlb", "NLL", 1)]
    (trained,) = cell.needs
    config = plan.configs[str(trained.folder)]
    assert (
        config.schedule.steps,
        config.seed,
        config.timestep_sampler._target_.split(".")[-1],
    ) == (
        400,
        1,
        "Importance",
    )
    assert f"run={trained.folder}" in cell.overrides


def test_words_of_the_user_reach_every_run(typed, tmp_path):
    overrides = ("dry=true", f"jobs_dir={tmp_path}")
    _, plain, _ = typed("train", "ablation=ddpm_table2", *overrides)
    _, changed, _ = typed(
        "train", "ablation=ddpm_table2", "trainer.max_steps=7", "~callbacks.losses", *overrides
    )
    assert plain.count("train-") == changed.count("train-") == 12
    assert not {line.split()[-1] for line in plain.splitlines()} & {
        line.split()[-1] for line in changed.splitlines() if "train-" in line
    }


@pytest.mark.nightly
def test_the_papers_settings_take_a_step(typed, tmp_path):
    """tier=paper on a folder of images, with a network that a test can hold."""
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.effect_noise((32, 32), 50 + i).convert("RGB").save(tmp_path / "images" / f"{i}.png")
    overrides = (
        "ablation=ddpm_table2",
        "tier=paper",
        f"jobs_dir={tmp_path}/cells",
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
    status, out, err = typed(
        "report", *overrides, f"out={tmp_path}/report"
    )  # no Inception here, so no FID
    assert status == 0 and out.count("no value") == 12, out + err


@pytest.mark.slow
def test_a_tiny_table_from_one_command_to_its_report(typed, tmp_path):
    overrides = (
        "ablation=cascade_augmentation",
        f"jobs_dir={tmp_path}/cells",
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
    assert len(lines) == 5 and all(line["ours"] and line["status"] == "done" for line in lines)
    assert all(("†" in line["marks"]) == bool(line["paper"]) for line in lines)
    page = (tmp_path / "report" / "report.html").read_text()
    assert (
        page.count("data:image/png") >= 3
        and "python evaluate.py" in page
        and str(tmp_path) not in page.replace(f"{tmp_path}/cells", "")
    )


def test_numbers_that_were_measured_otherwise_are_marked(settings, tmp_path):
    ablation = load_ablation("ddpm_table2")
    plan = Plan("ddpm_table2", ablation, "tiny", settings)
    for i, (place, cell) in enumerate(plan.places.items()):
        cell.folder.mkdir(parents=True, exist_ok=True)
        count = 500 if place.row == "ε, L_simple" else 1000
        cell.metrics.write_text(
            json.dumps(
                {
                    "fid": 10.0 + i,
                    "inception_score": 5.0 - i,
                    "protocol": {
                        "count": count,
                        "split": "train",
                        "extractor": "digits",
                        "seed": place.seed,
                    },
                }
            )
        )
        (cell.folder / "job.json").write_text(
            json.dumps({"status": 0, "seconds": 1, "config": cell.config})
        )
    table = tables.from_plan(plan)
    assert table.rows["ε, L, fixed Σ"][1].marks == ("†",)
    assert "no checkpoint, the paper best" in table.notes["†"]
    assert table.rows["ε, L_simple"][1].marks == ("†", "a")
    assert (
        table.notes["a"] == "count 500, elsewhere 1000"
        and "count 1000, the paper 50000" in table.notes["†"]
    )


@pytest.mark.parametrize(
    ("values", "ratio", "passed"),
    [
        ([[1.0, 1.0], [2.0, 3.0]], 1.0, True),
        ([[1.0, 3.0], [2.0, 1.0]], 1.0, False),
        ([[3.0, 1.0], [1.0, 2.0]], 1.0, False),
        ([[1.0, 1.0], [2.0, 1.0]], 1.0, False),
        ([[1.0, 1.0], [2.0, 3.0]], 2.0, True),
        ([[1.0, 1.0], [2.0, 3.0]], 2.5, False),
        ([[1.0, 1.0], [2.0, None]], 1.0, None),
        ([[1.0, 3.0], [None, 2.0]], 1.0, False),
    ],
)
def test_a_claim_holds_in_all_its_columns_or_not_at_all(values, ratio, passed):
    def entry(value):
        return Entry(None, (Source("", "", Path(), "not run" if value is None else "done", value),))

    rows = {name: tuple(map(entry, row)) for name, row in zip("ab", values, strict=True)}
    table = Table("", "", "", "", "", (Column("x", "", None), Column("y", "", None)), rows)
    assert tables.claim(table, OrderClaim(text="", order=["a", "b"], ratio=ratio)).passed is passed


def test_keys_lead_through_dicts_and_lists():
    found = {"a": {"b": [{"c": 1}, {"c": 2}]}}
    assert (
        get_nested(found, "a.b.1.c") == 2
        and get_nested(found, "a.x") is None
        and get_nested(found, "a.b.7.c") is None
    )
