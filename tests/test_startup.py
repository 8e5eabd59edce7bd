"""Imports of the commands: sampling and evaluation need neither Lightning nor W&B."""

import subprocess
import sys

TRAINING_ONLY = ("lightning", "wandb", "torchmetrics", "torchvision")


def test_commands_without_training_do_not_import_its_libraries():
    code = "import sys\nfrom ddpm_lab.cli import analytic, evaluate, sample\nprint(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert "torch" in modules and {*TRAINING_ONLY}.isdisjoint(modules)


def test_the_entry_point_does_not_import_torch():
    code = "import sys, ddpm_lab.cli.main; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert {"torch", *TRAINING_ONLY}.isdisjoint(modules)
