"""Runs as ONNX graphs: onnxruntime gives the numbers of torch."""

import json
import re

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import ddpm_lab
from ddpm_lab.cli.export_weights import export_weights
from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.interop import onnx_export
from ddpm_lab.utils.errors import UserError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("overrides", "classes"),
    [
        ((), 10),
        (("prediction=v", "conditioner=none", "variance=learned_range", "objective=hybrid"), 0),
        pytest.param(("schedule=edm", "prediction=v"), 10, marks=pytest.mark.nightly),
    ],
)
@torch.no_grad()
def test_any_batch_has_the_outputs_of_torch(overrides, classes, tiny, tmp_path):
    run = tiny(*overrides)
    export_weights(run, tmp_path / "export", ["format=onnx"])
    model = ddpm_lab.load(run)
    denoiser = model.denoiser.eval()
    session = onnxruntime.InferenceSession(tmp_path / "export" / "model.onnx")
    schedule = json.loads((tmp_path / "export" / "schedule.json").read_text())
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 7):
        x = torch.randn(size, *model.shape, generator=generator)
        t = torch.randint(1, denoiser.process.steps + 1, (size,), generator=generator)
        inputs, cond = {"x": x.numpy(), "t": t.numpy()}, Condition()
        if classes:
            label = torch.randint(-1, classes, (size,), generator=generator)
            label[0] = -1 if size > 1 else 0  # no class
            inputs["label"] = label.numpy()
            cond = Condition(label.clamp(min=0), dropped=label < 0)
        eps, x0 = session.run(None, inputs)
        expected = denoiser(x, t, cond).x0
        alpha, sigma = (
            torch.tensor(schedule[name], dtype=torch.float64)[t] for name in ("alpha", "sigma")
        )
        shape = (-1, *[1] * len(model.shape))
        # An error of x_0 is one of eps / scale; float32 has 7 digits.
        scale = (alpha / sigma).clamp(max=100).view(shape)
        assert (scale * (torch.from_numpy(x0) - expected)).abs().max() < 1e-5
        torch.testing.assert_close(
            alpha.view(shape) * torch.from_numpy(x0) + sigma.view(shape) * torch.from_numpy(eps),
            x.double(),
            atol=1e-4,
            rtol=1e-5,
        )
    assert schedule["max_difference"] < 1e-5 and schedule["shape"] == [*model.shape]
    assert len(schedule["alpha"]) == denoiser.process.steps + 1


def test_the_code_of_the_model_card_samples(tiny, tmp_path):
    export_weights(tiny(), tmp_path / "export", ["format=onnx"])
    code = re.search(r"```python\n(.*?)```", (tmp_path / "export" / "README.md").read_text(), re.S)
    names = {}
    exec(code[1], names)
    assert names["x"].shape == (4, 1, 8, 8) and np.isfinite(names["x"]).all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("conditioner=text",), "cannot be exported, because it takes context besides x_t"),
        (("model.self_conditioning=true",), "because it takes its previous estimate"),
    ],
)
def test_other_inputs_are_refused(overrides, message, tiny, tmp_path):
    with pytest.raises(UserError, match=message):
        export_weights(tiny(*overrides), tmp_path / "export", ["format=onnx"])
    assert not (tmp_path / "export").exists()


def test_weights_above_the_limit_of_a_file_are_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match="a file of ONNX is limited to 2"):
        export_weights(tiny(), tmp_path / "export", ["format=onnx"])


class SVD(nn.Module):
    """A network with an operator that ONNX does not have."""

    def forward(self, x, t, cond):
        return torch.linalg.svd(x)[0]


def test_networks_that_torch_cannot_export_are_refused(tiny):
    pipeline = ddpm_lab.load(tiny()).pipeline
    pipeline.denoiser.network = SVD()
    with pytest.raises(UserError, match="torch cannot export this network"):
        onnx_export.onnx_denoiser(pipeline, None)
