"""Documents: every command composes, and every key, choice, target, link and file exists.

Python blocks run, the generated reference is complete, and the site builds without warnings.
"""

import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
import unicodedata

import pytest
from conftest import CONFIGS, FAST, ROOT, composed, options
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf

import ddpm_lab
from ddpm_lab.ablations.spec import names
from ddpm_lab.cli import explore
from ddpm_lab.config import messages
from ddpm_lab.config import overrides as config_overrides
from ddpm_lab.runs import run_config

PACKAGE = ROOT / "src" / "ddpm_lab"
DOCS = ROOT / "docs"
BUILT = ("_build", "reference/configs", "reference/api")
"""Folders of docs/ that `make docs` writes"""
FILES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(
        file for file in DOCS.rglob("*.md") if not str(file.relative_to(DOCS)).startswith(BUILT)
    ),
]
GENERATED = DOCS / "mutations.md"
SCRIPTS = [
    "prepare",
    "share",
    "import",
    "export",
    "explore",
    *(f"scripts/{file.stem}" for file in ROOT.glob("scripts/[a-z]*.py")),
]
GROUPS = {folder.name for folder in CONFIGS.iterdir() if folder.is_dir()}
PACKAGES = {folder.name for folder in PACKAGE.iterdir() if folder.is_dir()}
COMMAND = re.compile(r"(?:\S+=\S+ )*(?:srun |\.venv/bin/)?(python|torchrun|make|ddpm-\w+) ")
FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.M | re.S)
INDENTED = re.compile(r"^    (\S.*)$", re.M)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
EXAMPLE = re.compile(
    r"^(# @package _global_\n)?# configs/(\w+)/(\w+)\.yaml\n(.*?)^```", re.M | re.S
)
NOT_COMPOSED = ("--help", "--cfg job")
PLACEHOLDERS = ("CONF", "DIR", "DIR2", "SOURCE", "TARGET", "FOLDER", "SRC", "OUT")


def code(file):
    """Return the lines of code blocks, and the code spans in sentences."""
    text = file.read_text()
    prose = FENCE.sub("", text)
    lines = "\n".join(FENCE.findall(text)).splitlines() + INDENTED.findall(prose)
    spans = re.findall(r"`([^`]+)`", INDENTED.sub("", prose))
    lines = [re.sub(r"\s+#\s.*$", "", line.strip()) for line in lines]
    return lines, [" ".join(span.split()) for span in spans]


def python_blocks(file):
    """Return the matches of Python blocks."""
    return [*PYTHON.finditer(file.read_text())]


def name(file):
    return str(file.relative_to(ROOT))


def commands():
    """Return {(program, *arguments): document}, with the program "train" for `python train.py`."""
    result = {}
    for file in FILES:
        lines, spans = code(file)
        for text in [*lines, *spans]:
            match = COMMAND.match(f"{text} ")
            if not match or not (words := shlex.split(text[match.end() :])):
                continue
            program = match[1]
            if program == "torchrun":
                script = next(i for i, word in enumerate(words) if word.endswith(".py"))
                program, words = words[script], words[script + 1 :]
            elif program != "make":
                program, *words = words
            result.setdefault((program.removesuffix(".py"), *words), name(file))
    return result


COMMANDS = commands()


def commands_of(*programs):
    return [
        pytest.param(program, words, id=f"{file}: {' '.join([program, *words])}")
        for (program, *words), file in sorted(COMMANDS.items())
        if program in programs
    ]


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    """Return values of placeholders.

    `DIR` is a run on a folder, `DIR2` a super-resolution run, `CONF` a folder of choices and `NAME`
    an ablation. The example configs of the documents are registered as choices.
    """
    root = tmp_path_factory.mktemp("values")
    runs = {"DIR": ["data=folder", "data.path=IMAGES"], "DIR2": ["conditioner=low_res"]}
    for run, overrides in runs.items():
        (root / run).mkdir()
        OmegaConf.save(composed(*overrides), root / run / "config.yaml")
    (root / "CONF" / "schedule").mkdir(parents=True)
    (root / "CONF" / "schedule" / "plateau.yaml").write_text("_target_: mylab.plateau\n")
    store = ConfigStore.instance()
    examples = [example for file in FILES for example in EXAMPLE.findall(file.read_text())]
    for first, group, choice, text in examples:
        package = "_global_" if first else None
        store.store(group=group, name=choice, node=OmegaConf.create(text), package=package)
    yield {key: str(root / key) for key in PLACEHOLDERS} | {"NAME": "ddim_table1", "...": "1"}
    for _, group, choice, _ in examples:
        del store.repo[group][f"{choice}.yaml"]


def fill(words, values):
    """Replace placeholders in `words`, longest names first."""
    keys = sorted(map(re.escape, values), key=len, reverse=True)
    pattern = re.compile("|".join(rf"(?<!\w){key}(?!\w)" for key in keys))
    return [pattern.sub(lambda match: values[match[0]], word) for word in words if word != "..."]


def first_value(text):
    """Return an override with the first value of its sweep."""
    override = OverridesParser.create().parse_override(text)
    if not override.is_sweep_override():
        return text
    if override.is_interval_sweep():
        value = override.value().start
    elif override.is_choice_sweep():
        value = override.value().list[0]
    else:
        value = next(override.sweep_string_iterator())
    return f"{override.key_or_group}={value}"


@pytest.mark.parametrize(("verb", "words"), commands_of("train", "sample", "evaluate", "report"))
def test_commands_compose(verb, words, values):
    if " ".join(words) in NOT_COMPOSED:
        return
    overrides = fill(words, values)
    if verb == "train":
        verb, overrides = config_overrides.split_command(overrides)
    elif verb == "report":
        overrides = config_overrides.move_positional(overrides, "report")
    elif verb == "evaluate" and "model=exact" in overrides:
        verb = "exact"
    messages.check_flags(overrides, OmegaConf.load(CONFIGS / f"{verb}.yaml"))
    messages.check_overrides(overrides, CONFIGS)
    if verb in ("sample", "evaluate"):
        overrides = run_config.expand_cascade(overrides)
        run_config.register_run_choices(overrides)
    if "--config-dir" in overrides:
        flag = overrides.index("--config-dir")
        overrides[flag : flag + 2] = [f"hydra.searchpath=[{overrides[flag + 1]}]"]
    config = composed(*[first_value(word) for word in overrides if word != "-m"], verb=verb)
    if "ablations" in config and config.ablations is not None:
        assert config.ablations == "all" or config.ablations in names()


@pytest.mark.parametrize(("script", "words"), commands_of(*SCRIPTS))
def test_commands_of_scripts_parse(script, words, values, tmp_path, monkeypatch, capsys):
    file = ROOT / f"{script}.py"
    words = fill(words, values | {"TARGET": str(tmp_path / "TARGET")})
    if script.endswith("draw_schedules"):
        for choice, *overrides in map(str.split, words):
            composed(f"schedule={choice}", *(f"schedule.{word}" for word in overrides))
    elif script == "prepare":  # it checks the source after all options
        monkeypatch.setattr(sys, "argv", [file.name, *words])
        with pytest.raises(SystemExit):
            runpy.run_path(str(file), run_name="__main__")
        error = capsys.readouterr().err
        assert re.search(r"SOURCE=\S+ (is not there|does not exist)|is not the index", error), error
    elif script == "explore":
        assert {word.partition("=")[0] for word in words} <= {*explore.OPTIONS}
    elif script in ("import", "export"):  # they check the source first
        monkeypatch.setattr(sys, "argv", [file.name, *words])
        with pytest.raises(SystemExit):
            runpy.run_path(str(file), run_name="__main__")
        error = capsys.readouterr().err
        assert re.search(r"SOURCE=\S+ (does not exist|is neither)|has no checkpoint yet", error)
    else:
        text = file.read_text()
        overrides = [word for word in words if "=" in word]
        for word in {*words} - {*overrides}:
            option = re.escape(word.lstrip("-"))
            assert word.startswith("/") or re.search(rf"\b{option}\b", text), word
        composed(*overrides)


def test_no_command_needs_an_activated_environment():
    tools = re.compile(
        r"(\w+=\S+ )*"
        r"(pip|uv|pytest|ruff|mypy|torchrun|accelerate|ddpm-\w+|pre-commit|jupyter) \S"
    )
    own_environment = re.compile(
        r"pip install -e (\.|'\.\[[\w,]+\]')|uv pip install --torch-backend=cpu -e \."
    )
    for file in FILES:
        for text in [text for texts in code(file) for text in texts]:
            assert own_environment.fullmatch(text) or not tools.match(text), f"{file.name}: {text}"


def test_every_kind_of_command_is_tested():
    programs = {program for program, *_ in COMMANDS}
    verbs = {
        "train",
        "sample",
        "evaluate",
        "report",
        "prepare",
        "share",
        "import",
        "export",
        "explore",
        "make",
    }
    assert verbs <= programs <= verbs | {*SCRIPTS, "tests/test_user_paths"}
    assert len(COMMANDS) > 100


@pytest.mark.parametrize(("make", "words"), commands_of("make"))
def test_make_targets_exist(make, words):
    targets = re.findall(r"^(\w+):.*##", (ROOT / "Makefile").read_text(), re.M)
    assert {word for word in words if "=" not in word} <= {*targets}


@pytest.fixture(scope="module")
def keys():
    """Return every key of the configs, with its group."""
    result = set()

    def add(node, path):
        for key in node if isinstance(node, DictConfig) else []:
            result.add(f"{path}{key}")
            add(node._get_node(key), f"{path}{key}.")

    for file in CONFIGS.rglob("*.yaml"):
        content = OmegaConf.load(file)
        if isinstance(content, ListConfig):
            continue
        parts = file.parent.relative_to(CONFIGS).parts
        if parts[:1] == ("data",):  # the keys of data/serving are keys of data
            parts = parts[:1]
        is_global = not parts or "@package _global_" in file.read_text()
        add(content, "" if is_global else f"{'.'.join(parts)}.")
    add(OmegaConf.structured(HydraConf), "hydra.")
    return result


def overrides_in_text():
    """Return (document, key, value) for each `key=value` and `group.key` in sentences."""
    result = set()
    for file in FILES:
        for span in code(file)[1]:
            words = re.sub(r"^(train|sample|evaluate|report)\.py ", "", span).split()
            if all(re.match(r"'?[a-z_]+([./][a-z_]+)*=", word) for word in words):
                pairs = [word.strip("'").partition("=")[::2] for word in words]
                result |= {(name(file), *pair) for pair in pairs}
            elif (
                re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", span)
                and span.split(".")[0] in GROUPS | {"hydra"}
                and span != "prediction.x0_error_scale"
            ):
                result.add((name(file), span, None))
    return sorted(result, key=str)


@pytest.mark.parametrize(("file", "key", "value"), overrides_in_text())
def test_keys_and_choices_exist(file, key, value, keys):
    if key in GROUPS | {"hydra/launcher"}:
        choices = {path.stem for path in (CONFIGS / key).glob("*.yaml")} | {"all", "null", "basic"}
        assert not value or {*value.split(",")} <= choices, f"{key}={value}"
    else:
        options = {"attention_order", "format", "license", "push", "open"}  # of scripts
        assert key in keys | options | {"eta", "spacing", "key", "jobs", "dry"}, key


@pytest.fixture(scope="module")
def config_groups():
    """Return the module of docs/_ext that writes the pages of config groups."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS / "_ext"))
        return importlib.import_module("config_groups")


def sections(page):
    """Return {heading: text} of the second-level sections of a page."""
    parts = re.split(r"^## (.*)$", page, flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.slow
def test_reference_has_every_choice_and_every_key(config_groups):
    pages, missing = config_groups.pages(), {}
    folders = {str(file.parent.relative_to(CONFIGS)) for file in CONFIGS.rglob("*.yaml")}
    internal = {".", "data/serving", *(f"hydra{name}" for name in ("", "/help"))}
    internal |= {"hydra/hydra_logging", "hydra/job_logging"}
    assert folders - internal == {*config_groups.MEANINGS}
    for group in config_groups.MEANINGS:
        texts = sections(pages[f"{config_groups.page_name(group)}.md"])
        assert sorted(texts) == options(group)
        if group not in composed():
            continue
        for choice, text in texts.items():
            node = composed(f"{group}={choice}")[group]
            keys = {f"`{group}.{key}`" for key in node or {} if not str(key).startswith("_")}
            rows = re.findall(r"^\| (`[^`]*`) \|", text, re.M)
            nested = {f"`{'.'.join(row.strip('`').split('.')[:2])}`" for row in rows}
            missing[group, choice] = sorted(keys - nested)
    missing.pop(("codec", "autoencoder"))  # its keys are those of other groups, too
    assert len(missing) > 60 and not any(missing.values()), missing


@pytest.mark.slow
def test_reference_has_types_ranges_and_sources(config_groups):
    pages = config_groups.pages()
    assert "| `sampler.eta` | `0.0` | number at least 0 and at most 1 |" in pages["sampler.md"]
    assert "(Ho et al., 2020, algorithm 2)" in pages["sampler.md"]
    assert "`ddpm_lab.diffusion.samplers.DDPM`" in pages["sampler.md"]
    assert "| `schedule.steps` | `1000` | whole number at least 1 |" in pages["schedule.md"]
    assert "`data=cifar10`" in sections(pages["experiment.md"])["ddpm_cifar10"]
    assert "| `mode` | `sample` | `sample`, `encode`," in pages["commands.md"]


def anchors(file):
    """Return the anchors of the headings in `file`, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", file.read_text()), re.M)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", FILES, ids=name)
def test_links_and_files_exist(file):
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", file.read_text()):
        path = file.parent / target if target else file
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"
    for span in code(file)[1] if file != GENERATED else []:
        if "NAME" in span:
            continue
        if re.fullmatch(r"(src|tests|scripts|docs|configs)/[\w./]+", span):
            assert (ROOT / span).exists(), span
        elif re.fullmatch(r"\w+/[\w/]+\.py", span) and span.split("/")[0] in PACKAGES:
            assert (PACKAGE / span).exists(), span


def test_every_citation_is_in_the_references():
    citation = re.compile(
        r"(?<!, )\b([A-Z][\w-]+(?: & [A-Z][\w-]+| et al\.)),? \(?((?:19|20)\d\d)\b"
    )
    entries = {*citation.findall(fold((DOCS / "references.md").read_text()))}
    files = [*FILES, *PACKAGE.rglob("*.py"), *CONFIGS.rglob("*.yaml"), *DOCS.glob("tutorials/*.py")]
    texts = [fold(" ".join(file.read_text().split())) for file in files]
    citations = {pair for text in texts for pair in citation.findall(text)}
    assert citations == entries and len(entries) > 35


def fold(text):
    """Return `text` without accents."""
    return "".join(one for one in unicodedata.normalize("NFD", text) if one.isascii())


@pytest.mark.slow
@pytest.mark.parametrize(
    "file",
    # tests/test_tutorials.py runs the blocks of extending.md.
    [file for file in FILES if PYTHON.search(file.read_text()) and file.name != "extending.md"],
    ids=name,
)
def test_python_blocks_run(file, tiny, tmp_path, monkeypatch):
    """Run the blocks of a page in order, in one namespace; networks and trainings are tiny."""
    compose = ddpm_lab.compose

    def compose_tiny(*overrides):
        words = [word for word in overrides if not word.startswith("trainer.max_steps=")]
        keys = {word.partition("=")[0] for word in words}
        short = (word for word in FAST if word.partition("=")[0] not in keys)
        return compose(*short, *words)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ddpm_lab, "compose", compose_tiny)
    text = file.read_text()
    namespace = {"__name__": "__main__"}
    for block in python_blocks(file):
        line = text[: block.start(1)].count("\n")
        run = re.compile(r"""(?<=["'])(DIR|runs/[^"']*)(?=["'])""")
        code = run.sub(lambda match: str(tiny()), block[1])
        exec(compile("\n" * line + code, name(file), "exec"), namespace)


@pytest.mark.slow
def test_site_builds_without_warnings(tmp_path):
    for package in ("sphinx", "furo", "myst_nb", "jupytext"):
        pytest.importorskip(package, reason="is in the dependency group docs")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    process = subprocess.run(
        [*command, "-d", tmp_path / "doctrees", DOCS, tmp_path / "html"],
        env=os.environ | {"DDPM_LAB_DOCS_EXECUTION": "off"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    pages = {str(page.relative_to(tmp_path / "html")) for page in tmp_path.rglob("*.html")}
    assert {"index.html", "concepts.html", "reference/configs/sampler.html"} <= pages
    assert "reference/api/ddpm_lab.diffusion.samplers.html" in pages
