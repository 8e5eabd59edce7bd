"""Features of DINOv2, from a network with random weights."""

import pytest
import torch
from torch.nn.functional import interpolate

from ddpm_lab.evaluation.dinov2 import dinov2
from ddpm_lab.utils.errors import UserError

transformers = pytest.importorskip("transformers", reason="is the extra of extractor=dinov2")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of a small DINOv2 as `transformers` saves it."""
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dinov2")
    transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


def test_features_are_the_class_token_of_normalized_images(model):
    extractor = dinov2(str(model))
    pixels = torch.randint(256, (2, 3, 20, 30), dtype=torch.uint8)
    images = interpolate(pixels / 255, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = ((images.movedim(1, 3) - mean) / std).movedim(3, 1)
    network = transformers.Dinov2Model.from_pretrained(model).eval()
    token = network(images).last_hidden_state[:, 0]
    torch.testing.assert_close(extractor.features(pixels), token, rtol=1e-4, atol=1e-5)
    gray = pixels[:, :1]
    same = extractor.features(gray), extractor.features(gray.expand(-1, 3, -1, -1))
    torch.testing.assert_close(*same)
    assert extractor.sha256 == dinov2(str(model)).sha256 and extractor.features.num_features == 16


def test_images_of_four_channels_are_refused(model):
    with pytest.raises(UserError, match=r"takes images of 1 or 3 channels \(got 4\)"):
        dinov2(str(model)).check((4, 8, 8))


def test_fid_has_the_name_and_resizing_of_the_features(model, tiny, typed):
    options = ("extractor=dinov2", f"extractor.model={model}", "count=20")
    status, out, err = typed("evaluate", f"run={tiny()}", *options)
    assert status == 0, err
    assert "(features: dinov2)" in out


def test_weights_that_are_not_at_hand_are_explained_in_a_line(tiny, typed, monkeypatch, tmp_path):
    options = ("extractor=dinov2", f"extractor.model={tmp_path}", "count=20")
    status, _, err = typed("evaluate", f"run={tiny()}", *options)
    assert status == 2 and f"extractor.model={tmp_path} cannot be read or downloaded" in err
    assert "hf download facebook/dinov2-large --local-dir DIR" in err and err.count("\n") == 1


def test_the_text_of_the_library_ends_at_a_sentence(tiny, typed, monkeypatch):
    def fail(*_, **__):
        raise OSError(f"{'No connection ' * 20}to the hub. Check\nthe network.")

    monkeypatch.setattr(transformers.Dinov2Model, "from_pretrained", fail)
    status, _, err = typed("evaluate", f"run={tiny()}", "extractor=dinov2", "count=20")
    message = "extractor.model=facebook/dinov2-large cannot be read or downloaded (No connection"
    assert status == 2 and message in err
    assert "to the hub); try extractor.model=DIR, with the config.json" in err
