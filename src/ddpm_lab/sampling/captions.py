"""Captions of sample grids."""

from ddpm_lab.data.datasets import Batch
from ddpm_lab.sampling.pipeline import SamplingPipeline


def describe_sampler(pipeline: SamplingPipeline, weights: str) -> str:
    """Return the sampler, its steps and the weights, such as "DDPM, 9 of 40 steps, ema weights"."""
    name, steps, T = type(pipeline.sampler).__name__, pipeline.num_steps, pipeline.process.steps
    return f"{name}, {steps} of {T} steps, {weights} weights"


def describe_conditions(conditions: Batch, classes: int | None, columns: int) -> str:
    """Return the order of the conditions of `SamplingPipeline.make_conditions` in a grid."""
    if "low_res" in conditions:
        return "Each sample upsamples one held-out image."
    if "label" not in conditions or not classes:
        return "Samples are unconditional."
    if columns % classes:
        return f"Labels 0 to {classes - 1} in turn, row by row."
    return f"Labels 0 to {classes - 1} in columns{', repeated' * (columns > classes)}."
