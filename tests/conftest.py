from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

# The tests' tensors are small: on a machine that does other things as well, threads would wait for one another.
torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"


def options(group: str) -> list[str]:
    """The choices of a config group."""
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


def composed(*overrides: str, verb: str = "train"):
    """The configuration that the command line would make."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(verb, overrides=list(overrides))


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """The folder of a text encoder as `transformers` saves it, of a few thousand random parameters."""
    transformers = pytest.importorskip("transformers", reason="is the extra of conditioner=pretrained_text")
    where = tmp_path_factory.mktemp("pretrained")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz0123456789",
             *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]  # fmt: skip
    (where / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    shape = transformers.BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                    intermediate_size=32, max_position_embeddings=64)  # fmt: skip
    transformers.BertModel(shape).save_pretrained(where)
    transformers.BertTokenizer(str(where / "vocab.txt")).save_pretrained(where)
    return where


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
