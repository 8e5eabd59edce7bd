"""Variances for sampling and evaluation in place of the one that a run was trained with."""

import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from ddpm_lab.utils import safe_load
from ddpm_lab.utils.errors import CorruptFileError, UserError, choice_name, prefix_errors

if TYPE_CHECKING:
    from ddpm_lab.diffusion.variances import Variance
    from ddpm_lab.data.module import DataModule
    from ddpm_lab.sampling.pipeline import SamplingPipeline

LOG = logging.getLogger(__name__)


def load_variance(
    settings: DictConfig,
    pipeline: "SamplingPipeline",
    checkpoint: Path,
    load_data: Callable[[], "DataModule"],
) -> "Variance":
    """Another variance than the run's: a fixed one, or the analytic optimum, kept in the run once estimated."""
    import torch

    from ddpm_lab.config.instantiate import build
    from ddpm_lab.diffusion.variances import Analytic, Variance

    chosen = build(settings, "variance")
    if isinstance(chosen, Variance):
        if chosen.outputs > 1:
            own = choice_name(pipeline.denoiser.variance)
            raise UserError(
                f"variance={choice_name(chosen)} must be learned, and this run was trained with {own}; "
                "try variance=beta, beta_tilde or analytic"
            )
        return chosen
    # All that the estimate depends on: of the weights, of the noise, and of how guesses are bounded.
    with checkpoint.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:12]
    bounds = f"clip-{pipeline.sampler.clip}-{pipeline.sampler.dynamic_threshold}"
    name = f"analytic-{settings.weights}-{digest}-{settings.variance.samples}-{bounds}"
    file = Path(settings.run, "variances", f"{name}.safetensors")
    if file.exists():
        try:
            return Analytic(safe_load.load_tensors(file)[0]["mse"])
        except CorruptFileError as error:
            LOG.warning("%s; the variance is estimated anew", error)
    with prefix_errors("variance"):
        found: Analytic = chosen(pipeline, load_data())
    with suppress(OSError):  # it need not be kept
        safe_load.reject_links(file.parent).mkdir(exist_ok=True)
        safe_load.save_tensors({"mse": found.mse.to("cpu", torch.float64)}, file)
    return found
