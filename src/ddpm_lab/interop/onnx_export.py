"""The denoiser of a run as an ONNX graph, for programs without torch."""

import contextlib
import io
import logging
import warnings
from importlib import import_module
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import Denoiser
from ddpm_lab.diffusion.process import per_pixel
from ddpm_lab.interop.exporting import Export
from ddpm_lab.sampling.pipeline import SamplingPipeline
from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.shell import optional_package

MODEL, SCHEDULE, OPSET = "model.onnx", "schedule.json", 18
MAX_BYTES = 2**31 - 2**20
"""Largest size of the weights: that of a protobuf, without the graph"""
TOLERANCE = 1e-4
"""Largest difference of eps between onnxruntime and torch"""
USAGE = """import json

import numpy as np
import onnxruntime

folder = FOLDER
model = onnxruntime.InferenceSession(f"{folder}/model.onnx")
schedule = json.load(open(f"{folder}/schedule.json"))
x = np.random.randn(4, *schedule["shape"]).astype("float32")  # x_T
times = np.linspace(len(schedule["alpha"]) - 1, 0, 26).round().astype(int)
for t, s in zip(times[:-1], times[1:]):  # DDIM
    eps, x0 = model.run(None, {"x": x, "t": np.full(4, t)LABEL})
    x0 = x0.clip(-1, 1)
    eps = (x - schedule["alpha"][t] * x0) / schedule["sigma"][t]
    x = (schedule["alpha"][s] * x0 + schedule["sigma"][s] * eps).astype("float32")"""


class Graph(nn.Module):
    """(x_t, t, label) -> (eps, x_0 estimate), all with one row per sample.

    x_t is float32, t int64 in 1..T. A label below 0 is that of no class. Models without labels take
    (x_t, t).
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        cond = Condition()
        if label is not None:
            cond = Condition(label.clamp(min=0), dropped=label < 0)
        output = self.denoiser.run_network(x, t, cond)
        # Coefficients in float64: for prediction=eps they are 0 and 1.
        alpha, sigma = self.denoiser.process.alpha_sigma(t)
        _, c_skip, c_out = self.denoiser.preconditioning[t].unbind(1)
        eps = per_pixel((1 - alpha * c_skip) / sigma, x) * x
        eps = eps - per_pixel(alpha * c_out / sigma, x) * output.prediction
        return eps, self.denoiser.to_estimate(output, x).x0


def onnx_denoiser(pipeline: SamplingPipeline, config: DictConfig) -> Export:
    """Return model.onnx, with batches of any size, and the tables of its schedule.

    onnxruntime runs the graph, and its output is compared with that of torch.
    Raises UserError for models that take more than a label.
    """
    denoiser = pipeline.denoiser
    if (reason := reason_against_onnx(pipeline)) is not None:
        raise UserError(f"format=onnx: this run cannot be exported, because {reason}")
    with optional_package("onnxscript", "ONNX", UserError):
        import_module("onnxscript")  # torch.onnx needs it
    with optional_package("onnxruntime", "ONNX", UserError):
        import onnxruntime
    graph = Graph(denoiser).eval().cpu()
    inputs = _inputs(pipeline, 2)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            program = torch.onnx.export(
                graph,
                tuple(inputs.values()),
                input_names=[*inputs],
                output_names=["eps", "x0"],
                dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs),
                opset_version=OPSET,
                dynamo=True,
            )
    except torch.onnx.OnnxExporterError as cause:  # an operator of the user's own network
        reason = " ".join(str(cause).split())[:160]
        raise UserError(f"format=onnx: torch cannot export this network ({reason})") from cause
    assert program is not None
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    error = max(_difference(session, graph, _inputs(pipeline, size)) for size in (1, 3))
    if error > TOLERANCE:
        raise UserError(
            f"format=onnx: onnxruntime differs from torch by {error:.2g} in eps, which is above "
            f"{TOLERANCE:g}; try another version of onnxruntime"
        )
    label = ', "label": np.zeros(4, int)' * ("label" in inputs)
    usage = USAGE.replace("LABEL", label)
    return Export({}, {SCHEDULE: _schedule(pipeline, error)}, usage, {MODEL: content})


def reason_against_onnx(pipeline: SamplingPipeline) -> str | None:
    """Return why the graph cannot represent the model, and what would; None if it can."""
    denoiser, conditioner = pipeline.denoiser, pipeline.denoiser.conditioner
    if (size := 4 * sum(weight.numel() for weight in denoiser.parameters())) >= MAX_BYTES:
        return (
            f"its weights take {size / 2**30:.1f} GiB, and a file of ONNX is limited to 2; try "
            "format=diffusers"
        )
    if pipeline.codec.space:
        return "its images are decoded from latents by another network; try codec=pixels"
    if inputs := {*conditioner.cond_dims} - {"classes"}:
        return f"it takes {' and '.join(inputs)} besides x_t; try conditioner=label or none"
    if denoiser.self_conditioning:
        return "it takes its previous estimate besides x_t; try self_conditioning=false"
    return None


def _inputs(pipeline: SamplingPipeline, size: int) -> dict[str, Tensor]:
    """Return inputs of the graph, by name, for a batch of `size`."""
    generator = torch.Generator().manual_seed(size)
    inputs = {
        "x": torch.randn(size, *pipeline.shape, generator=generator),
        "t": torch.randint(1, pipeline.process.steps + 1, (size,), generator=generator),
    }
    if (classes := pipeline.denoiser.classes) is not None:
        inputs["label"] = torch.randint(-1, classes, (size,), generator=generator)
    return inputs


@torch.no_grad()
def _difference(session: Any, graph: Graph, inputs: dict[str, Tensor]) -> float:
    """Return the largest difference of eps."""
    eps, _ = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return float(np.abs(eps - graph(*inputs.values())[0].numpy()).max())


def _schedule(pipeline: SamplingPipeline, error: float) -> dict[str, Any]:
    """Return the tables, float64 for t = 0..T, and the properties of the model."""
    process, t = pipeline.process, torch.arange(pipeline.process.steps + 1)
    alpha, sigma = process.alpha_sigma(t)
    return {
        "alpha": alpha.tolist(),
        "sigma": sigma.tolist(),
        "shape": [*pipeline.shape],
        "classes": pipeline.class_names,
        "nullable": pipeline.denoiser.supports_cfg,
        "max_difference": error,
    }
