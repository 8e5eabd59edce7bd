"""Captions of sample grids."""

from ddpm_lab.data.datasets import Batch
from ddpm_lab.sampling.pipeline import SamplingPipeline
from ddpm_lab.utils.errors import pluralize


def describe_sampler(pipeline: SamplingPipeline, weights: str) -> str:
    """Return the sampler, its steps and the weights, such as "DDPM, 9 steps, ema weights"."""
    name, steps = type(pipeline.sampler).__name__, pipeline.num_steps
    return f"{name}, {pluralize(steps, 'step')}, {weights} weights"


def describe_conditions(conditions: Batch, classes: int | None, columns: int) -> str:
    """Return the order of the conditions of `SamplingPipeline.make_conditions` in a grid."""
    if "low_res" in conditions:
        return "Each sample upsamples one held-out image."
    if "label" not in conditions or not classes:
        return "Samples are unconditional."
    if columns % classes:
        return f"Labels 0 to {classes - 1} in turn, row by row."
    return f"Labels 0 to {classes - 1} in columns{', repeated' * (columns > classes)}."
