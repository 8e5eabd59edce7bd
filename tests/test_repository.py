"""Rules for the code base: imports, file sizes, mutations, constraints."""

import ast
import graphlib
import re
import runpy
import subprocess
import sys

import pytest
from conftest import CONFIGS, ROOT, _composed
from omegaconf import OmegaConf

PACKAGE = ROOT / "src" / "ddpm_lab"
# Imports go down this list only.
PACKAGES = (
    "utils",
    "reports",
    "diffusion",
    "networks",
    "conditioners",
    "data",
    "sampling",
    "systems",
    "evaluation",
    "callbacks",
    "config",
    "runs",
    "interop",
    "explorer",
    "sweeps",
    "ablations",
    "cli",
)
HYDRA_PACKAGES = PACKAGES[PACKAGES.index("config") :]
MODULES = {
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): file
    for file in PACKAGE.rglob("*.py")
}


def imports(file):
    """Yield each module that `file` imports, at any depth of its code."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in names)


@pytest.mark.parametrize("file", MODULES.values(), ids=MODULES)
def test_imports_go_down_only(file):
    package = file.relative_to(PACKAGE).parts[0]
    if package not in PACKAGES:
        return
    for name in imports(file):
        parts = name.split(".")
        if parts[0] == "ddpm_lab" and len(parts) > 1:
            assert PACKAGES.index(parts[1]) <= PACKAGES.index(package), (
                f"{name} is above {package}/"
            )
        if parts[0] in ("hydra", "omegaconf"):
            assert package in HYDRA_PACKAGES, f"{package}/ does not import Hydra"
        if parts[0] == "lightning":
            assert package in ("systems", "callbacks", "config", "cli"), (
                f"{package}/ is free of Lightning"
            )
        if package == "networks" and parts[:2] == ["ddpm_lab", "diffusion"]:
            assert parts[2] == "conditioning", (
                "networks import nothing of diffusion but the condition"
            )


def test_no_import_cycles():
    graph = {name: set(imports(file)) & set(MODULES) - {name} for name, file in MODULES.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the files


def test_files_are_short():
    long = {
        str(file): count
        for file in PACKAGE.rglob("*.py")
        if (count := len(file.read_text().splitlines())) > 400
    }
    assert long == {}


def test_constraints_are_plain_pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert (
        all(re.fullmatch(r"[\w.-]+==[\w.!+]+( ; .+)?", line) for line in lines) and len(lines) > 50
    )


def test_every_mutation_matches_the_code_once():
    script = runpy.run_path(str(ROOT / "scripts" / "mutants.py"))
    mutants, spans = script["MUTANTS"], script["spans"]
    lost = [
        mutant.name
        for mutant in mutants
        if len(spans(mutant.old, (PACKAGE / mutant.file).read_text())) != 1
    ]
    assert lost == [] and len({mutant.name for mutant in mutants}) == len(mutants) >= 70


def test_no_merge_conflict_markers():
    output = subprocess.run(
        ["git", "grep", "-lE", "^(<<<<<<<|>>>>>>>) "], cwd=ROOT, capture_output=True, text=True
    )
    assert output.stdout == "" and output.returncode in (1, 128), "128: not a checkout"


def test_cached_compositions_equal_those_of_hydra():
    overrides = ("experiment=digits_cfg", "optimizer.lr=1", "+guidance.extra=2")
    code = f"""
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
with initialize_config_dir({str(CONFIGS)!r}, version_base="1.3"):
    print(OmegaConf.to_yaml(compose("train", overrides={[*overrides]})), end="")
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    for _ in range(2):  # from files, then from the caches
        config = _composed.__wrapped__("train", overrides)
        assert OmegaConf.to_yaml(config) == process.stdout, process.stderr
