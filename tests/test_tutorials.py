"""Tutorials run from an empty directory, and so does every example of docs/extending.md."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FAST, ROOT
from PIL import Image

import ddpm_lab

TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
TEMPLATE = ROOT / "examples" / "my_diffusion"
PAGE = (ROOT / "docs" / "extending.md").read_text()
EXAMPLE = re.compile(
    r"^```(?:python|yaml)\n((?:# @package.*\n)?# ((?:mylab|configs)/\S+)\n.*?)^```", re.M | re.S
)
COMMAND = re.compile(r"^python (\w+)\.py --config-dir CONF (.+)$", re.M)
FOLLOWING = dict(
    re.findall(
        r"^python train\.py --config-dir CONF (.+)\npython sample\.py \S+ CONF (.+)$", PAGE, re.M
    )
)
"""Overrides of sample.py, by the overrides of the training above them"""
NIGHTLY = {"01_from_scratch", "02_digits", "03_guidance", "04_own_images"}
"""The longest ones"""
SMALL = ("logger=csv", "trainer.max_steps=2", "sampler.steps=2", "model=mlp", "model.channels=8")


def tutorials():
    for file in TUTORIALS:
        marks = pytest.mark.nightly if file.stem in NIGHTLY else pytest.mark.slow
        yield pytest.param(file, marks=marks, id=file.stem)


@pytest.mark.parametrize("file", tutorials())
def test_tutorials_run_from_an_empty_directory(file, tmp_path):
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, str(file)]
    result = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout + result.stderr


def cells(file):
    """Return the text of the cells by kind: "markdown" and "code"."""
    kinds = {"markdown": [], "code": []}
    for cell in re.split(r"^# %%", file.read_text(), flags=re.M)[1:]:
        kind, _, text = cell.partition("\n")
        if kind.strip() == "[markdown]":
            kinds["markdown"].append(re.sub(r"^# ?", "", text, flags=re.M))
        else:
            kinds["code"].append(text)
    return kinds


@pytest.mark.parametrize("file", TUTORIALS, ids=lambda file: file.stem)
def test_tutorials_have_links_that_exist_and_cells_that_parse(file):
    parts = cells(file)
    assert len(parts["markdown"]) >= 5 and len(parts["code"]) >= 5
    assert sum(text.count("assert") for text in parts["code"]) >= 8
    for text in parts["markdown"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (file.parent / target).exists(), target
    for text in parts["code"]:
        ast.parse(text)


def test_the_commands_of_the_digits_have_the_choices_of_its_calls():
    text = TUTORIALS[1].read_text()
    words = re.findall(r'^    "([\w.]+=\w+)",', text.partition("compose(\n")[2], re.M)
    commands = re.sub(r"\\\n# +", "", text)
    (train,) = re.findall(r"^# python train\.py (.+)$", commands, re.M)
    assert sorted(shlex.split(train)) == sorted(words) and len(words) == 5
    (chain,) = re.findall(r"^chain = (.+)$", text, re.M)
    (nll,) = re.findall(r"^# python evaluate\.py run=DIR 'metrics=\[nll\]' (.+)$", commands, re.M)
    (count,) = re.findall(r"data\.test\.select\(slice\((\d+)\)\)", text)
    assert sorted(shlex.split(nll)) == sorted([*ast.literal_eval(chain), f"nll.count={count}"])


def definitions(file):
    nodes = ast.parse(file.read_text()).body
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name: ast.dump(node) for node in nodes if isinstance(node, kinds)}


def test_the_tutorial_has_the_definitions_of_the_template():
    tutorial = definitions(ROOT / "docs" / "tutorials" / "05_extension.py")
    template = {}
    for file in (TEMPLATE / "my_diffusion").glob("*.py"):
        template |= definitions(file)
    assert len(template) == 6
    assert {name: tutorial[name] for name in template} == template


def test_the_template_is_importable_by_every_choice(monkeypatch):
    monkeypatch.syspath_prepend(TEMPLATE)
    for file in TEMPLATE.glob("configs/*/*.yaml"):
        choice = f"{file.parent.name}={file.stem}"
        if file.parent.name != "metric":
            config = ddpm_lab.compose(choice, config_dir=TEMPLATE / "configs")
            assert config[file.parent.name]._target_.startswith("my_diffusion.")


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Return the folder `CONF` of the examples, whose package can be imported."""
    root = tmp_path_factory.mktemp("my_project")
    (root / "mylab").mkdir()
    (root / "mylab" / "__init__.py").touch()
    for text, name in EXAMPLE.findall(PAGE):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    forget_mylab()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        yield root / "configs"
    forget_mylab()


def forget_mylab():
    """Remove the package from the imported modules: other tests have a module of this name."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        del sys.modules[name]


def test_every_kind_has_an_example_and_a_command():
    kinds = re.findall(r"^## (.+)$", PAGE, re.M)
    assert len(kinds) == 13
    for kind in kinds:
        section = PAGE.partition(f"## {kind}\n")[2].partition("\n## ")[0]
        files = [name for _, name in EXAMPLE.findall(section)]
        assert any(name.startswith("configs/") for name in files), kind
        assert kind == "Experiment" or any(name.startswith("mylab/") for name in files), kind
        assert COMMAND.search(section), kind


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides", [words for verb, words in COMMAND.findall(PAGE) if verb == "train"]
)
def test_examples_train_and_sample(overrides, examples, typed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(overrides)
    options = [word for word in SMALL if not (word.startswith("model") and "model=" in overrides)]
    if "callbacks=" not in overrides:
        options.append("callbacks=none")
    else:
        options += ["callbacks.fid.count=10", "callbacks.gradient_norm.every=1"]
        words.remove("callbacks.gradient_norm.every=10")
    folder = ("--config-dir", str(examples))
    # The command line of the page precedes the options that make it short.
    status, output, error = typed("train", *folder, *words, *options, "hydra.run.dir=r")
    assert status == 0, error
    assert "mine" in overrides or "trust=[mylab]" in output
    model = ddpm_lab.load("r", "trust=[mylab]", *(["weights=raw"] if "fid" not in error else []))
    assert len(model.sample(2)) == 2
    if overrides in FOLLOWING:
        words = shlex.split(FOLLOWING[overrides].replace("DIR", "r"))
        more = ("weights=raw", "hydra.run.dir=s")
        status, _, error = typed("sample", "--config-dir", str(examples), *words, *more)
        assert status == 0, error
    if "callbacks=" in overrides:
        assert "train/gradient_norm" in Path("r/metrics.csv").read_text()


@pytest.mark.slow
def test_the_python_of_the_page_trains_and_loads(examples, tmp_path, monkeypatch):
    compose, namespace = ddpm_lab.compose, {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        ddpm_lab, "compose", lambda *words, **options: compose(*FAST, *words, **options)
    )
    block = re.search(r"^```python\n(import ddpm_lab\n.*?)^```", PAGE, re.M | re.S)[1]
    exec(block.replace("CONF", str(examples)), namespace)
    assert len(namespace["model"].sample(2)) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "overrides"), [found for found in COMMAND.findall(PAGE) if found[0] != "train"]
)
def test_examples_work_with_a_run_of_others(
    verb, overrides, examples, tiny, typed, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8)).save("a.png")
    words = [word.replace("DIR", str(tiny())) for word in shlex.split(overrides)]
    out = f"hydra.run.dir={tmp_path}/out"
    status, _, error = typed(verb, "--config-dir", str(examples), *words, out)
    assert status == 0, error
    if verb == "evaluate":
        metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert metrics["mean_distance"] > metrics["real"]["mean_distance"] > 0


@pytest.mark.slow
def test_python_gives_the_numbers_of_the_command_for_own_metrics(examples, tiny, typed, tmp_path):
    options = ("count=20", "sampler.steps=3")
    model = ddpm_lab.load(tiny(), config_dir=examples)
    results = model.evaluate(["mean_distance"], options)
    words = ("metrics=[mean_distance]", *options, f"hydra.run.dir={tmp_path}")
    folder = ("--config-dir", str(examples))
    assert typed("evaluate", *folder, f"run={tiny()}", *words)[0] == 0
    expected = json.loads((tmp_path / "metrics.json").read_text())
    assert results["mean_distance"] == expected["mean_distance"]
    with pytest.raises(ddpm_lab.UserError, match="mean_distance, memorization, nll"):
        model.evaluate(["mean_distanc"])
    with pytest.raises(ddpm_lab.UserError, match=r"must be a list of fid, kid, memorization, nll"):
        ddpm_lab.load(tiny()).evaluate(["mean_distance"])


def test_mistakes_beside_own_choices_are_explained(examples, tmp_path):
    with pytest.raises(ddpm_lab.UserError, match="no key max_stepz"):
        ddpm_lab.compose("schedule=flat", "trainer.max_stepz=1", config_dir=examples)
    with pytest.raises(ddpm_lab.UserError, match=r"choices: .*flat"):
        ddpm_lab.compose("schedule=flatt", config_dir=examples)
    with pytest.raises(ddpm_lab.UserError, match="config_dir=nowhere is not a directory"):
        ddpm_lab.compose(config_dir="nowhere")
    (tmp_path / "experiment").mkdir()
    text = "defaults:\n  - override /schedule: linear\n"
    (tmp_path / "experiment" / "one.yaml").write_text(text)
    with pytest.raises(ddpm_lab.UserError, match="begin its file with the line # @package _glo"):
        ddpm_lab.compose("experiment=one", config_dir=tmp_path)
    (tmp_path / "experiment" / "two.yaml").write_text(f"# @package _global_\n{text}")
    config = ddpm_lab.compose("experiment=two", config_dir=tmp_path)
    assert config.schedule._target_.endswith("linear")


@pytest.mark.slow
def test_mistakes_beside_own_choices_are_explained_on_the_command_line(examples, typed):
    folder = ("--config-dir", str(examples))
    status, _, error = typed("train", *folder, *FAST, "schedule=flat", "trainer.max_stepz=1")
    assert status == 2 and "no key max_stepz" in error
