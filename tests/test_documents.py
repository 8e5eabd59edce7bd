"""Documents: every command composes, every key, choice, target and file that they name exists."""

import re
import runpy
import shlex
import sys

import pytest
from conftest import CONFIGS, ROOT, composed, options
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf

from ddpm_lab.ablations.spec import names
from ddpm_lab.config import messages
from ddpm_lab.config import overrides as config_overrides
from ddpm_lab.runs import run_config

FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
GROUPS = {folder.name for folder in CONFIGS.iterdir() if folder.is_dir()}
COMMAND = re.compile(r"(?:\S+=\S+ )*(?:srun |\.venv/bin/)?(python|torchrun|make|ddpm-\w+) ")
NOTHING_TO_COMPOSE = ("--help", "--cfg job")


def code(file):
    """Lines of code blocks, and spans of code in sentences."""
    text = file.read_text()
    fence = re.compile(r"^```\w*\n(.*?)^```$", re.M | re.S)
    lines = "\n".join(fence.findall(text)).splitlines()
    rest = fence.sub("", text)
    lines += re.findall(r"^    (\S.*)$", rest, re.M)
    spans = [
        " ".join(span.split())
        for span in re.findall(r"`([^`]+)`", re.sub(r"^    \S.*$", "", rest, flags=re.M))
    ]
    return [re.sub(r"\s+#\s.*$", "", line.strip()) for line in lines], spans


def commands():
    """Commands by program, each once: ("train", words) for `python train.py WORDS`."""
    found = {}
    for file in FILES:
        lines, spans = code(file)
        for text in [*lines, *spans]:
            match = COMMAND.match(f"{text} ")
            if match and (overrides := shlex.split(text[match.end() :])):
                name = match[1] if match[1] in ("make", "torchrun") else overrides.pop(0)
                if name == "torchrun":
                    name, overrides = next(
                        (word, overrides[i + 1 :])
                        for i, word in enumerate(overrides)
                        if word.endswith(".py")
                    )
                found.setdefault(
                    (name.removesuffix(".py"), *overrides), str(file.relative_to(ROOT))
                )
    return found


COMMANDS = commands()


def of(*programs):
    return [
        pytest.param(*key[:1], key[1:], id=f"{file}: {' '.join(key)}")
        for key, file in sorted(COMMANDS.items())
        if key[0] in programs
    ]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """What stands for placeholders: `DIR` a run of a folder, `DIR2` one that enlarges images, `CONF` a folder of
    choices, `NAME` an ablation.
    """
    root = tmp_path_factory.mktemp("places")
    for name, overrides in {
        "DIR": ["data=folder", "data.path=IMAGES"],
        "DIR2": ["conditioner=low_res"],
    }.items():
        (root / name).mkdir()
        OmegaConf.save(composed(*overrides), root / name / "config.yaml")
    (root / "CONF" / "schedule").mkdir(parents=True)
    (root / "CONF" / "schedule" / "plateau.yaml").write_text("_target_: mylab.plateau\n")
    paths = {
        name: str(root / name)
        for name in ("CONF", "DIR", "DIR2", "SOURCE", "TARGET", "FOLDER", "SRC", "OUT")
    }
    store, shown = (
        ConfigStore.instance(),
        re.compile(r"^# configs/(\w+)/(\w+)\.yaml\n(.*?)^```", re.M | re.S),
    )
    examples = [found for file in FILES for found in shown.findall(file.read_text())]
    for group, name, text in examples:  # of choices that a user adds
        store.store(group=group, name=name, node=OmegaConf.create(text))
    yield paths | {"NAME": "ddim_table1", "...": "1"}
    for group, name, _ in examples:
        del store.repo[group][f"{name}.yaml"]


def filled(overrides, places):
    pattern = re.compile(
        "|".join(
            rf"(?<!\w){re.escape(name)}(?!\w)" for name in sorted(places, key=len, reverse=True)
        )
    )
    return [
        pattern.sub(lambda match: places[match[0]], word) for word in overrides if word != "..."
    ]


def first(text):
    """The first of the values that a word of a sweep has."""
    override = OverridesParser.create().parse_override(text)
    if not override.is_sweep_override():
        return text
    if override.is_interval_sweep() or override.is_choice_sweep():
        value = override.value()
        return f"{override.key_or_group}={value.start if override.is_interval_sweep() else value.list[0]}"
    return f"{override.key_or_group}={next(override.sweep_string_iterator())}"


def composes(verb, overrides, places):
    overrides = filled(overrides, places)
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
        at = overrides.index("--config-dir")
        overrides[at : at + 2] = [f"hydra.searchpath=[{overrides[at + 1]}]"]
    config = composed(*[first(word) for word in overrides if word != "-m"], verb=verb)
    if "ablations" in config and config.ablations is not None:
        assert config.ablations == "all" or config.ablations in names()


@pytest.mark.parametrize(("verb", "overrides"), of("train", "sample", "evaluate", "report"))
def test_commands_of_documents_compose(verb, overrides, places):
    if " ".join(overrides) not in NOTHING_TO_COMPOSE:
        composes(verb, overrides, places)


@pytest.mark.parametrize(
    ("script", "overrides"),
    of(*(f"scripts/{file.stem}" for file in ROOT.glob("scripts/[a-z]*.py"))),
)
def test_commands_of_scripts_parse(script, overrides, places, tmp_path, monkeypatch, capsys):
    file = ROOT / f"{script}.py"
    overrides = filled(overrides, places | {"TARGET": str(tmp_path / "TARGET")})
    if script.endswith("draw_schedules"):
        for choice, *schedule in map(str.split, overrides):
            composed(f"schedule={choice}", *(f"schedule.{word}" for word in schedule))
    elif script.endswith(
        "prepare_data"
    ):  # a path that is not there is the last thing that it looks at
        monkeypatch.setattr(sys, "argv", [file.name, *overrides])
        with pytest.raises(SystemExit):
            runpy.run_path(str(file), run_name="__main__")
        error = capsys.readouterr().err
        assert re.search(r"SOURCE=\S+ is not there|not the index", error), error
    else:
        known = file.read_text()
        for word in overrides:
            assert (
                "=" in word
                or word.startswith("/")
                or re.search(rf"\b{re.escape(word.lstrip('-'))}\b", known)
            ), word
        composed(*[word for word in overrides if "=" in word])


def test_no_command_of_documents_needs_an_activated_environment():
    for file in FILES:
        for text in [text for texts in code(file) for text in texts]:
            tools = r"(\w+=\S+ )*(pip|uv|pytest|ruff|mypy|torchrun|accelerate|ddpm-\w+|pre-commit|jupyter) \S"
            elsewhere = re.fullmatch(
                r"pip install -e (\.|'\.\[[\w,]+\]')", text
            )  # in an environment of one's own
            assert elsewhere or not re.match(tools, text), f"{file.name}: {text}"


def test_no_command_of_documents_is_overlooked():
    programs = {key[0] for key in COMMANDS}
    scripts = {f"scripts/{file.stem}" for file in ROOT.glob("scripts/[a-z]*.py")}
    own = {"train", "sample", "evaluate", "report", "make", "tests/test_user_paths"}
    assert programs <= scripts | own, programs
    assert len(COMMANDS) > 100 and programs >= {
        "train",
        "sample",
        "evaluate",
        "report",
        "make",
        "scripts/share",
    }


@pytest.mark.parametrize(("make", "overrides"), of("make"))
def test_targets_of_documents_are_in_the_makefile(make, overrides):
    targets = re.findall(r"^(\w+):.*##", (ROOT / "Makefile").read_text(), re.M)
    assert {word for word in overrides if "=" not in word} <= {*targets}


@pytest.fixture(scope="module")
def keys():
    """Every key that some configuration has, with its group before it."""
    found = set()

    def add(node, path):
        for key in node if isinstance(node, DictConfig) else []:
            inner = node._get_node(key)
            found.add(f"{path}{key}")
            add(inner, f"{path}{key}.")

    for file in CONFIGS.rglob("*.yaml"):
        content = OmegaConf.load(file)
        package = (
            ""
            if "@package _global_" in file.read_text()
            else ".".join(file.parent.relative_to(CONFIGS).parts)
        )
        if not isinstance(content, ListConfig):
            add(content, f"{package}." if package else "")
    add(OmegaConf.structured(HydraConf), "hydra.")
    return found


def named():
    """(file, key, value) for each `key=value`, `group=choice` and `group.key` of sentences and of lists of words."""
    found = set()
    for file in FILES:
        for span in code(file)[1]:
            overrides = re.sub(r"^(train|sample|evaluate|report)\.py ", "", span).split()
            if all(re.match(r"'?[a-z_]+([./][a-z_]+)*=", word) for word in overrides):
                found |= {
                    (str(file.relative_to(ROOT)), *word.strip("'").partition("=")[::2])
                    for word in overrides
                }
            elif (
                re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", span)
                and span.split(".")[0] in GROUPS | {"hydra"}
                and span != "prediction.gain"
            ):
                found.add((str(file.relative_to(ROOT)), span, None))
    return sorted(found, key=str)


@pytest.mark.parametrize(("file", "key", "value"), named())
def test_keys_and_choices_of_documents_exist(file, key, value, keys):
    group = key.split("/")[0]
    if key in GROUPS | {"hydra/launcher"}:
        choices = (
            {"all", "null"} | {path.stem for path in (CONFIGS / key).glob("*.yaml")} | {"basic"}
        )
        assert not value or {*value.split(",")} <= choices, f"{key}={value}"
    else:
        assert (
            key in keys | {"eta", "spacing", "key", "jobs", "dry"} or group == "hydra.launcher"
        ), key


def test_the_vocabulary_lists_every_choice():
    table = (ROOT / "README.md").read_text().partition("## The vocabulary")[2].partition("\n## ")[0]
    listed = {}
    for row in re.findall(r"^\| `(.*?)` \| (.*?) \| ", table, re.M):
        groups, choices = row[0].split("`, `"), re.sub(r"\(.*?\)", "", row[1])
        for group in groups:
            listed[group] = {*re.findall(r"\w+", choices)}
    missing = {group: sorted({*options(group)} - choices) for group, choices in listed.items()}
    assert {group: choices for group, choices in missing.items() if choices} == {}
    alone = {
        group: sorted(choices - {*options(group)})
        for group, choices in listed.items()
        if len(choices) > 3
    }
    assert {group: choices for group, choices in alone.items() if choices} == {}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_and_files_of_documents_are_there(file):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", file.read_text()):
        assert (file.parent / target).exists(), target
    for span in code(file)[1]:
        if re.fullmatch(r"(src|tests|scripts|docs|configs)/[\w./]+", span):
            assert (ROOT / span).exists(), span
