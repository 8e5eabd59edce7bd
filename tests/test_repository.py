"""What must stay true of the code and the documents as such."""

import ast
import re
import runpy
import subprocess

import pytest
from conftest import ROOT

PACKAGE = ROOT / "src" / "ddpm_lab"
# Imports go down this list only; names on one line may import one another.
LAYERS = [
    ("errors", "shell", "ranks", "pulse", "writing", "trust"),
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


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE))
)
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
    long = {
        str(file): count
        for file in PACKAGE.rglob("*.py")
        if (count := len(file.read_text().splitlines())) > 250
    }
    assert long == {}


def test_constraints_are_plain_pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert (
        all(re.fullmatch(r"[\w.-]+==[\w.!+]+( ; .+)?", line) for line in lines) and len(lines) > 50
    )


def test_every_known_slip_can_still_be_made():
    script = runpy.run_path(str(ROOT / "scripts" / "mutants.py"))
    mutants, spans = script["MUTANTS"], script["spans"]
    lost = [
        mutant.name
        for mutant in mutants
        if len(spans(mutant.old, (PACKAGE / mutant.file).read_text())) != 1
    ]
    assert lost == [] and len({mutant.name for mutant in mutants}) == len(mutants) >= 70


def test_no_merge_is_left_half_done():
    listed = subprocess.run(
        ["git", "grep", "-lE", "^(<<<<<<<|>>>>>>>) "], cwd=ROOT, capture_output=True, text=True
    )
    assert listed.stdout == "" and listed.returncode in (1, 128), "128: not a checkout"
