"""What must stay true of the code and the documents as such."""

import ast
import re
import runpy
import shlex

import pytest
from conftest import ROOT, composed

from ddpm_lab.commands import main
from ddpm_lab.commands.spec import names

PACKAGE = ROOT / "src" / "ddpm_lab"
# Imports go down this list only; names on one line may import one another.
LAYERS = [
    ("errors", "shell", "ranks", "pulse", "writing", "pickled", "trust"),
    ("reports",),
    ("diffusion", "networks"),
    ("conditioners", "low_res"),
    ("data",),
    ("codecs",),
    ("systems",),
    ("evaluation",),
    ("callbacks", "loggers"),
    ("commands",),
]


def layer(name):
    return next((i for i, names in enumerate(LAYERS) if name in names), None)


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down_only(file):
    here = layer(file.relative_to(PACKAGE).parts[0].removesuffix(".py"))
    for name in imports(file):
        parts = name.split(".")
        if parts[0] == "ddpm_lab" and len(parts) > 1 and here is not None:
            assert layer(parts[1]) <= here, f"{name} lies above"
        if parts[0] in ("hydra", "omegaconf"):
            assert "commands" in file.parts, "Hydra is known only in commands/"
        if parts[0] == "lightning":
            assert here is not None and here >= layer("data"), "the mathematics is torch only"
        if "networks" in file.parts and parts[:2] == ["ddpm_lab", "diffusion"]:
            assert parts[2] == "condition", "networks know nothing of diffusion but the condition"


def test_files_are_of_one_idea():
    long = {str(file): count for file in PACKAGE.rglob("*.py") if (count := len(file.read_text().splitlines())) > 250}
    assert long == {}


def test_constraints_are_plain_pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.!+]+( ; .+)?", line) for line in lines) and len(lines) > 50


def documented():
    for file in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for line in re.findall(r"^\s*python train\.py(.*)$", file.read_text(), re.M):
            yield file.name, line.partition("#")[0].strip()


@pytest.mark.parametrize(("file", "arguments"), sorted(set(documented())))
def test_documented_commands_compose(file, arguments):
    verb, overrides = main.arranged(shlex.split(arguments))
    overrides = [word for word in overrides if word != "-m"]
    fixed = [word for word in overrides if not re.search(r"=(tag|interval|choice|range)\(", word)]
    composed(*[re.sub(r"^([\w.]+=)([^\[,]+),.*", r"\1\2", override) for override in fixed], verb=verb)
    if verb == "ablate":
        name = re.search(r"ablation=(\w+)", arguments)[1]
        assert name == "all" or name in names()


def test_every_known_slip_can_still_be_made():
    mutants = runpy.run_path(str(ROOT / "scripts" / "mutants.py"))["MUTANTS"]
    lost = [mutant.name for mutant in mutants if (PACKAGE / mutant.file).read_text().count(mutant.old) != 1]
    assert lost == [] and len({mutant.name for mutant in mutants}) == len(mutants) >= 70


@pytest.mark.parametrize(
    "file", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda file: str(file.relative_to(ROOT))
)
def test_links_lead_somewhere(file):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", file.read_text()):
        assert (file.parent / target).exists(), target
