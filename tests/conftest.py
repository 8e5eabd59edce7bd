import copy
import io
import os
import pickle
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
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


MERGE = "_compose_config_from_defaults_list"


@pytest.fixture(autouse=True, scope="session")
def _cheap_compositions():
    """Cache the parts of a Hydra composition that are the same in most commands.

    Hydra composes twice per command, reads every file again and copies it node by node.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigRepository, "load_config", _cached_load(ConfigRepository.load_config))
        patch.setattr(ConfigLoaderImpl, MERGE, _cached_merge(getattr(ConfigLoaderImpl, MERGE)))
        patch.setattr(OmegaConf, "load", staticmethod(_cached_yaml(OmegaConf.load)))
        patch.setattr(defaults_list, "_create_interpolation_map", _interpolation_map)
        patch.setattr(Hydra, "get_mode", _mode)
        yield


def _key(file):
    status = file.stat()
    return file, status.st_mtime_ns, status.st_size


def _cached_load(load_config):
    pickles = {}

    def load(self, config_path):
        source = next((source for source in self.sources if source.is_config(config_path)), None)
        if type(source).__name__ != "FileConfigSource":
            return load_config(self, config_path)
        key = _key(Path(source.path, source._normalize_file_name(config_path)))
        if key not in pickles:
            result = load_config(self, config_path)
            result.key = key
            pickles[key] = pickle.dumps(result)
        return pickle.loads(pickles[key])  # a copy, because composing writes to it

    return load


def _cached_merge(merge):
    pickles = {}

    def content(repo, path):
        loaded = path and repo.load_config(path)
        if not loaded or loaded.provider == "hydra":
            return None
        return getattr(loaded, "key", None) or pickle.dumps(loaded.config)

    def compose_tree(self, defaults, repo):
        key = tuple((repr(default), content(repo, default.config_path)) for default in defaults)
        if key not in pickles:
            pickles[key] = pickle.dumps(merge(self, defaults, repo))
        return pickle.loads(pickles[key])

    return compose_tree


def _cached_yaml(load_yaml):
    pickles = {}

    def load(file):
        if not isinstance(file, Path) or not file.is_relative_to(CONFIGS):
            return load_yaml(file)
        key = _key(file)
        if key not in pickles:
            pickles[key] = pickle.dumps(load_yaml(file))
        return pickle.loads(pickles[key])

    return load


def _interpolation_map(
    overrides, elements, self_added, create=defaults_list._create_interpolation_map
):
    if any(element.is_interpolation() for element in elements if not element.is_self()):
        return create(overrides, elements, self_added)
    return None


def _mode(self, config_name, overrides, get_mode=Hydra.get_mode):
    """Compose to find hydra.mode only where an override may set it."""
    if any(re.match(r"\W*(hydra\.mode|search)\b", override) for override in overrides):
        return get_mode(self, config_name, overrides)
    return None


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
