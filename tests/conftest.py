import copy
import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.config_repository import ConfigRepository
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from ddpm_lab.cli import main

# The tests' tensors are small: on a machine that does other things as well, threads would wait for one another.
torch.set_num_threads(1)

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
    """The choices of a config group."""
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


def composed(*overrides: str, verb: str = "train"):
    """The configuration that the command line would make."""
    if verb != "train":  # the others depend on the run that was offered last
        return _composed.__wrapped__(verb, overrides)
    return copy.deepcopy(_composed(verb, overrides))


@lru_cache(maxsize=512)
def _composed(verb, overrides):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(verb, overrides=list(overrides))


@pytest.fixture(autouse=True, scope="session")
def _configs_are_read_once():
    """Hydra reads every file anew for each composition, a third of its time; here, once while the file is the same."""
    real, known = ConfigRepository.load_config, {}

    def load(self, config_path):
        source = next((source for source in self.sources if source.is_config(config_path)), None)
        if type(source).__name__ != "FileConfigSource":
            return real(self, config_path)
        file = Path(source.path, source._normalize_file_name(config_path))
        key = (file, file.stat().st_mtime_ns, file.stat().st_size)
        if key not in known:
            known[key] = real(self, config_path)
        return copy.deepcopy(known[key])  # which composing writes to

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigRepository, "load_config", load)
        yield


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """The folder of a text encoder as `transformers` saves it, of a few thousand random parameters."""
    transformers = pytest.importorskip(
        "transformers", reason="is the extra of conditioner=pretrained_text"
    )
    where = tmp_path_factory.mktemp("pretrained")
    overrides = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghijklmnopqrstuvwxyz0123456789",
        *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"),
    ]
    (where / "vocab.txt").write_text("\n".join(overrides))
    torch.manual_seed(0)
    shape = transformers.BertConfig(
        vocab_size=len(overrides),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    transformers.BertModel(shape).save_pretrained(where)
    transformers.BertTokenizer(str(where / "vocab.txt")).save_pretrained(where)
    return where


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Statistics that an earlier version of the code kept are not found, nor places that were trained on."""
    os.environ["DDPM_LAB_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def typed():
    """Calls a verb in this process: (exit status, standard output, standard error)."""

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
    """Return the run of ten steps that words of train.py make, trained at their first use. It is only read."""
    made = {}

    def run(*overrides):
        if overrides not in made:
            where = tmp_path_factory.mktemp("tiny") / "r"
            status, _, error = typed("train", *FAST, *overrides, f"hydra.run.dir={where}")
            assert status == 0, error
            made[overrides] = where
        return made[overrides]

    return run


def there_and_back(typed, trained, tmp_path):
    """What decoding makes of what encoding kept is what encoding itself decoded."""
    assert typed("sample", trained, "mode=encode", "count=2", f"hydra.run.dir={tmp_path}/x")[0] == 0
    given = f"input={tmp_path}/x/x_T.npz"
    status, _, error = typed("sample", trained, "mode=decode", given, f"hydra.run.dir={tmp_path}/y")
    assert status == 0, error
    pixels = np.asarray(Image.open(tmp_path / "x" / "grid.png"))[4:, 4:, 0]
    for i, image in enumerate(
        np.load(tmp_path / "y" / "samples.npz")["images"]
    ):  # the grid's rows are threes
        shown = pixels[68 * i :][:64:8, 2 * 68 :][:, :64:8]
        assert np.abs(shown.astype(int) - image[..., 0]).max() <= 1
