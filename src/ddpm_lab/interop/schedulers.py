"""Schedulers of diffusers: schedule, prediction, variance and sampler."""

from collections.abc import Mapping
from typing import Any

from ddpm_lab.utils.errors import UserError

SCHEDULES = {
    "linear": ("linear", True),
    "scaled_linear": ("quadratic", True),
    "sigmoid": ("sigmoid", True),
    "squaredcos_cap_v2": ("cosine", False),
}
"""beta_schedule of diffusers: schedule here, and True if it has `start` and `end`"""
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
VARIANCES = {
    "fixed_small": "beta_tilde",
    "fixed_small_log": "beta_tilde",
    "fixed_large": "beta",
    "fixed_large_log": "beta",
    "learned_range": "learned_range",
}
SAMPLERS = {
    "DDPMScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    "DPMSolverMultistepScheduler": "dpm_solver",
    "HeunDiscreteScheduler": "heun",
    "EulerDiscreteScheduler": "ddim",
    "EulerAncestralDiscreteScheduler": "ancestral",
    "UniPCMultistepScheduler": "uni_pc",
}
ALGORITHMS = {"sde-dpmsolver++": "dpm_solver_sde"}
"""algorithm_type of the DPMSolverMultistepScheduler, if it is another sampler here"""


def unused_options(scheduler: Mapping[str, Any]) -> str:
    """Return a remark on options of the scheduler that have no counterpart; "" without any."""
    defaults = {"set_alpha_to_one": True, "steps_offset": 0}
    unused = [key for key, value in defaults.items() if scheduler.get(key, value) != value]
    return f"not used: {', '.join(unused)} of the scheduler" if unused else ""


def scheduler_overrides(config: Mapping[str, Any] | None, learned: bool) -> dict[str, Any]:
    """Return the overrides of a scheduler's configuration. Raises UserError."""
    if config is None:
        return {"sampler": "ddpm"}
    name = config.get("_class_name", "")
    if name not in SAMPLERS:
        raise UserError(
            f"{name} has no counterpart in this project; {', '.join(SAMPLERS)} have: edit "
            "scheduler_config.json"
        )
    beta_schedule = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None or beta_schedule not in SCHEDULES:
        key = "trained_betas" if beta_schedule in SCHEDULES else f"beta_schedule={beta_schedule}"
        raise UserError(f"{key} of {name} has no counterpart; {', '.join(SCHEDULES)} have")
    if config.get("thresholding") and config.get("sample_max_value", 1.0) != 1:
        raise UserError("thresholding with sample_max_value above 1 has no counterpart")
    if config.get("rescale_betas_zero_snr"):
        raise UserError("rescale_betas_zero_snr=true has no counterpart in this project")
    schedule, has_ends = SCHEDULES[beta_schedule]
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise UserError(f"prediction_type={prediction}; {', '.join(PREDICTIONS)} have counterparts")
    variance = "learned_range" if learned else config.get("variance_type") or "fixed_small"
    if variance not in VARIANCES:
        raise UserError(f"variance_type={variance}; {', '.join(VARIANCES)} have counterparts")
    clip = config.get("thresholding") or config.get(
        "clip_sample", name in ("DDPMScheduler", "DDIMScheduler")
    )
    overrides: dict[str, Any] = {
        "schedule": schedule,
        "schedule.steps": config.get("num_train_timesteps", 1000),
        "prediction": PREDICTIONS[prediction],
        "variance": VARIANCES[variance],
        "sampler": ALGORITHMS.get(config.get("algorithm_type", ""), SAMPLERS[name]),
        "sampler.clip": float(config.get("clip_sample_range", 1.0)) if clip else None,
    }
    if config.get("use_karras_sigmas"):
        overrides["sampler.spacing"] = "karras"
    if has_ends:
        overrides |= {
            "schedule.start": config.get("beta_start", 1e-4),
            "schedule.end": config.get("beta_end", 0.02),
            "schedule.rescale": False,
        }
    return overrides
