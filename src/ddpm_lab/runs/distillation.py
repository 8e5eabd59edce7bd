"""Teachers of progressive distillation."""

import torch

from ddpm_lab.diffusion.distillation import Distillation
from ddpm_lab.runs.init_weights import rename_keys
from ddpm_lab.runs.run_config import distilled_steps, load_config
from ddpm_lab.runs.run_dir import load_denoiser
from ddpm_lab.runs.weights import read_weights, select_state
from ddpm_lab.utils.errors import UserError, choice_name, prefix_errors

MAX_SCALE = 10
"""Error of a teacher's x_0 per error of its output at t = T, above which training diverges"""


def distillation(
    run: str | None, steps: int | None, clip: float | None = 1.0, weights: str | None = None
) -> Distillation:
    """Return the objective of a student with `steps` steps and the teacher `run`.

    `weights` of the teacher are "ema" or "raw" (None: averaged if available). A teacher that was
    distilled itself has twice as many steps as its student. Raises UserError.
    """
    if run is None:
        raise UserError("objective=distillation needs a teacher, a finished run; try init=DIR")
    if steps is None:
        raise UserError("sampler.steps=null, but a student has few steps; try sampler.steps=8")
    previous = distilled_steps(load_config(run))
    if previous == 1:
        raise UserError(f"init={run} samples in one step already, which cannot be halved")
    if previous and 2 * steps != previous:
        raise UserError(
            f"sampler.steps={steps} is not half of the {previous} steps of init={run}; "
            f"try sampler.steps={previous // 2}"
        )
    with rename_keys(run):
        _, weights = select_state(read_weights(run)[0], run, weights)
    teacher = load_denoiser(run, weights)
    prediction, process = teacher.prediction, teacher.process
    if prediction.x0_error_scale(process, torch.tensor([process.steps])).item() > MAX_SCALE:
        raise UserError(
            f"init={run} was trained with prediction={choice_name(prediction)}, which does not "
            "determine x_0 where x_t is almost noise; try a teacher with prediction=v or x0"
        )
    with prefix_errors("sampler"):
        return Distillation(teacher, steps, clip)
