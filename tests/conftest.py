import gc
import io
import os
import pickle
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import lru_cache
from pathlib import Path

import hydra_cache
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from ddpm_lab.cli import main
from ddpm_lab.reports.grids import GAP

# Tensors are small here, so threads would only wait for one another, also in child processes.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
FAST = (
    "trainer=debug",
    "logger=csv",
    "model.channels=8",
    "model.multipliers=[1]",
    "sampler.steps=3",
    "callbacks.fid.count=20",
    "callbacks.sample_grid.every=5",
    "callbacks.losses.every=5",
    "data.batch_size=16",
)


def options(group: str) -> list[str]:
    """Return the choices of a config group."""
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


def composed(*overrides: str, verb: str = "train"):
    """Return a copy of the configuration that the command line would compose."""
    if verb != "train":  # other verbs depend on the run registered last
        return _composed.__wrapped__(verb, overrides)
    return pickle.loads(pickle.dumps(_composed(verb, overrides)))  # faster than deepcopy


@lru_cache(maxsize=512)
def _composed(verb, overrides):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(verb, overrides=list(overrides))


def pytest_configure(config):
    """Install the caches before test files are imported, because some compose at import."""
    patch = pytest.MonkeyPatch()
    hydra_cache.install(patch, CONFIGS)
    config.add_cleanup(patch.undo)
    gc.disable()  # imports create a million objects that stay


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items):
    """Mark as slow what runs commands in this process; `make check` is lint and mathematics."""
    for item in items:
        if "typed" in item.fixturenames:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """Folder of a text encoder as `transformers` saves it, with random weights."""
    transformers = pytest.importorskip(
        "transformers", reason="is the extra of conditioner=pretrained_text"
    )
    folder = tmp_path_factory.mktemp("pretrained")
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghijklmnopqrstuvwxyz0123456789",
        *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"),
    ]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    shape = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    transformers.BertModel(shape).save_pretrained(folder)
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Hide cached statistics and trusted paths of earlier sessions."""
    os.environ["DDPM_LAB_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def typed():
    """Function that runs a verb in this process: (exit status, standard output, standard error)."""

    def call(verb, *arguments):
        GlobalHydra.instance().clear()
        status, out, err = 0, io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "argv", [f"{verb}.py", *arguments])
            try:
                getattr(main, verb)()
            except SystemExit as ended:
                status = ended.code
        return status, out.getvalue(), err.getvalue()

    return call


@pytest.fixture(scope="session")
def tiny(typed, tmp_path_factory):
    """Function that returns the run of ten steps for overrides of train.py. Do not write to it.

    A run is trained at its first use, once per session.
    """
    runs = {}

    def run(*overrides):
        if overrides not in runs:
            folder = tmp_path_factory.mktemp("tiny") / "r"
            status, _, error = typed("train", *FAST, *overrides, f"hydra.run.dir={folder}")
            assert status == 0, error
            runs[overrides] = folder
        return runs[overrides]

    return run


def assert_decode_inverts_encode(typed, trained, tmp_path):
    """Assert that decoding an encoding returns the images that `mode=encode` itself decoded."""
    assert typed("sample", trained, "mode=encode", "count=2", f"hydra.run.dir={tmp_path}/x")[0] == 0
    latents = f"input={tmp_path}/x/x_T.npz"
    status, _, error = typed(
        "sample", trained, "mode=decode", latents, f"hydra.run.dir={tmp_path}/y"
    )
    assert status == 0, error
    grid = np.asarray(Image.open(tmp_path / "x" / "grid.png"))[4:, 4:, 0]
    images = np.load(tmp_path / "y" / "samples.npz")["images"]
    for i, image in enumerate(images):  # groups of (image, latent, decoded) in one row
        decoded = grid[:64:8, i * (3 * 68 + GAP) + 2 * 68 :][:, :64:8]
        assert np.abs(decoded.astype(int) - image[..., 0]).max() <= 1
