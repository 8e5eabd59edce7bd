"""Imports of the commands: none of libraries that take long and that the command does not need."""

import subprocess
import sys

import pytest

TRAINING_ONLY = {"lightning", "wandb", "torchmetrics", "torchvision"}
UNUSED = TRAINING_ONLY | {"torch._dynamo", "matplotlib.axes", "pandas", "scipy", "sklearn"}
TRAIN = "from ddpm_lab.cli.main import train\ntrain()"


def imports(code, *arguments):
    """Return the modules at the end of a process that runs `code`, in order of their imports."""
    code = f"import atexit, sys\natexit.register(lambda: print(*sys.modules))\n{code}"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, text=True, capture_output=True).stdout.split()


def test_commands_without_training_do_not_import_its_libraries():
    modules = imports("from ddpm_lab.cli import analytic, evaluate, sample")
    assert "torch" in modules and TRAINING_ONLY.isdisjoint(modules)


def test_the_entry_point_does_not_import_torch():
    modules = imports("import ddpm_lab.cli.main")
    assert "hydra" in modules and {"torch", *TRAINING_ONLY}.isdisjoint(modules)


@pytest.mark.slow
def test_sampling_images_imports_neither_plots_nor_compilers(tiny, tmp_path):
    code = "from ddpm_lab.cli.main import sample\nsample()"
    modules = imports(code, f"run={tiny()}", "count=1", f"out={tmp_path}", "weights=raw")
    assert (tmp_path / "samples.npz").is_file() and UNUSED.isdisjoint(modules)


@pytest.mark.slow
def test_training_imports_wandb_only_to_log(tmp_path):
    options = ["trainer=debug", "callbacks=none", "data=toy", "model=mlp", "logger=csv"]
    modules = imports(TRAIN, *options, f"hydra.run.dir={tmp_path}")
    assert (tmp_path / "metrics.json").is_file() and "wandb" not in modules


@pytest.mark.slow
def test_training_imports_the_interface_of_wandb_before_lightning():
    modules = imports(TRAIN, "seed=-1")  # an error after the imports
    assert modules.index("wandb.apis.public") < modules.index("lightning")
