"""Teachers of progressive distillation."""

from ddpm_lab.diffusion.distillation import Distillation
from ddpm_lab.runs.run_config import load_config
from ddpm_lab.runs.run_dir import load_denoiser
from ddpm_lab.utils.errors import UserError


def distillation(run: str | None, steps: int | None) -> Distillation:
    """Return the objective of a student with `steps` steps and the teacher `run`.

    A teacher that was distilled itself has twice as many steps as its student. Raises UserError.
    """
    if run is None:
        raise UserError("objective=distillation needs a teacher, a finished run; try init=DIR")
    if steps is None:
        raise UserError("sampler.steps=null, but a student has few steps; try sampler.steps=8")
    config = load_config(run)
    if config.objective.get("_target_", "").endswith(f".{distillation.__name__}"):
        previous = config.sampler.steps
        if previous == 1:
            raise UserError(f"init={run} samples in one step already, which cannot be halved")
        if 2 * steps != previous:
            raise UserError(
                f"sampler.steps={steps} is not half of the {previous} steps of init={run}; "
                f"try sampler.steps={previous // 2}"
            )
    return Distillation(load_denoiser(run), steps)
