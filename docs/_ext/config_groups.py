"""Pages of the config groups in docs/reference/configs.

They are generated from the yaml files, their comments, and the signatures of their targets.
"""

import inspect
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hydra.utils import get_object
from omegaconf import OmegaConf

from ddpm_lab.cli import analytic, sample
from ddpm_lab.config import validation
from ddpm_lab.utils.ranges import RELATIONS

CONFIGS = Path(__file__).parents[2] / "configs"
MEANINGS = {
    "schedule": "The table of alpha and sigma, t = 0..T. `geometric` is variance exploding.",
    "prediction": "The output of the network.",
    "variance": "The variance of a reverse step. `analytic` is estimated from a trained run.",
    "objective": "The training loss.",
    "timestep_sampler": "The distribution of t in training.",
    "sampler": "The sampling method, with `sampler.steps` steps. `ancestral` is `ddim` with "
    "`sampler.eta=1`. With `sampler.steps=null`, `sampler.spacing` is also `ddim25`, "
    "`'\"90,60,60,20,20\"'` or `'[1000,500,0]'`.",
    "guidance": "Guidance at sampling. `guidance.w` is the w of the papers, where 0 is off, and "
    "`guidance.scale` is 1 + w. `inpainting`, `dps` and `pigdm` are guidance by an image.",
    "conditioner": "The conditioning: a class, learned tokens, a caption, or the image at "
    "1 / `conditioner.factor` of its resolution with noise augmentation. `conditioner.dropout` "
    "enables classifier-free guidance.",
    "codec": "The space of the diffusion: the data, or the latents of the autoencoder of "
    "`codec.run`.",
    "model": "The network, built for the shape of the data. `auto` also derives its size. "
    "`classifier` is for `system=classifier`, `autoencoder_kl` and `autoencoder_vq` are for "
    "`system=autoencoder`, and `exact` is for `evaluate.py`.",
    "data": "Images or points: data sets of torchvision and of the Hugging Face Hub "
    "(`data.name=`), your own images (`data.path=`), or prepared ones.",
    "extractor": "The feature extractor of FID.",
    "metric": "The metrics of `evaluate.py`, selected by `metrics=[fid,nll]`. The options of each "
    "begin with its name, as in `nll.steps`.",
    "optimizer": "The optimizer.",
    "lr_schedule": "The schedule of the learning rate.",
    "system": "The Lightning module to train.",
    "experiment": "The full settings of a paper, or its choices on digits.",
    "ablation": "Tables and figures of papers, `python train.py ablation=NAME`.",
    "callbacks": "EMA, losses, checkpoints, images, metrics and progress.",
    "logger": "Loggers. CSV is always written. W&B is online if you are logged in, offline "
    "otherwise, and never prompts; if it fails, the run continues without it.",
    "trainer": "Lightning's trainer. `trainer.max_steps` is the length of training. `ddp` uses all "
    "GPUs of a machine, `slurm` all tasks of a job (`srun python train.py trainer=slurm`).",
    "search": "The search over a space of overrides.",
    "hydra/launcher": "The place where the jobs of a sweep run.",
    "hydra/sweeper": "The sampler of a search.",
}
"""Groups with their meanings, in the order of the pages"""
COMMANDS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "train": ("train.py", validation.SETTINGS),
    "sample": ("sample.py", sample.SETTINGS),
    "evaluate": ("evaluate.py", {}),
    "exact": ("evaluate.py model=exact", analytic.SETTINGS),
    "report": ("report.py", {}),
    "ablate": ("train.py ablation=NAME", {}),
}
"""Configs of commands, with the types of their keys"""
TYPES: dict[Any, str] = {
    type(None): "null",
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
}
PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}


def choices(group: str) -> list[str]:
    """Return the choices of a config group."""
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


def comments(text: str) -> tuple[str, dict[str, str]]:
    """Return the comment at the head of a yaml file, and the comment of each dotted key.

    The comment of a key is on its line, or on the lines above it.
    """
    head: list[str] = []
    result: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    lines: list[str] = []
    for line in text.splitlines():
        if comment := re.fullmatch(r" *# (.*)", line):
            if not comment[1].startswith("@package"):
                (lines if stack else head).append(comment[1])
        elif match := re.match(r"( *)([\w.]+):(?:\s|$)", line):
            stack = [(indent, key) for indent, key in stack if indent < len(match[1])]
            stack.append((len(match[1]), match[2]))
            inline = re.search(r"\s# (.*)$", line)
            words = [*lines, *([inline[1]] if inline else [])]
            result[".".join(key for _, key in stack)] = "; ".join(words)
            lines = []
    return " ".join(head), {key: text for key, text in result.items() if text}


def merged(group: str, choice: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the keys of a choice and their comments, with those of the choices it builds on."""
    file = CONFIGS / group / f"{choice}.yaml"
    node: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    bases = node.pop("defaults", [])
    texts = comments(file.read_text())[1]
    if "_self_" not in bases:
        bases = [*bases, "_self_"]
    keys: dict[str, Any] = {}
    notes: dict[str, str] = {}
    for base in bases:
        if base == "_self_":
            keys, notes = _merge(keys, node), notes | texts
        elif isinstance(base, str):
            other, other_notes = merged(group, base.partition("@")[0])
            keys, notes = _merge(keys, other), notes | other_notes
    return keys, notes


def _merge(base: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    both = base.keys() & update.keys()
    nested = {
        key: _merge(base[key], update[key])
        for key in both
        if isinstance(base[key], dict) and isinstance(update[key], dict)
    }
    return base | update | nested


def selected(group: str, choice: str) -> list[str]:
    """Return the choices of other groups that a choice selects, such as "data=cifar10"."""
    node: Any = OmegaConf.load(CONFIGS / group / f"{choice}.yaml")
    bases = node.get("defaults", []) if OmegaConf.is_dict(node) else []
    pairs = [pair for base in bases if not isinstance(base, str) for pair in base.items()]
    return [
        f"{key.removeprefix('override ').lstrip('/').partition('@')[0]}={value}"
        for key, value in pairs
    ]


def package(group: str, choice: str) -> str:
    """Return the prefix of the keys of a choice: "sampler.", or "" for settings of all groups."""
    file = CONFIGS / group / f"{choice}.yaml"
    match = re.search(r"^# @package (\S+)", file.read_text(), re.M)
    name = match[1] if match else group.replace("/", ".")
    return "" if name == "_global_" else f"{name}."


def rows(
    node: Mapping[str, Any], prefix: str, types_of_keys: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
    """Yield key, default and type of each key below `node`."""
    annotations = signature(node["_target_"]) if "_target_" in node else {}
    for key, value in node.items():
        if key.startswith("_"):
            continue
        if isinstance(value, dict) and value:
            if "_target_" in value:
                yield f"{prefix}{key}", f"`{value['_target_']}`", ""
            yield from rows(value, f"{prefix}{key}.", types_of_keys)
            continue
        annotation = types_of_keys.get(f"{prefix}{key}", annotations.get(key))
        yield f"{prefix}{key}", format_value(value), describe(annotation)


def signature(target: str) -> dict[str, Any]:
    """Return the annotations of the parameters of a `_target_`."""
    parameters = inspect.signature(get_object(target)).parameters.values()
    return {
        parameter.name: parameter.annotation
        for parameter in parameters
        if parameter.annotation is not parameter.empty
    }


def describe(annotation: Any) -> str:
    """Return the type and range of an annotation in words, "" if it has no annotation."""
    if annotation is None or isinstance(annotation, str):
        return ""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = [
            f"{words} {bound:g}"
            for metadata in arguments[1:]
            for name, (_, words) in RELATIONS.items()
            if (bound := getattr(metadata, name, None)) is not None
        ]
        return f"{describe(arguments[0])} {' and '.join(limits)}".strip()
    if origin in (Union, types.UnionType):
        return " or ".join(filter(None, map(describe, arguments)))
    if origin is Literal:
        return ", ".join(f"`{argument}`" for argument in arguments)
    if origin in (list, tuple, Sequence):
        names = {PLURALS.get(argument) for argument in arguments if argument is not Ellipsis}
        return f"list of {names.pop() or 'values'}" if len(names) == 1 else "list"
    return TYPES.get(annotation, "")


def format_value(value: Any) -> str:
    """Return a value as yaml, "required" for a key without default."""
    if value == "???":
        return "required"
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    return str(value) if value != "" else '""'


def first_paragraph(target: object) -> str:
    """Return the first paragraph of a docstring, in one line."""
    return " ".join((inspect.getdoc(target) or "").partition("\n\n")[0].split())


def to_markdown(text: str) -> str:
    """Escape plain text with `code` spans for a Markdown table."""
    parts = re.split(r"(`[^`]+`)", text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"[\\*_|<>$\[\]{}~]", r"\\\g<0>", parts[i])
    return "".join(parts)


def table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table without the columns that are empty."""
    used = [i for i in range(len(header)) if any(row[i] for row in cells)]
    lines = [[header[i] for i in used], ["---"] * len(used)]
    lines += [[row[i] for i in used] for row in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def choice_section(group: str, choice: str) -> str:
    """Return the section of one choice."""
    file = CONFIGS / group / f"{choice}.yaml"
    head, _ = comments(file.read_text())
    paragraphs = [f"## {choice}", to_markdown(head)]
    if group == "ablation":
        node = OmegaConf.load(file)
        text = f"{node.title}. {node.source}." if "title" in node else ""
        return "\n\n".join(filter(None, [*paragraphs, to_markdown(text)])) + "\n"
    keys, notes = merged(group, choice)
    if target := keys.get("_target_"):
        own = target.startswith(("ddpm_lab.", "hydra_plugins."))
        text = first_paragraph(get_object(target)) if own else ""
        paragraphs.append(f"`{target}`: {to_markdown(text)}" if text else f"`{target}`")
    if words := selected(group, choice):
        paragraphs.append(f"Selects {', '.join(f'`{word}`' for word in words)}.")
    prefix = package(group, choice)
    header = ("key", "default" if prefix else "value", "type", "meaning")
    cells = [
        (f"`{key}`", default, kind, to_markdown(notes.get(key.removeprefix(prefix), "")))
        for key, default, kind in rows(keys, prefix, validation.SETTINGS if prefix else {})
    ]
    if cells:
        paragraphs.append(table(header, cells))
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def group_page(group: str) -> str:
    """Return the page of a group."""
    default = _defaults().get(group)
    usage = f" The default of `train.py` is `{group}={default}`." if default else ""
    sections = "\n".join(choice_section(group, choice) for choice in choices(group))
    return f"# {group}\n\n{MEANINGS[group]}{usage}\n\n{sections}"


def command_page() -> str:
    """Return the page of the keys that belong to a command and to no group."""
    text = "# Commands\n\nKeys of the commands. The keys of groups are on their own pages.\n"
    for name, (command, settings) in COMMANDS.items():
        file = CONFIGS / f"{name}.yaml"
        node: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        notes = comments(file.read_text())[1]
        keys = {key: value for key, value in node.items() if key not in ("defaults", "hydra")}
        cells = [
            (f"`{key}`", default, kind, to_markdown(notes.get(key, "")))
            for key, default, kind in rows(keys, "", settings)
        ]
        text += f"\n## {command}\n\n" + table(("key", "default", "type", "meaning"), cells)
    return text


def page_name(group: str) -> str:
    """Return the name of the page of a group, without suffix."""
    return group.replace("/", "-")


def pages() -> dict[str, str]:
    """Return the text of each page by its file name."""
    cells = [
        (
            f"[`{group}`]({page_name(group)}.md)",
            ", ".join(f"[{choice}]({page_name(group)}.md#{choice})" for choice in choices(group)),
            meaning,
        )
        for group, meaning in MEANINGS.items()
    ]
    names = "\n".join(map(page_name, MEANINGS))
    index = (
        "# Config groups\n\nEach choice is a file `configs/GROUP/CHOICE.yaml`, selected by "
        "`GROUP=CHOICE`. A key is changed by `GROUP.KEY=VALUE`.\n\n"
        + table(("group", "choices", "meaning"), cells)
        + f"\n```{{toctree}}\n:hidden:\n\ncommands\n{names}\n```\n"
    )
    groups = {f"{page_name(group)}.md": group_page(group) for group in MEANINGS}
    return {"index.md": index, "commands.md": command_page()} | groups


def _defaults() -> dict[str, str]:
    node: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / "train.yaml"), resolve=False)
    return {
        key: value
        for base in node["defaults"]
        if isinstance(base, dict)
        for key, value in base.items()
        if value is not None and key != "hydra"
    }


def write_pages(folder: Path, texts: Mapping[str, str]) -> None:
    """Write pages to `folder`, remove others there, and leave files that do not change."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.md"):
        if file.name not in texts:
            file.unlink()
    for name, text in texts.items():
        file = folder / name
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


def write(app: Any) -> None:
    write_pages(Path(app.srcdir) / "reference" / "configs", pages())


def setup(app: Any) -> dict[str, bool]:
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
