"""Variances for sampling and evaluation that replace the one a run was trained with."""

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from omegaconf import DictConfig

from ddpm_lab.config.instantiate import build
from ddpm_lab.data.module import Data
from ddpm_lab.diffusion.variances import BETWEEN, Analytic, Variance
from ddpm_lab.sampling.pipeline import SamplingPipeline
from ddpm_lab.utils import safe_load
from ddpm_lab.utils.errors import CorruptFileError, UserError, choice_name, prefix_errors
from ddpm_lab.utils.safe_load import sha256_of_file

LOG = logging.getLogger(__name__)


def load_variance(
    settings: DictConfig,
    pipeline: SamplingPipeline,
    checkpoint: Path,
    load_data: Callable[[], Data],
) -> Variance:
    """Return a fixed variance, or the analytic optimum (Bao et al., 2022), cached in the run.

    Raises UserError for a learned variance, which needs training.
    """
    variance = build(settings, "variance")
    if isinstance(variance, Variance):
        if variance.outputs > 1:
            trained = f"this run was trained with {choice_name(pipeline.denoiser.variance)}"
            raise UserError(
                f"variance={choice_name(variance)} must be learned, but {trained}; try "
                "variance=beta, beta_tilde or analytic"
            )
        return variance
    times = pipeline.sampler.timesteps(pipeline.process)
    if pipeline.sampler.uses_reverse and any(t != int(t) for t in times):
        raise UserError(BETWEEN)
    # The name includes everything that the estimate depends on: weights, sample count, clipping.
    digest = sha256_of_file(checkpoint)[:12]
    bounds = f"clip-{pipeline.sampler.clip}-{pipeline.sampler.dynamic_threshold}"
    name = f"analytic-{settings.weights}-{digest}-{settings.variance.samples}-{bounds}"
    file = Path(settings.run, "variances", f"{name}.safetensors")
    if file.exists():
        try:
            return Analytic(safe_load.load_tensors(file)[0]["mse"])
        except CorruptFileError as error:
            LOG.warning("%s; the variance is estimated again", error)
    with prefix_errors("variance"):
        estimate: Analytic = variance(pipeline, load_data())
    with suppress(OSError):  # the run may be read-only
        safe_load.reject_links(file.parent).mkdir(exist_ok=True)
        safe_load.save_tensors({"mse": estimate.mse.to("cpu", torch.float64)}, file)
    return estimate
