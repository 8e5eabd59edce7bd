"""Mutation testing: inject implementation errors one at a time and check that a test fails.

    python scripts/mutants.py            # all mutations; writes docs/mutations.md
    python scripts/mutants.py eta clip   # mutations with one of the words in their name; no report

Exits with status 1 if a mutation survives, or raises an error instead of changing a result.
"""

import _venv  # noqa: F401 (restarts with .venv where this Python lacks the packages)

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "docs" / "mutations.md"
BROKEN = (
    "NameError",
    "AttributeError",
    "SyntaxError",
    "ImportError",
    "TypeError",
    "IndentationError",
)


class Mutant(NamedTuple):
    """A mutation: `old`, which occurs once in `file`, becomes `new`; one of `tests` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    # Forward process and schedules
    Mutant(
        "diffuse: alpha_bar instead of its square root",
        "diffusion/process.py",
        "return per_pixel(alpha, x0) * x0",
        "return per_pixel(alpha**2, x0) * x0",
        "process",
    ),
    Mutant(
        "diffuse: 1 - alpha_bar instead of its square root",
        "diffusion/schedules.py",
        "(-torch.expm1(log_alpha_bar)).sqrt()",
        "-torch.expm1(log_alpha_bar)",
        "schedules",
    ),
    Mutant(
        "beta table off by one",
        "diffusion/schedules.py",
        "torch.log1p(-betas).cumsum(0)",
        "torch.log1p(-betas).roll(1).cumsum(0)",
        "schedules",
    ),
    Mutant(
        "cosine: beta not clipped",
        "diffusion/schedules.py",
        "(1 - f[1:] / f[:-1]).clamp(max=max_beta)",
        "(1 - f[1:] / f[:-1]).clamp(max=1 - 1e-15)",
        "schedules",
    ),
    Mutant(
        "cosine: beta clipped at the wrong end",
        "diffusion/schedules.py",
        "(1 - f[1:] / f[:-1]).clamp(max=max_beta)",
        "(1 - f[1:] / f[:-1]).clamp(1 - max_beta, 0.9999)",
        "schedules",
    ),
    Mutant(
        "cosine: not divided by f(0)",
        "diffusion/schedules.py",
        "return from_betas((1 - f[1:] / f[:-1])",
        "f[0] = 1\n    return from_betas((1 - f[1:] / f[:-1])",
        "schedules",
    ),
    Mutant(
        "beta endpoints not rescaled with T",
        "diffusion/schedules.py",
        "scale = 1000 / steps if rescale else 1.0",
        "scale = 1.0",
        "schedules",
    ),
    Mutant(
        "quadratic: linear in beta instead of its square root",
        "diffusion/schedules.py",
        "_line(steps, low**0.5, high**0.5) ** 2",
        "_line(steps, low, high)",
        "schedules",
    ),
    Mutant(
        "beta instead of beta_tilde",
        "diffusion/process.py",
        "return self.beta(t, s) * (sigma_s / sigma_t) ** 2",
        "return self.beta(t, s)",
        "process variances",
    ),
    Mutant(
        "log beta_tilde not clipped at s = 0",
        "diffusion/process.py",
        "        last = s == 0\n",
        "        last = s == -1\n",
        "process",
    ),
    Mutant(
        "beta of the full chain on a strided chain",
        "diffusion/process.py",
        "self.log_snr(t) - self.log_snr(s))",
        "self.log_snr(t) - self.log_snr(t - 1))",
        "process",
    ),
    Mutant(
        "posterior: alpha_t instead of alpha_s",
        "diffusion/process.py",
        "return self.alpha_sigma(s)[0] * self.tau(t, s)",
        "return self.alpha_sigma(t)[0] * self.tau(t, s)",
        "process",
    ),
    Mutant(
        "posterior: ratio of sigmas not squared",
        "diffusion/process.py",
        "alpha_t / alpha_s * (sigma_s / sigma_t) ** 2",
        "alpha_t / alpha_s * (sigma_s / sigma_t)",
        "process",
    ),
    Mutant(
        "variance exploding: prior with variance 1",
        "diffusion/process.py",
        "return per_pixel(self.scale(t), z) * z",
        "return z",
        "process",
    ),
    Mutant(
        "score: divided by sigma instead of its square",
        "diffusion/process.py",
        "per_pixel(alpha / sigma**2, x_t) * x0 - per_pixel(sigma**-2, x_t) * x_t",
        "per_pixel(alpha / sigma, x_t) * x0 - per_pixel(sigma**-1, x_t) * x_t",
        "process",
    ),
    Mutant(
        "schedule tables in float32",
        "diffusion/schedules.py",
        "torch.linspace(start, end, steps, dtype=torch.float64)",
        "torch.linspace(start, end, steps, dtype=torch.float32)",
        "schedules",
    ),
    # Predictions and the network input
    Mutant(
        "v: wrong sign",
        "diffusion/predictions.py",
        "per_pixel(std * alpha / scale, x0) * eps - per_pixel(sigma / scale / std, x0) * x0",
        "per_pixel(sigma / scale / std, x0) * x0 - per_pixel(std * alpha / scale, x0) * eps",
        "predictions",
    ),
    Mutant(
        "mean: x_t term not subtracted",
        "diffusion/predictions.py",
        "return -process.posterior_coef_xt(t, t - 1) / coef_x0, 1",
        "return 0 * coef_x0, 1",
        "predictions",
    ),
    Mutant(
        "score: not divided by sigma",
        "diffusion/predictions.py",
        "return -eps / per_pixel(process.alpha_sigma(t)[1], eps)",
        "return -eps",
        "predictions",
    ),
    Mutant(
        "time embedding: index not scaled to 1000",
        "diffusion/denoiser.py",
        "(t * (1000 / process.steps))",
        "t",
        "denoiser",
    ),
    Mutant(
        "time embedding: off by one",
        "diffusion/denoiser.py",
        "(t * (1000 / process.steps))",
        "((t - 1) * (1000 / process.steps))",
        "denoiser",
    ),
    Mutant(
        "variance exploding: network input not scaled",
        "diffusion/denoiser.py",
        "self.network(c_in * x_t, time",
        "self.network(x_t, time",
        "denoiser",
    ),
    Mutant(
        "halves of the network output swapped",
        "diffusion/denoiser.py",
        "prediction, variance_output = output.chunk",
        "variance_output, prediction = output.chunk",
        "denoiser",
    ),
    # Variances
    Mutant(
        "learned range: v in [0, 1] instead of [-1, 1]",
        "diffusion/variances.py",
        "return middle + half * output",
        "return per_pixel(low, like) + per_pixel(high - low, like) * output",
        "variances",
    ),
    Mutant(
        "learned range: v clamped",
        "diffusion/variances.py",
        "half * output",
        "half * output.clamp(-1, 1)",
        "variances",
    ),
    Mutant(
        "learned range: bounds swapped",
        "diffusion/variances.py",
        "high, low = process.beta(t, s).log(), process.log_beta_tilde(t, s)",
        "low, high = process.beta(t, s).log(), process.log_beta_tilde(t, s)",
        "variances",
    ),
    Mutant(
        "variance=beta: beta in the last step",
        "diffusion/variances.py",
        "torch.where(s == 0, process.log_beta_tilde(t, s), process.beta(t, s).log())",
        "process.beta(t, s).log()",
        "variances",
    ),
    Mutant(
        "analytic variance: coefficient not squared",
        "diffusion/variances.py",
        "process.posterior_coef_x0(t, s) ** 2 * mse",
        "process.posterior_coef_x0(t, s) * mse",
        "variances",
    ),
    # Objectives and timesteps
    Mutant(
        "vlb: term not multiplied by T",
        "diffusion/objectives.py",
        "return denoiser.process.steps * term",
        "return term",
        "objectives",
    ),
    Mutant(
        "hybrid: gradient of the bound reaches the mean",
        "diffusion/objectives.py",
        "output = output._replace(prediction=output.prediction.detach())",
        "output = output._replace(prediction=output.prediction)",
        "objectives",
    ),
    Mutant(
        "loss: sum over pixels instead of mean",
        "diffusion/objectives.py",
        "(output.prediction - target).square().flatten(1).mean(1)",
        "(output.prediction - target).square().flatten(1).sum(1)",
        "objectives",
    ),
    Mutant(
        "min-SNR: max instead of min",
        "diffusion/objectives.py",
        "clamp(max=self.gamma)",
        "clamp(min=self.gamma)",
        "objectives",
    ),
    Mutant(
        "weighted loss: x_0 weights on eps errors",
        "diffusion/objectives.py",
        "scale**2 * self.weight",
        "self.weight",
        "objectives",
    ),
    Mutant(
        "timesteps drawn from 0 to T - 1",
        "diffusion/timestep_samplers.py",
        "torch.randint(1, self.steps + 1,",
        "torch.randint(0, self.steps,",
        "timesteps",
    ),
    Mutant(
        "averages: exponent without + 1",
        "diffusion/power_averages.py",
        "(1 - 1 / self.updates) ** (self.gamma + 1)",
        "(1 - 1 / self.updates) ** self.gamma",
        "averages",
    ),
    Mutant(
        "averages: wrong cubic for the length",
        "diffusion/power_averages.py",
        "[1, 7, 16 - inverse, 12 - inverse]",
        "[1, 6, 16 - inverse, 12 - inverse]",
        "averages",
    ),
    Mutant(
        "averages: inner product of the earlier profile",
        "diffusion/power_averages.py",
        "b.gamma if a.step < b.step else -a.gamma",
        "a.gamma if a.step < b.step else -b.gamma",
        "averages",
    ),
    Mutant(
        "averages: coefficients do not sum to 1",
        "diffusion/power_averages.py",
        "    coefficients /= coefficients.sum()\n",
        "",
        "averages",
    ),
    Mutant(
        "averages: not restored on resume",
        "callbacks/ema.py",
        "            load_whole_state(each.average, state)\n",
        "            pass\n",
        "averages",
    ),
    Mutant(
        "ONNX: eps of the clipped label",
        "interop/onnx_export.py",
        "cond = Condition(label.clamp(min=0), dropped=label < 0)",
        "cond = Condition(label.clamp(min=0))",
        "onnx",
    ),
    Mutant(
        "ONNX: one batch size",
        "interop/onnx_export.py",
        "dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs),",
        "dynamic_shapes=None,",
        "onnx",
    ),
    Mutant(
        "sharding: moments of Adam not restored",
        "systems/sharding.py",
        "            set_optimizer_state_dict(self.model, optimizer, by_name, options=WHOLE)\n",
        "            pass\n",
        "ranks",
    ),
    Mutant(
        "sharding: norm of the gradients of one process",
        "systems/sharding.py",
        "return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor",
        "return tensor.to_local() if isinstance(tensor, DTensor) else tensor",
        "ranks",
    ),
    Mutant(
        "validation: every process has the rows of the first",
        "data/module.py",
        "slice(rank * size // world, (rank + 1) * size // world)",
        "slice(0, size // world)",
        "data",
    ),
    Mutant(
        "flow: classifier guidance of noise alone",
        "diffusion/classifier_guidance.py",
        "torch.where(alpha > 0, sigma**2 / alpha, 0)\n        shift",
        "sigma**2 / alpha\n        shift",
        "flow",
    ),
    Mutant(
        "flow: Langevin levels without signal rescaled by alpha",
        "diffusion/langevin.py",
        "torch.where(alpha_t > 0, alpha_s / alpha_t, to_prior)",
        "alpha_s / alpha_t",
        "samplers",
    ),
    Mutant(
        "flow: velocity with the other sign",
        "diffusion/predictions.py",
        "return eps - x0\n",
        "return x0 - eps\n",
        "flow",
    ),
    Mutant(
        "flow: c_out without the scale",
        "diffusion/predictions.py",
        "1 / (alpha + sigma), -sigma / (alpha + sigma)",
        "1 / (alpha + sigma), -sigma",
        "flow",
    ),
    Mutant(
        "flow: shift towards the data",
        "diffusion/schedules.py",
        "u = shift * t / (1 + (shift - 1) * t)",
        "u = t / (shift + (1 - shift) * t)",
        "flow",
    ),
    Mutant(
        "flow: logit-normal of the other sign",
        "diffusion/timestep_samplers.py",
        "torch.sigmoid(self.mean + self.std * n)",
        "torch.sigmoid(self.std * n - self.mean)",
        "flow",
    ),
    Mutant(
        "mean matching: coefficient not squared",
        "diffusion/objectives.py",
        "return process.posterior_coef_x0(t, t - 1) ** 2",
        "return process.posterior_coef_x0(t, t - 1)",
        "objectives",
    ),
    Mutant(
        "importance: history not in checkpoints",
        "diffusion/timestep_samplers.py",
        "torch.zeros(steps + 1, history, dtype=torch.float64))",
        "torch.zeros(steps + 1, history, dtype=torch.float64), persistent=False)",
        "timesteps",
    ),
    Mutant(
        "importance: weights omitted",
        "diffusion/timestep_samplers.py",
        "(1 / (self.steps * p[t])).float()",
        "torch.ones_like(p[t]).float()",
        "timesteps",
    ),
    Mutant(
        "importance: first moment instead of second",
        "diffusion/timestep_samplers.py",
        ".square().mean(1).sqrt()",
        ".mean(1)",
        "timesteps",
    ),
    Mutant(
        "importance: losses not gathered across ranks",
        "diffusion/timestep_samplers.py",
        "and torch.distributed.is_initialized()",
        "and False",
        "timesteps",
    ),
    Mutant(
        "stratified: no random offset",
        "diffusion/timestep_samplers.py",
        "positions = (offset + torch",
        "positions = (torch",
        "timesteps",
    ),
    # The variational bound
    Mutant(
        "bound in nats instead of bits",
        "diffusion/likelihood.py",
        "return nats.flatten(1).mean(1) / math.log(2)",
        "return nats.flatten(1).mean(1)",
        "likelihood",
    ),
    Mutant(
        "bound per image instead of per dimension",
        "diffusion/likelihood.py",
        "nats.flatten(1).mean(1)",
        "nats.flatten(1).sum(1)",
        "likelihood",
    ),
    Mutant(
        "L_0: wrong sign",
        "diffusion/likelihood.py",
        "-decoder, kl))",
        "decoder, kl))",
        "likelihood",
    ),
    Mutant(
        "KL: arguments swapped",
        "diffusion/likelihood.py",
        "denoiser.process.posterior(x0, x_t, t, s).kl(reverse)",
        "reverse.kl(denoiser.process.posterior(x0, x_t, t, s))",
        "likelihood",
    ),
    Mutant(
        "L_T: N(0, 1) prior for variance exploding",
        "diffusion/likelihood.py",
        "2 * process.scale(t).log()",
        "0 * process.scale(t)",
        "likelihood",
    ),
    Mutant(
        "bin width 2 / 256 instead of 2 / 255",
        "data/module.py",
        "return 2 / 255 if",
        "return 2 / 256 if",
        "data",
    ),
    Mutant(
        "decoder: edge bins not open",
        "diffusion/gaussian.py",
        "first, last = x < -1 + width / 2, x > 1 - width / 2",
        "first, last = x < -9 + width / 2, x > 9 - width / 2",
        "likelihood",
    ),
    Mutant(
        "decoder: floor of 1e-12",
        "diffusion/gaussian.py",
        "mass = high + torch.where(gap > split, near, far)",
        "mass = (torch.special.ndtr(z + half) - torch.special.ndtr(z - "
        "half)).clamp(min=1e-12).log()",
        "likelihood",
    ),
    Mutant(
        "decoder: tanh approximation of the cdf",
        "diffusion/gaussian.py",
        "mass = high + torch.where(gap > split, near, far)",
        "cdf = [(1 + torch.tanh((2 / math.pi) ** 0.5 * (y + 0.044715 * y**3))) / 2 "
        "for y in (z + half, z - half)]\n        mass = (cdf[0] - cdf[1]).log()",
        "likelihood",
    ),
    Mutant(
        "NLL: images flipped",
        "evaluation/nll.py",
        "denoiser, images.x0, times,",
        "denoiser, images.x0.flip(-1), times,",
        "evaluation",
    ),
    # Samplers
    Mutant(
        "noise in the last step",
        "diffusion/samplers.py",
        "return reverse.mean if step.last else reverse.rsample(noise(step.x_t))",
        "return reverse.rsample(noise(step.x_t))",
        "samplers",
    ),
    Mutant(
        "spacing: chain ends at t = 1",
        "diffusion/timestep_spacing.py",
        "times = [*reversed(_from_name(T, steps, str(spacing))), 0]",
        "return [*reversed(_from_name(T, steps, str(spacing)))]",
        "samplers",
    ),
    Mutant(
        "spacing: uniform chain does not start at T",
        "diffusion/timestep_spacing.py",
        "return [int(T - i * stride + 0.5)",
        "return [int(T - i * stride - 0.5) or 1",
        "samplers",
    ),
    Mutant(
        "sampler: s = t - T / K for every spacing",
        "diffusion/samplers.py",
        "pairwise(as_times(self.timesteps(denoiser.process, t_end)).unbind())",
        "pairwise(torch.linspace((c := self.timesteps(denoiser.process))[0], "
        "t_end, len(c)).long().unbind())",
        "samplers",
    ),
    Mutant(
        "eps not recomputed after clipping",
        "diffusion/samplers.py",
        "return process.ddim_update(x_t, step.estimate.x0, t, s)",
        "return process.diffuse(step.estimate.x0, process.eps(x_t, denoiser(x_t, t, "
        "cond).x0, t), s)",
        "samplers",
    ),
    Mutant(
        "DDIM update: x_0 share of x_t ignored",
        "diffusion/process.py",
        "alpha_s - ratio * alpha_t",
        "alpha_s",
        "samplers",
    ),
    Mutant(
        "DDIM: eta not squared",
        "diffusion/samplers.py",
        "self.eta**2 * process",
        "self.eta * process",
        "samplers",
    ),
    Mutant(
        "DDIM: beta instead of beta_tilde in the mean",
        "diffusion/process.py",
        "eta**2 * self.beta_tilde(t, s)",
        "eta**2 * self.beta(t, s)",
        "samplers",
    ),
    Mutant(
        "Heun: no second evaluation",
        "diffusion/ode_solvers.py",
        "mean = (eps + end) / 2",
        "mean = eps",
        "samplers",
    ),
    Mutant(
        "DPM-Solver: inverted ratio of steps",
        "diffusion/ode_solvers.py",
        "return (end - middle) / (middle - start) / 2",
        "return (middle - start) / (end - middle) / 2",
        "samplers",
    ),
    Mutant(
        "DPM-Solver: log SNR instead of its half",
        "diffusion/ode_solvers.py",
        "torch.expm1(0.5 * (process",
        "torch.expm1(1.0 * (process",
        "samplers",
    ),
    Mutant(
        "Langevin: sqrt(a) instead of sqrt(2 a)",
        "diffusion/langevin.py",
        "(2 * step).sqrt()",
        "step.sqrt()",
        "samplers",
    ),
    Mutant(
        "dynamic threshold: no lower bound",
        "diffusion/samplers.py",
        ".values.clamp(min=self.clip)",
        ".values",
        "samplers",
    ),
    Mutant(
        "DDIM encoding: estimate at t instead of s",
        "diffusion/samplers.py",
        "s = s.clamp(min=1)",
        "s = t.clamp(min=1)",
        "samplers",
    ),
    Mutant(
        "ODE likelihood: wrong sign of the log volume",
        "diffusion/ode_likelihood.py",
        "log_prior.sum(1) + log_volume",
        "log_prior.sum(1) - log_volume",
        "evaluation",
    ),
    Mutant(
        "mixture: distance without alpha",
        "diffusion/analytic_denoisers.py",
        "-0.5 * alpha * gain",
        "-0.5 * gain",
        "exact",
    ),
    # Guidance, EMA, sampling
    Mutant(
        "guidance: w instead of 1 + w",
        "diffusion/guidance.py",
        "guided = x0 + self.w * (x0 - baseline)",
        "guided = baseline + self.w * (x0 - baseline)",
        "guidance",
    ),
    Mutant(
        "guidance: scale used as w",
        "diffusion/guidance.py",
        "w if scale is None else scale - 1, interval",
        "w if scale is None else scale, interval",
        "guidance",
    ),
    Mutant(
        "guidance: outside of the interval",
        "diffusion/guidance.py",
        "per_pixel(inside, x0).bool(), guided, x0)",
        "per_pixel(inside, x0).bool(), x0, guided)",
        "guidance",
    ),
    Mutant(
        "classifier guidance: wrong sign of the gradient",
        "diffusion/classifier_guidance.py",
        "return estimate._replace(x0=estimate.x0 + shift)",
        "return estimate._replace(x0=estimate.x0 - shift)",
        "classifier",
    ),
    Mutant(
        "classifier guidance: factor sqrt(1 - alpha_bar) missing",
        "diffusion/classifier_guidance.py",
        "torch.where(alpha > 0, sigma**2 / alpha, 0)\n        shift",
        "torch.where(alpha > 0, sigma / alpha, 0)\n        shift",
        "classifier",
    ),
    Mutant(
        "classifier guidance: gradient of the batch mean",
        "diffusion/classifier_guidance.py",
        "torch.autograd.grad(log_prob.sum(), leaf)",
        "torch.autograd.grad(log_prob.mean(), leaf)",
        "classifier",
    ),
    Mutant(
        "classifier guidance: mean shifted by sigma instead of its square",
        "diffusion/classifier_guidance.py",
        "self.scale * step.log_var.exp() *",
        "self.scale * (step.log_var / 2).exp() *",
        "classifier",
    ),
    Mutant(
        "guidance: clipping before guidance",
        "diffusion/guidance.py",
        "conditional, null = both.x0.chunk(2)",
        "conditional, null = both.x0.clamp(-1, 1).chunk(2)",
        "guidance",
    ),
    Mutant(
        "guidance: variance of the null condition",
        "diffusion/guidance.py",
        "both.variance_output.chunk(2)[0]",
        "both.variance_output.chunk(2)[1]",
        "guidance",
    ),
    Mutant(
        "sample noise seeded by the position in the batch",
        "diffusion/rng.py",
        "else make_generator(seed, i) for i in samples]",
        "else make_generator(seed, i) for i, _ in enumerate(samples)]",
        "samplers",
    ),
    Mutant(
        "labels dropped at sampling",
        "sampling/pipeline.py",
        "cond: Condition = self.denoiser.conditioner(conditions, noise)",
        "cond: Condition = self.denoiser.conditioner(conditions, "
        "noise).drop(self.denoiser.conditioner.dropout)",
        "system",
    ),
    Mutant(
        "network dropout active at sampling",
        "diffusion/denoiser.py",
        "module.eval()",
        "pass",
        "system",
    ),
    Mutant(
        "EMA: update per micro-batch",
        "callbacks/ema.py",
        "if step <= self.model.updates:",
        "if False:",
        "system",
    ),
    Mutant(
        "EMA: starts at zero",
        "diffusion/ema_model.py",
        "self.updates += 1",
        "self.updates += 1\n        torch._foreach_mul_(self._averages, self.updates > 1)",
        "system",
    ),
    Mutant(
        "EMA: not used for sampling",
        "callbacks/ema.py",
        "system.pipeline.with_denoiser(denoiser)",
        "system.pipeline",
        "system",
    ),
    # Conditions and networks
    Mutant(
        "captions: always the first",
        "conditioners/text.py",
        "(chance * counts).long().clamp(max=counts - 1)",
        "torch.zeros_like(label)",
        "conditioners",
    ),
    Mutant(
        "low_res: training noise at sampling",
        "conditioners/low_res.py",
        "if self.training:",
        "if self.max_noise_level:",
        "conditioners",
    ),
    Mutant(
        "low_res: noise increases the variance",
        "conditioners/low_res.py",
        "z = angle.cos() * z",
        "z = z",
        "conditioners",
    ),
    Mutant(
        "low_res: noise level not passed to the network",
        "conditioners/low_res.py",
        "noise_level=1000 * noise_level)",
        "noise_level=0 * noise_level)",
        "conditioners",
    ),
    Mutant(
        "cross-attention: dropped tokens not replaced",
        "networks/layers.py",
        "cond.replace_dropped(cond.context, self.null)",
        "cond.context",
        "networks",
    ),
    Mutant(
        "cross-attention: keys and values swapped",
        "networks/layers.py",
        "k, v = self.kv(",
        "v, k = self.kv(",
        "networks",
    ),
    Mutant(
        "self-conditioning: in every training batch",
        "systems/diffusion.py",
        "and bernoulli(noise)",
        "",
        "system",
    ),
    Mutant(
        "self-conditioning: gradient through the previous estimate",
        "systems/diffusion.py",
        "with torch.no_grad():",
        "with torch.enable_grad():",
        "system",
    ),
    Mutant(
        "self-conditioning: previous estimate not used at sampling",
        "diffusion/samplers.py",
        "previous_x0=step.estimate.x0)",
        "previous=None)",
        "guidance",
    ),
    Mutant(
        "DiT: attention not gated",
        "networks/dit.py",
        "x = x + gate1 * self.out(",
        "x = x + gate1.abs().sign() + self.out(",
        "networks",
    ),
    Mutant(
        "DiT: scale instead of 1 + scale",
        "networks/dit.py",
        "x.shape[-1:], eps=1e-6), 1 + scale)",
        "x.shape[-1:], eps=1e-6), scale)",
        "networks",
    ),
    Mutant(
        "DiT: x instead of y in the position embedding",
        "networks/dit.py",
        "for position in (x, y)",
        "for position in (x, x)",
        "networks",
    ),
    # Evaluation
    Mutant(
        "FID: features of previous samples kept",
        "evaluation/fid.py",
        "sums = {label: self._sums(BLOCKS if label < 0 else 1) for label in self.reference}",
        "sums = self.__dict__.setdefault('old', {label: self._sums(BLOCKS if label < 0 else 1)\n"
        "                                                for label in self.reference})",
        "quality",
    ),
    Mutant(
        "intra FID: over all classes",
        "evaluation/fid.py",
        "features[labels == label]",
        "features[labels >= 0]",
        "quality",
    ),
    Mutant(
        "precision and recall swapped",
        "evaluation/feature_metrics.py",
        "precision, recall = calculate_precision_recall_part",
        "recall, precision = calculate_precision_recall_part",
        "quality",
    ),
    Mutant(
        "sweep: all values sampled with the same settings",
        "evaluation/sample_quality.py",
        "            configure()\n            prefix",
        "            prefix",
        "quality",
    ),
    # Latents and cascades
    Mutant(
        "KL bottleneck: exp(log_var) as standard deviation",
        "networks/autoencoder.py",
        "(0.5 * log_var).exp() * noise(mean)",
        "log_var.exp() * noise(mean)",
        "latents",
    ),
    Mutant(
        "KL bottleneck: wrong sign of the log variance",
        "networks/autoencoder.py",
        "log_var.exp() - 1 - log_var",
        "log_var.exp() - 1 + log_var",
        "latents",
    ),
    Mutant(
        "VQ: commitment loss moves the codebook",
        "networks/autoencoder.py",
        "self.commitment * (h - nearest.detach()).square()",
        "self.commitment * (h.detach() - nearest).square()",
        "latents",
    ),
    Mutant(
        "VQ: no straight-through gradient",
        "networks/autoencoder.py",
        "return z + (nearest - z).detach()",
        "return nearest",
        "latents",
    ),
    Mutant(
        "autoencoder: penalty per image, loss per pixel",
        "systems/autoencoder_system.py",
        "encoding.penalty / x[0].numel()",
        "encoding.penalty",
        "latents",
    ),
    Mutant(
        "adversary loss reaches the autoencoder",
        "systems/autoencoder_system.py",
        "discriminator(reconstruction.detach())",
        "discriminator(reconstruction)",
        "latents",
    ),
    Mutant(
        "autoencoder loss reaches the adversary",
        "systems/autoencoder_system.py",
        "functional_call(discriminator, frozen, (reconstruction,))",
        "discriminator(reconstruction)",
        "latents",
    ),
    Mutant(
        "latents: divided by the variance",
        "sampling/codecs.py",
        "std = (square - mean.square()).sqrt()",
        "std = square - mean.square()",
        "latents",
    ),
    Mutant(
        "latents: mean not subtracted",
        "sampling/codecs.py",
        "return (z - self.mean[:, None, None]) /",
        "return z /",
        "latents",
    ),
    Mutant(
        "latents: fingerprint of the autoencoder not checked",
        "sampling/codecs.py",
        'if state["autoencoder"] != self.space:',
        "if False:",
        "latents",
    ),
    Mutant(
        "latents: bin width of pixels",
        "systems/diffusion.py",
        "cond, self.codec.bin_width)",
        "cond, self.bin_width)",
        "latents",
    ),
    Mutant(
        "cascade: noisy image of a truncated stage not scaled",
        "sampling/cascade.py",
        "x / per_pixel(stage.process.scale(time), x)",
        "x",
        "cascade",
    ),
    Mutant(
        "truncated chain ends at a timestep of the full chain",
        "diffusion/samplers.py",
        "if t > t_end), t_end]",
        "if t > t_end), t_end and max(t for t in times if t <= t_end)]",
        "cascade",
    ),
    Mutant(
        "analytic variance of latents without encoder noise",
        "evaluation/analytic_variance.py",
        "pipeline.codec.encode(images.x0.to(device), noise)",
        "pipeline.codec.encode(images.x0.to(device), torch.zeros_like)",
        "latents",
    ),
    Mutant(
        "truncated conditioning: noise added again",
        "conditioners/low_res.py",
        'if "noise_level" in batch:',
        "if False:",
        "conditioners",
    ),
    Mutant(
        "cascade: noise level from variances",
        "sampling/cascade.py",
        "torch.atan2(sigma, alpha)",
        "torch.atan2(sigma**2, alpha**2)",
        "cascade",
    ),
    Mutant(
        "cascade: stages share their noise",
        "sampling/pipeline.py",
        "PerSampleGenerator(seed, samples, self.denoiser.conditioner.noise_stream)",
        "PerSampleGenerator(seed, samples)",
        "cascade",
    ),
    Mutant(
        "cascade: stages with different classes",
        "sampling/cascade.py",
        'label = conditions.get("label")',
        'label = conditions["label"].flip(0)',
        "cascade",
    ),
    Mutant(
        "low_res: every image blurred",
        "conditioners/low_res.py",
        "uniform(noise, noise_level) < 0.5",
        "uniform(noise, noise_level) < 2",
        "conditioners",
    ),
    Mutant(
        "low_res: blur along one axis",
        "conditioners/low_res.py",
        "for axis in (2, 3):",
        "for axis in (2,):",
        "conditioners",
    ),
    # Metrics of tables
    Mutant(
        "inception score: uniform marginal",
        "evaluation/statistics.py",
        "xlogy(mean[:, :-1], mean[:, :-1]).sum(1)",
        "xlogy(mean[:, :-1], mean[:, :-1].mean()).sum(1)",
        "quality",
    ),
    Mutant(
        "inception score: mean before exp",
        "evaluation/statistics.py",
        ".exp().mean().item()",
        ".mean().exp().item()",
        "quality",
    ),
    Mutant(
        "reconstruction: error on data in [-1, 1]",
        "evaluation/reconstruction.py",
        "((decoded - data) / 2)",
        "((decoded - data) / 1)",
        "evaluation",
    ),
    # Sweeps and reports
    Mutant(
        "failed job counts as done",
        "sweeps/job.py",
        'return self.state().get("status") == 0',
        'return "status" in self.state()',
        "sweeps",
    ),
    Mutant(
        "job done under another configuration",
        "sweeps/job.py",
        'return state if state.get("config") == self.config_hash else {}',
        "return state",
        "sweeps",
    ),
    Mutant(
        "job does not wait for its dependencies",
        "sweeps/scheduler.py",
        "elif len(running) < max_workers and all(need.done() for need in job.needs):",
        "elif len(running) < max_workers:",
        "sweeps",
    ),
    Mutant(
        "difference to the paper: wrong sign",
        "reports/table.py",
        "self.ours - self.theirs",
        "self.theirs - self.ours",
        "reports",
    ),
    Mutant(
        "mean over the available seeds only",
        "reports/table.py",
        "if self.sources and len(self.values) == len(self.sources) else None",
        "if self.values else None",
        "reports",
    ),
    Mutant(
        "claim checked in the last column only",
        "ablations/claims.py",
        "verdicts |= {pair.verdict for pair in pairs}",
        "verdicts = {pair.verdict for pair in pairs}",
        "ablations",
    ),
    Mutant(
        "claim: ratio ignored",
        "ablations/claims.py",
        "b - self.ratio * a for",
        "b - a for",
        "ablations",
    ),
    Mutant(
        "claim of one seed: ratio ignored",
        "ablations/claims.py",
        "low < high if self.ratio == 1 else self.ratio * low <= high",
        "low < high",
        "ablations",
    ),
    Mutant(
        "claim: margin of one standard error",
        "ablations/claims.py",
        "MARGIN = 2",
        "MARGIN = 1",
        "ablations",
    ),
    Mutant(
        "claim: standard deviation for the standard error",
        "ablations/claims.py",
        "stdev(differences) / sqrt(len(differences))",
        "stdev(differences)",
        "ablations",
    ),
    Mutant(
        "claim: missing number ignored",
        "ablations/claims.py",
        'verdicts.add("not run")',
        "pass",
        "ablations",
    ),
    Mutant(
        "difference to another protocol",
        "ablations/tables.py",
        "entry.comparable and DAGGER not in marks",
        "entry.comparable",
        "ablations",
    ),
    Mutant(
        "footnote missing: other sample count",
        "ablations/tables.py",
        "if entry.protocol.get(key, value) != value",
        "if entry.protocol.get(key, value) != value and False",
        "ablations",
    ),
    Mutant(
        "footnote missing: other protocol of the paper",
        "ablations/tables.py",
        "for key, value in theirs.items() if usual.get(key) != value",
        "for key, value in theirs.items() if False",
        "ablations",
    ),
    Mutant(
        "processes draw the same noise",
        "diffusion/rng.py",
        "batch.narrow(0, self.before, len(like))",
        "batch.narrow(0, 0, len(like))",
        "ranks",
    ),
    Mutant(
        "processes read the same rows",
        "data/module.py",
        "slice(start + self.rank * self.rows, start + (self.rank + 1) * self.rows)",
        "slice(start, start + self.rows)",
        "ranks",
    ),
    Mutant(
        "jackknife: error of one block",
        "evaluation/statistics.py",
        "(BLOCKS - 1) * scores.var(correction=0)",
        "scores.var(correction=0)",
        "quality",
    ),
    Mutant(
        "jackknife: no bias correction",
        "evaluation/statistics.py",
        "BLOCKS * value - (BLOCKS - 1) * scores.mean().item()",
        "value",
        "quality",
    ),
    Mutant(
        "jackknife: all samples in one block",
        "evaluation/fid.py",
        "numbers * BLOCKS // count",
        "numbers * 0",
        "quality",
    ),
    Mutant(
        "cached statistics ignore labels",
        "data/datasets.py",
        "return _digest(self.values, self.labels)",
        "return _digest(self.values)",
        "quality",
    ),
    Mutant(
        "16-bit images clipped at 255",
        "data/image_transform.py",
        "((values * 255 + most // 2) // most)",
        "values.clip(0, 255)",
        "folder",
    ),
    Mutant(
        "transparent pixels not composited",
        "data/image_transform.py",
        'image = Image.alpha_composite(ground, image.convert("RGBA"))',
        "pass",
        "folder",
    ),
    Mutant(
        "EXIF orientation ignored",
        "data/image_io.py",
        "ImageOps.exif_transpose(image, in_place=True)",
        "pass",
        "folder",
    ),
    Mutant(
        "held-out images in the training split",
        "data/image_tree.py",
        "elif splits and train is not None and tests:",
        "elif False:",
        "folder",
    ),
    Mutant(
        "store: checksums not verified",
        "data/shards.py",
        "            source.verify()\n",
        "            pass\n",
        "folder",
    ),
    # Interrupted runs
    Mutant(
        "batch noise depends on previous batches",
        "systems/base.py",
        "self.generator.manual_seed(derive_seed(self.seed, batch_idx, 1))",
        "pass",
        "resume",
    ),
    Mutant(
        "resume: starts at the first batch",
        "data/module.py",
        "divmod(self.done, size // self.batch_size)",
        "divmod(0, size // self.batch_size)",
        "resume",
    ),
    Mutant(
        "resume: pending callbacks not run",
        "callbacks/periodic.py",
        "    def on_train_start(self, trainer: L.Trainer, pl_module: "
        "L.LightningModule) -> None:\n        self._run_if_due(trainer, pl_module)\n",
        "",
        "resume",
    ),
    Mutant(
        "resume: pending validation not run",
        "systems/base.py",
        "            loop.val_loop.run()\n",
        "            pass\n",
        "resume",
    ),
    Mutant(
        "checkpoint: partial mean lost",
        "callbacks/losses.py",
        "self.values[name].append(value.to(pl_module.device))",
        "pass",
        "resume",
    ),
    Mutant(
        "resume: metrics.csv starts over",
        "callbacks/checkpoints.py",
        "history.rewind(text)",
        "pass",
        "resume",
    ),
    Mutant(
        "atomic write: partial file renamed",
        "utils/atomic_io.py",
        "    finally:\n        partial.unlink(missing_ok=True)\n",
        "    except OSError:\n        partial.replace(file)\n        raise\n",
        "resume",
    ),
    Mutant(
        "lock: two runs in one directory",
        "utils/atomic_io.py",
        "if error.errno in LOCKED:\n",
        "if False:\n",
        "resume",
    ),
    Mutant(
        "resume: changed configuration accepted",
        "runs/resume.py",
        "    if changed:\n",
        "    if False:\n",
        "resume",
    ),
    Mutant(
        "resume: finished run continues",
        "runs/resume.py",
        "if step >= steps and",
        "if step > config.trainer.max_steps and",
        "resume",
    ),
    Mutant(
        "non-finite step applied",
        "systems/nonfinite_steps.py",
        "optimizer.found_inf = bad",
        "pass",
        "resume",
    ),
    Mutant(
        "non-finite steps without limit",
        "systems/nonfinite_steps.py",
        "if self.host_counts[1] >= LIMIT:",
        "if False:",
        "resume",
    ),
    Mutant(
        "non-finite weights saved",
        "callbacks/checkpoints.py",
        "if path := trainer.strategy.broadcast(next(find_non_finite(checkpoint), None)):",
        "if path := None:",
        "resume",
    ),
    Mutant(
        "signal delayed by long loops",
        "utils/watchdog.py",
        "if _State.signal and _State.alone:",
        "if False:",
        "resume",
    ),
    Mutant(
        "corrupt checkpoint ends the search",
        "runs/weights.py",
        "            errors.append(error)\n            continue",
        "            raise",
        "safety",
    ),
    # Untrusted files
    Mutant(
        "torch.load without weights_only",
        "utils/safe_load.py",
        "weights_only=True",
        "weights_only=None",
        "safety",
    ),
    Mutant(
        "zip checksums not verified", "utils/safe_load.py", "archive.testzip()", "None", "safety"
    ),
    Mutant(
        "safetensors checksum not verified",
        "utils/safe_load.py",
        'if metadata.pop("sha256", None) != _checksum(tensors, metadata):',
        "if not metadata.pop('sha256', None):",
        "safety",
    ),
    Mutant(
        "data of a foreign run read without consent",
        "runs/trusted_paths.py",
        "        if _line(key, path) not in",
        "        if False and _line(key, path) not in",
        "safety",
    ),
    Mutant(
        "W&B reads the working directory",
        "callbacks/loggers.py",
        "with chdir(Path(__file__).parent):",
        "with suppress():",
        "safety",
    ),
    Mutant(
        "foreign config sets Hydra options",
        "runs/saved_config.py",
        'if "hydra" in content:',
        "if False:",
        "safety",
    ),
    Mutant(
        "foreign config: any class instantiated",
        "runs/saved_config.py",
        "name in targets or",
        "name or",
        "safety",
    ),
    Mutant(
        "foreign config: any group interpolated",
        "runs/saved_config.py",
        "and reference[1] not in groups:",
        "and False:",
        "safety",
    ),
    Mutant(
        "foreign config: YAML tags and aliases allowed",
        "runs/saved_config.py",
        'if getattr(event, "anchor", None) or getattr(event, "tag", None):',
        "if False:",
        "safety",
    ),
    Mutant(
        "model size not checked against its weights",
        "utils/safe_load.py",
        "if shape != parameter.shape:",
        "if False:",
        "safety",
    ),
    Mutant(
        "links in a run followed",
        "utils/safe_load.py",
        "if Path(path).is_symlink():",
        "if False:",
        "safety",
    ),
    Mutant(
        "FIFOs opened",
        "utils/safe_load.py",
        "if not stat.S_ISREG(reject_links(path).lstat().st_mode):",
        "if stat.S_ISDIR(reject_links(path).lstat().st_mode):",
        "safety",
    ),
    Mutant(
        "secrets logged",
        "runs/saved_config.py",
        "raise ValueError(name)",
        "return oc.env(name, *default)",
        "safety",
    ),
    Mutant(
        "control characters printed",
        "utils/errors.py",
        "return match[0] if lines and",
        "return match[0] if",
        "safety",
    ),
    # Published weights
    Mutant(
        "weights: old order of queries, keys and values taken as new",
        "interop/layout.py",
        'return rows if order == "new" else',
        "return rows if True else",
        "interop",
    ),
    Mutant(
        "weights: new order of queries, keys and values taken as old",
        "interop/layout.py",
        'return rows if order == "new" else',
        "return rows if False else",
        "interop",
    ),
    Mutant(
        "weights: times numbered from 1",
        "interop/diffusers.py",
        '"model.time_shift": -1,',
        '"model.time_shift": 0,',
        "interop",
    ),
    Mutant(
        "weights: times of Ho et al. numbered from 1",
        "interop/ho.py",
        '"model.time_shift": -1,',
        '"model.time_shift": 0,',
        "interop",
    ),
    Mutant(
        "weights: sines taken for cosines",
        "interop/diffusers.py",
        'sines_first=not config.get("flip_sin_to_cos", True)',
        "sines_first=False",
        "interop",
    ),
    Mutant(
        "weights: frequency shift ignored",
        "interop/diffusers.py",
        '"model.frequency_shift": shift',
        '"model.frequency_shift": 0',
        "interop",
    ),
    Mutant(
        "weights: padding of Ho et al. on all sides",
        "networks/layers.py",
        "F.pad(x, (0, 1, 0, 1))",
        "F.pad(x, (1, 0, 1, 0))",
        "interop",
    ),
    Mutant(
        "weights: downsample_padding ignored",
        "interop/diffusers.py",
        '"model.downsample_padding": config.get("downsample_padding", 1)',
        '"model.downsample_padding": 1',
        "interop",
    ),
    Mutant(
        "weights: groups of norms ignored",
        "interop/diffusers.py",
        '"model.norm_groups": groups',
        '"model.norm_groups": 4',
        "interop",
    ),
    Mutant(
        "weights: eps of norms ignored",
        "interop/ho.py",
        '"model.dropout": 0.0,\n        "model.norm_groups": 32,\n        "model.norm_eps": 1e-6,',
        '"model.dropout": 0.0,\n        "model.norm_groups": 32,\n        "model.norm_eps": 1e-2,',
        "interop",
    ),
    Mutant(
        "weights: raw instead of averaged",
        "interop/ldm.py",
        'if weights == "ema":',
        'if weights == "raw":',
        "interop",
    ),
    Mutant(
        "weights: scale of latents inverted",
        "interop/conversion.py",
        "1 / scale",
        "scale",
        "interop",
    ),
    Mutant(
        "weights: rows of a patch not transposed",
        "interop/dit.py",
        ".transpose(0, 1).flatten(0, 1)",
        ".flatten(0, 1)",
        "interop",
    ),
    Mutant(
        "weights: null label is the first row",
        "interop/dit.py",
        "lambda one: one[0][-1]",
        "lambda one: one[0][0]",
        "interop",
    ),
    Mutant(
        "weights: 1x1 convolution before the decoder left out",
        "networks/autoencoder.py",
        "latents = self.latent_conv(self.bottleneck.restore(z))",
        "latents = self.bottleneck.restore(z)",
        "interop",
    ),
    Mutant(
        "weights: bias of the convolution not multiplied by the 1x1 convolution",
        "interop/autoencoder_layout.py",
        "factor.flatten(1) @ offset + other",
        "offset + other",
        "interop",
    ),
    Mutant(
        "weights: mean not among the keys of the attention pooling",
        "networks/classifier.py",
        "pixels = torch.cat([mean, pixels], dim=1) + self.positions",
        "pixels = torch.cat([mean, pixels], dim=1) + self.positions * 0.5",
        "interop",
    ),
    Mutant(
        "weights: export rotates the time backward",
        "interop/layout.py",
        "cosines * angles.cos() + sines * angles.sin()",
        "cosines * angles.cos() - sines * angles.sin()",
        "interop",
    ),
    Mutant(
        "weights: exported time not shifted",
        "interop/exporting.py",
        "_shift_time(network, 1.0 + network.time_shift)",
        "network.state_dict()",
        "interop",
    ),
    Mutant(
        "weights: variance of the scheduler ignored",
        "interop/schedulers.py",
        '"variance": VARIANCES[variance]',
        '"variance": "beta_tilde"',
        "interop",
    ),
    Mutant(
        "weights: objects of a pickle are executed",
        "interop/files.py",
        "weights_only=True, mmap=is_zip",
        "weights_only=False, mmap=is_zip",
        "interop",
    ),
    # Noise levels and EDM
    Mutant(
        "edm: log SNR between times not linear",
        "diffusion/process.py",
        "linear = torch.lerp(log_snr, next_log_snr, share)",
        "linear = torch.lerp(log_snr, next_log_snr, share**2)",
        "noise_levels",
    ),
    Mutant(
        "edm: interpolation off by one",
        "diffusion/process.py",
        "low = t.floor().long().clamp(0, len(table) - 2)\n    share = t.double() - low",
        "low = (t.floor().long() - 1).clamp(0, len(table) - 2)\n    share = t.double() - low - 1",
        "noise_levels",
    ),
    Mutant(
        "edm: interpolation leaves the variance",
        "diffusion/process.py",
        "(here - start) / (end - start)",
        "share",
        "noise_levels",
    ),
    Mutant(
        "edm: time of a noise level is the next entry",
        "diffusion/process.py",
        "index + share)",
        "index + 1.0)",
        "noise_levels",
    ),
    Mutant(
        "edm: noise level squared",
        "diffusion/process.py",
        "return (-0.5 * self.log_snr(t)).exp()",
        "return (-self.log_snr(t)).exp()",
        "noise_levels",
    ),
    Mutant(
        "edm: rho not inverted",
        "diffusion/timestep_spacing.py",
        "high ** (1 / rho), low ** (1 / rho)",
        "high ** (1 / rho), low",
        "noise_levels",
    ),
    Mutant(
        "edm: rho is 8",
        "diffusion/timestep_spacing.py",
        "rho or 7.0",
        "rho or 8.0",
        "noise_levels",
    ),
    Mutant(
        "edm: log-normal mean with the wrong sign",
        "diffusion/timestep_samplers.py",
        "(self.mean + self.std * z).exp()",
        "(self.std * z - self.mean).exp()",
        "noise_levels",
    ),
    Mutant(
        "edm: log-normal variance instead of deviation",
        "diffusion/timestep_samplers.py",
        "(self.mean + self.std * z).exp()",
        "(self.mean + self.std**2 * z).exp()",
        "noise_levels",
    ),
    Mutant(
        "edm: sigma_data missing in v",
        "diffusion/predictions.py",
        "return std**2 * alpha / scale**2, -std * sigma / scale",
        "return alpha / scale**2, -sigma / scale",
        "noise_levels",
    ),
    Mutant(
        "edm: sigma_data missing in the input",
        "diffusion/process.py",
        "torch.hypot(self.data_std * alpha, sigma)",
        "torch.hypot(alpha, sigma)",
        "noise_levels",
    ),
    Mutant(
        "edm: network time of float times not rescaled",
        "diffusion/denoiser.py",
        "(t * (1000 / process.steps)).float()",
        "(t.long() * (1000 / process.steps)).float()",
        "noise_levels",
    ),
    Mutant(
        "edm: churn without variance of the level before",
        "diffusion/ode_solvers.py",
        "process.rediffuse(x, self.s_noise * noise(x), t, raised)",
        "process.diffuse(x, self.s_noise * noise(x), raised)",
        "solvers",
    ),
    Mutant(
        "edm: s_noise ignored",
        "diffusion/ode_solvers.py",
        "process.rediffuse(x, self.s_noise * noise(x), t, raised)",
        "process.rediffuse(x, noise(x), t, raised)",
        "solvers",
    ),
    Mutant(
        "edm: churn for every level",
        "diffusion/ode_solvers.py",
        "inside &= level <= self.s_tmax",
        "inside &= level <= 1e9 * self.s_tmax",
        "solvers",
    ),
    Mutant(
        "edm: churn not divided by the steps",
        "diffusion/ode_solvers.py",
        "min(self.s_churn / steps, math.sqrt(2) - 1)",
        "min(self.s_churn / (steps + 1), math.sqrt(2) - 1)",
        "solvers",
    ),
    Mutant(
        "edm: extrapolation with the wrong sign",
        "diffusion/ode_solvers.py",
        "(x0 - step.previous.estimate.x0)",
        "(step.previous.estimate.x0 - x0)",
        "solvers",
    ),
    Mutant(
        "edm: SDE solver with the variance of the whole step",
        "diffusion/multistep_solvers.py",
        "process.beta_tilde(step.t, step.s).sqrt()",
        "process.beta(step.t, step.s).sqrt()",
        "solvers",
    ),
    Mutant(
        "edm: half of the curvature in 3M",
        "diffusion/multistep_solvers.py",
        "(1 - 2 * (fall + h) / h**2)",
        "(0.5 - (fall + h) / h**2)",
        "solvers",
    ),
    Mutant(
        "edm: 3M slope at the previous time",
        "diffusion/multistep_solvers.py",
        "slope = slope + per_pixel(h_1",
        "slope = slope - per_pixel(h_1",
        "solvers",
    ),
    Mutant(
        "edm: UniC without the previous estimate",
        "diffusion/multistep_solvers.py",
        "if start.previous is not None:",
        "if start.previous is not None and h < 0:",
        "solvers",
    ),
    Mutant(
        "edm: UniC from the uncorrected x",
        "diffusion/multistep_solvers.py",
        "step._replace(x_t=_correct(denoiser.process, step))",
        "step",
        "solvers",
    ),
    Mutant(
        "edm: history of one step",
        "diffusion/samplers.py",
        "previous = step.forget(self.history)",
        "previous = step.forget(1)",
        "solvers",
    ),
    # Inverse problems and editing
    Mutant(
        "inverse: mask inverted",
        "sampling/inverse_problems.py",
        "return Mask(pixels.double() / 255)",
        "return Mask(1 - pixels.double() / 255)",
        "editing",
    ),
    Mutant(
        "inverse: hidden pixels replaced",
        "diffusion/inverse_guidance.py",
        "torch.where(self.visible, self.measurement(x_t, cond), estimate.x0)",
        "torch.where(self.visible, estimate.x0, self.measurement(x_t, cond))",
        "inverse",
    ),
    Mutant(
        "inverse: visible pixels have the variance of the model",
        "diffusion/inverse_guidance.py",
        "torch.where(self.visible, log_var, step.log_var)",
        "step.log_var",
        "inverse",
    ),
    Mutant(
        "inverse: DPS with the norm squared",
        "diffusion/inverse_guidance.py",
        "torch.autograd.grad(norm.sum(), leaf)",
        "torch.autograd.grad(norm.square().sum(), leaf)",
        "inverse",
    ),
    Mutant(
        "inverse: DPS with the norm of the batch",
        "diffusion/inverse_guidance.py",
        "torch.linalg.vector_norm(residual.flatten(1), dim=1)",
        "torch.linalg.vector_norm(residual)",
        "inverse",
    ),
    Mutant(
        "inverse: DPS without the Jacobian of the denoiser",
        "diffusion/inverse_guidance.py",
        "torch.autograd.grad(norm.sum(), leaf)",
        "torch.autograd.grad(norm.sum(), x0)",
        "inverse",
    ),
    Mutant(
        "inverse: DPS ascends",
        "diffusion/inverse_guidance.py",
        "step.mean - self.zeta * self.gradient",
        "step.mean + self.zeta * self.gradient",
        "inverse",
    ),
    Mutant(
        "inverse: DPS without clipping inside the norm",
        "diffusion/inverse_guidance.py",
        "x0 = estimate.x0 if self.clip is None else estimate.x0.clamp(-self.clip, self.clip)",
        "x0 = estimate.x0",
        "inverse",
    ),
    Mutant(
        "inverse: r_t without the factor of alpha",
        "diffusion/inverse_guidance.py",
        "signal = (self.data_std * alpha) ** 2",
        "signal = self.data_std**2",
        "inverse",
    ),
    Mutant(
        "inverse: r_t without the variance of the data",
        "diffusion/inverse_guidance.py",
        "variance = (self.data_std * sigma) ** 2 / (signal + sigma**2)",
        "variance = sigma**2 / (signal + sigma**2)",
        "inverse",
    ),
    Mutant(
        "inverse: PiGDM with the noise instead of its variance",
        "diffusion/inverse_guidance.py",
        "per_pixel(self.noise**2 / variance, x0)",
        "per_pixel(self.noise / variance, x0)",
        "inverse",
    ),
    Mutant(
        "inverse: PiGDM not divided by r_t squared",
        "diffusion/inverse_guidance.py",
        "self.operator.inverse(residual, ratio) / per_pixel(variance, x0)",
        "self.operator.inverse(residual, ratio)",
        "inverse",
    ),
    Mutant(
        "inverse: PiGDM shifts x_0 as if it were x_t",
        "diffusion/inverse_guidance.py",
        "torch.where(alpha > 0, sigma**2 / alpha, 0)",
        "sigma**2",
        "inverse",
    ),
    Mutant(
        "inverse: adjoint instead of the pseudo-inverse of a separable operator",
        "diffusion/operators.py",
        "gain = torch.where(power > 1e-6, s / power, 0)",
        "gain = s",
        "inverse",
    ),
    Mutant(
        "inverse: adjoint instead of the pseudo-inverse of gray",
        "diffusion/operators.py",
        "self.weights.to(y) * y / (self.weights.square().sum().to(y) + ratio)",
        "self.weights.to(y) * y",
        "inverse",
    ),
    Mutant(
        "inverse: blur with black borders",
        "diffusion/operators.py",
        "source = torch.minimum(source, 2 * side - 1 - source)",
        "weights = weights * (source < side); source = source % side",
        "inverse",
    ),
    Mutant(
        "inverse: every sample has the first measurement",
        "diffusion/inverse_guidance.py",
        "self.y.to(x)[index.to(x.device) % len(self.y)]",
        "self.y.to(x)[index.to(x.device) * 0]",
        "inverse",
    ),
    Mutant(
        "inverse: measurements restart in each batch",
        "sampling/pipeline.py",
        'return {**conditions, "index": torch.as_tensor(samples)}',
        "return conditions",
        "editing",
    ),
    Mutant(
        "inverse: no classifier-free guidance inside",
        "diffusion/inverse_guidance.py",
        "super().__init__(ClassifierFreeGuidance(denoiser, w))",
        "super().__init__(denoiser)",
        "inverse",
    ),
    Mutant(
        "inverse: RePaint renoises without the signal's ratio",
        "diffusion/process.py",
        "return per_pixel(ratio, x_s) * x_s + per_pixel(self.beta(t, s).sqrt(), x_s) * eps",
        "return x_s + per_pixel(self.beta(t, s).sqrt(), x_s) * eps",
        "inverse",
    ),
    Mutant(
        "inverse: RePaint repeats once too often",
        "diffusion/samplers.py",
        "([*block, body[first]] * self.resamples)[:-1]",
        "([*block, body[first]] * (self.resamples + 1))[:-1]",
        "inverse",
    ),
    Mutant(
        "inverse: edits begin at T",
        "diffusion/samplers.py",
        "spacing=[t, *(s for s in times if s < t)]",
        "spacing=times",
        "editing",
    ),
    Mutant(
        "inverse: the sampler repeats the noise of the edit",
        "sampling/editing.py",
        "PerSampleGenerator(seed, index.tolist(), STREAM)",
        "PerSampleGenerator(seed, index.tolist())",
        "editing",
    ),
    Mutant(
        "inverse: noise is not added to measurements",
        "sampling/inverse_problems.py",
        "y = y + noise * PerSampleGenerator(0, range(len(y)))(y)",
        "y = y",
        "editing",
    ),
    Mutant(
        "clipped ddpm: bound of the variance instead of the standard deviation",
        "diffusion/samplers.py",
        "clamp(max=2 * math.log(self.max_last_std))",
        "clamp(max=math.log(self.max_last_std))",
        "samplers",
    ),
    Mutant(
        "clipped ddpm: the bound applies to no step",
        "diffusion/samplers.py",
        "per_pixel(step.s == 1, clipped)",
        "per_pixel(step.s == 0, clipped)",
        "samplers",
    ),
    Mutant(
        "sampler: cached numbers ignore the second time",
        "diffusion/process.py",
        "isinstance(time, Tensor) else time for time in times]",
        "isinstance(time, Tensor) else time for time in times[:1]]",
        "process",
    ),
    Mutant(
        "sampler: cached numbers ignore eta",
        "diffusion/process.py",
        "isinstance(time, Tensor) else time for",
        "isinstance(time, Tensor) else 0.0 for",
        "process",
    ),
    Mutant(
        "distillation: the teacher's weights are always averaged",
        "runs/distillation.py",
        "load_denoiser(run, weights)",
        "load_denoiser(run)",
        "distillation",
    ),
    Mutant(
        "explorer: the small variance for the large one",
        "explorer/samplers.mjs",
        'variance === "beta" ?',
        'variance === "none" ?',
        "explorer",
    ),
    Mutant(
        "explorer: eta instead of its square",
        "explorer/samplers.mjs",
        "const variance = eta ** 2 *",
        "const variance = eta *",
        "explorer",
    ),
    Mutant(
        "explorer: extrapolation over the whole step",
        "explorer/samplers.mjs",
        "(end - now) / (now - start) / 2",
        "(end - now) / (now - start)",
        "explorer",
    ),
    Mutant(
        "explorer: Heun's second slope at the first time",
        "explorer/samplers.mjs",
        "(await estimate(euler, s)).x0, s)",
        "(await estimate(euler, s)).x0, t)",
        "explorer",
    ),
    Mutant(
        "explorer: guidance of strength w instead of 1 + w",
        "explorer/samplers.mjs",
        "combine(1 + w, x0, -w, baseline)",
        "combine(w, x0, 1 - w, baseline)",
        "explorer",
    ),
    Mutant(
        "explorer: the noise of the next sample",
        "explorer/noise.mjs",
        "deriveSeed(seed, i, stream)",
        "deriveSeed(seed, i + 1, stream)",
        "explorer",
    ),
    Mutant(
        "explorer: halves are rounded up",
        "explorer/process.mjs",
        "(value - floor === 0.5 && floor % 2 !== 0)",
        "value - floor === 0.5",
        "explorer",
    ),
    Mutant(
        "explorer: the gain of a mixture without its width",
        "explorer/mixture.mjs",
        "(alpha * this.std ** 2) / variance",
        "(alpha * this.std) / variance",
        "explorer",
    ),
]


class Verdict(NamedTuple):
    outcome: str
    """caught, SURVIVED or BROKEN"""
    test: str
    """The first test that failed, or the output of a broken run"""


def spans(code: str, text: str) -> list[tuple[int, int]]:
    """Return start and end of each occurrence of `code` in `text`, independent of the layout."""
    pattern = [token for token, _, _ in _tokens(code)]
    tokens = list(_tokens(text))
    words = [token for token, _, _ in tokens]
    size = len(pattern)
    starts = [i for i in range(len(words)) if words[i : i + size] == pattern]
    return [(tokens[i][1], tokens[i + size - 1][2]) for i in starts]


def _tokens(code: str) -> Iterator[tuple[str, int, int]]:
    """Yield (token, start, end), without white space and trailing commas."""
    for match in re.finditer(r"\w+|,(?!\s*[)\]}])|[^\w\s,]", code):
        yield match[0], match.start(), match.end()


def inject(mutant: Mutant, package: Path) -> None:
    """Write the mutation into `package`. Raise ValueError unless its code occurs once."""
    file = package / mutant.file
    text = file.read_text()
    positions = spans(mutant.old, text)
    if len(positions) != 1:
        raise ValueError(f"{mutant.name}: its code occurs {len(positions)} times in {mutant.file}")
    ((start, end),) = positions
    file.write_text(text[:start] + mutant.new.strip() + text[end:])


def run_tests(mutant: Mutant | None, tests: str) -> Verdict:
    """Run `tests` on a copy of the code with `mutant`, or without a mutation for None."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("src", "tests", "configs", "scripts"):
            shutil.copytree(ROOT / name, copy / name)
        for file in (ROOT / "pyproject.toml", *ROOT.glob("*.py")):
            shutil.copy(file, copy)
        if mutant is not None:
            inject(mutant, copy / "src" / "ddpm_lab")
        options = ["-x", "-p", "no:cacheprovider", "-n", "0", "--tb=short"]
        options += ["-m", "not nightly"]
        files = [f"tests/test_{name}.py" for name in tests.split()]
        process = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *files],
            cwd=copy,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1"},
        )
    output = process.stdout
    if process.returncode == 0:
        return Verdict("SURVIVED", "")
    errors = re.findall(r"^E\s+(?:\w+\.)*(\w+Error)\b", output, re.MULTILINE)
    failures = re.findall(r"^(?:FAILED|ERROR) tests/([^ [\n]+)", output, re.MULTILINE)
    if process.returncode not in (1, 2) or not failures or not {*errors}.isdisjoint(BROKEN):
        return Verdict("BROKEN", output[-600:] + process.stderr[-600:])
    return Verdict("caught", failures[0])


def write_report(mutants: list[Mutant], verdicts: list[Verdict]) -> None:
    """Write docs/mutations.md."""
    caught = sum(verdict.outcome == "caught" for verdict in verdicts)
    lines = [
        "# Mutation testing",
        "",
        "`python scripts/mutants.py` injects typical implementation errors, one at a time, into a",
        "copy of the code and runs the tests that should fail; without a mutation they pass."
        f" {caught} of {len(mutants)} make a test fail.",
        "",
        "| mutation | in | outcome | first failed test |",
        "|---|---|---|---|",
    ]
    for mutant, verdict in zip(mutants, verdicts, strict=True):
        lines.append(f"| {mutant.name} | `{mutant.file}` | {verdict.outcome} | `{verdict.test}` |")
    REPORT.write_text("\n".join(lines) + "\n")


def main() -> None:
    words = sys.argv[1:]
    mutants = [
        mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)
    ]
    tests = " ".join(sorted({name for mutant in mutants for name in mutant.tests.split()}))
    bar = tqdm(total=len(mutants) + 1, unit="mutation")
    with ThreadPoolExecutor(os.cpu_count()) as pool, bar:
        jobs = [pool.submit(run_tests, None, tests)]
        jobs += [pool.submit(run_tests, mutant, mutant.tests) for mutant in mutants]
        for job in jobs:
            job.add_done_callback(lambda _: bar.update())
        baseline, *verdicts = [job.result() for job in jobs]
    for mutant, verdict in zip(mutants, verdicts, strict=True):
        print(f"{verdict.outcome:8}  {mutant.name}  {verdict.test}")
    caught = sum(verdict.outcome == "caught" for verdict in verdicts)
    print(f"{caught} of {len(mutants)} caught")
    if baseline.outcome != "SURVIVED":
        sys.exit(f"error: the tests fail without a mutation: {baseline.test}")
    if not words:
        write_report(mutants, verdicts)
        print(f"saved in {REPORT.relative_to(ROOT)}")
    sys.exit(caught < len(mutants))


if __name__ == "__main__":
    main()
