"""One page per public module in docs/reference/api, which autodoc fills from docstrings."""

import importlib
import inspect
from pathlib import Path
from typing import Any

import config_groups

import ddpm_lab

PACKAGES = {
    "diffusion": "The mathematics, with torch only",
    "networks": "Networks, with torch only",
    "conditioners": "From a batch to a condition",
    "sampling": "From conditions to images",
    "data": "Data sets",
    "evaluation": "Metrics",
}
MODULES = {
    "data": [
        "datasets",
        "digits",
        "huggingface",
        "image_folder",
        "module",
        "shards",
        "synthetic",
        "torchvision_datasets",
        "toy",
    ],
    "evaluation": [
        "extractors",
        "feature_metrics",
        "fid",
        "metrics",
        "nll",
        "ode_nll",
        "reconstruction",
        "sample_quality",
    ],
}
"""Public modules of a package; all modules of the packages without an entry"""
ERRORS = [
    *("CLIError", "UserError", "UnsafeFileError", "CorruptFileError"),
    *("ResourceError", "DivergenceError", "InterruptedRunError"),
]
INTERFACE = ["load", "compose", "train", "share", "Model", "Samples", *ERRORS]
"""Names that the page of `ddpm_lab` documents in full; the page of their module has the others"""
AUTODOC = "```{{eval-rst}}\n.. auto{kind}:: {name}\n```\n"


def modules(package: str) -> list[str]:
    """Return the names of the public modules of a package."""
    folder = Path(ddpm_lab.__file__).parent / package
    return MODULES.get(package) or sorted(file.stem for file in folder.glob("[a-z]*.py"))


def pages() -> dict[str, str]:
    """Return the text of each page by its file name."""
    result = {"ddpm_lab.md": _interface()}
    index = "# Python API\n\n```{toctree}\nddpm_lab\n```\n"
    for package, subject in PACKAGES.items():
        names = [f"ddpm_lab.{package}.{module}" for module in modules(package)]
        listing = "\n".join(names)
        index += f"\n## {package}\n\n{subject}.\n\n```{{toctree}}\n:maxdepth: 1\n\n{listing}\n```\n"
        for name in names:
            title = name.removeprefix("ddpm_lab.")
            result[f"{name}.md"] = f"# {title}\n\n{AUTODOC.format(kind='module', name=name)}"
    return result | {"index.md": index}


def _interface() -> str:
    """Return the page of the names that `import ddpm_lab` provides."""
    text = "# ddpm_lab\n\nNames of `import ddpm_lab`. They are imported on first use.\n\n"
    rows = []
    for name in sorted(ddpm_lab.__all__, key=str.lower):
        value = getattr(ddpm_lab, name)
        module = value.__name__ if inspect.ismodule(value) else value.__module__
        title = module.removeprefix("ddpm_lab.")
        link = f"[`{title}`]({module}.md)" if module in _documented() else "below"
        summary = config_groups.to_markdown(config_groups.first_paragraph(value))
        rows.append((f"`{name}`", summary, link))
    text += config_groups.table(("name", "", "module"), rows)
    for name in INTERFACE:
        kind = "class" if inspect.isclass(getattr(ddpm_lab, name)) else "function"
        text += f"\n## {name}\n\n{AUTODOC.format(kind=kind, name=f'ddpm_lab.{name}')}"
    return text


def _documented() -> set[str]:
    return {f"ddpm_lab.{package}.{name}" for package in PACKAGES for name in modules(package)}


def write(app: Any) -> None:
    """Write the pages. Raises ImportError for a module that cannot be imported."""
    for package in PACKAGES:
        for module in modules(package):
            importlib.import_module(f"ddpm_lab.{package}.{module}")
    config_groups.write_pages(Path(app.srcdir) / "reference" / "api", pages())


def setup(app: Any) -> dict[str, bool]:
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
