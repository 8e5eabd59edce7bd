"""Seeds known slips, one at a time, into a copy of the code, and shows that the tests catch every one.

python scripts/mutants.py            # all; writes docs/mutants.md
python scripts/mutants.py eta clip   # those whose name holds one of the words; writes nothing

Ends with status 1 if one survives, or breaks the code instead of making it wrong.
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
REPORT = ROOT / "docs" / "mutants.md"
BROKEN = (
    "NameError",
    "AttributeError",
    "SyntaxError",
    "ImportError",
    "TypeError",
    "IndentationError",
)


class Mutant(NamedTuple):
    """A slip: in `file` of the package `old`, which occurs once, becomes `new`; `tests` must notice."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    # The forward process and its schedules
    Mutant(
        "alpha_bar x_0, not its root",
        "diffusion/process.py",
        "return per_pixel(alpha, x0) * x0",
        "return per_pixel(alpha**2, x0) * x0",
        "process",
    ),
    Mutant(
        "(1 - alpha_bar) eps, not its root",
        "diffusion/schedules.py",
        "(-torch.expm1(log_alpha_bar)).sqrt()",
        "-torch.expm1(log_alpha_bar)",
        "schedules",
    ),
    Mutant(
        "the table of betas is off by one",
        "diffusion/schedules.py",
        "torch.log1p(-betas).cumsum(0)",
        "torch.log1p(-betas).roll(1).cumsum(0)",
        "schedules",
    ),
    Mutant(
        "cosine: beta not cut",
        "diffusion/schedules.py",
        "_clip(1 - f[1:] / f[:-1], max_beta)",
        "(1 - f[1:] / f[:-1]).clamp(max=1 - 1e-15)",
        "schedules",
    ),
    Mutant(
        "cosine: beta cut at the wrong end",
        "diffusion/schedules.py",
        "_clip(1 - f[1:] / f[:-1], max_beta)",
        "(1 - f[1:] / f[:-1]).clamp(1 - max_beta, 0.9999)",
        "schedules",
    ),
    Mutant(
        "cosine: not divided by f(0)",
        "diffusion/schedules.py",
        "return from_betas(_clip(1 - f[1:] / f[:-1]",
        "f[0] = 1\n    return from_betas(_clip(1 - f[1:] / f[:-1]",
        "schedules",
    ),
    Mutant(
        "ends not rescaled when T changes",
        "diffusion/schedules.py",
        "scale = 1000 / steps if rescale else 1.0",
        "scale = 1.0",
        "schedules",
    ),
    Mutant(
        "quadratic: beta linear, not its root",
        "diffusion/schedules.py",
        "_line(steps, low**0.5, high**0.5) ** 2",
        "_line(steps, low, high)",
        "schedules",
    ),
    Mutant(
        "beta for beta tilde",
        "diffusion/process.py",
        "return self.beta(t, s) * (sigma_s / sigma_t) ** 2",
        "return self.beta(t, s)",
        "process variances",
    ),
    Mutant(
        "a floor for log beta tilde at the data",
        "diffusion/process.py",
        "        last = s == 0\n",
        "        last = s == -1\n",
        "process",
    ),
    Mutant(
        "beta of the full chain on a strided one",
        "diffusion/process.py",
        "self.log_snr(t) - self.log_snr(s))",
        "self.log_snr(t) - self.log_snr(t - 1))",
        "process",
    ),
    Mutant(
        "posterior: signal of t for that of s",
        "diffusion/process.py",
        "return self.alpha_sigma(s)[0] * self.tau(t, s)",
        "return self.alpha_sigma(t)[0] * self.tau(t, s)",
        "process",
    ),
    Mutant(
        "posterior: root of the ratio of variances",
        "diffusion/process.py",
        "alpha_t / alpha_s * (sigma_s / sigma_t) ** 2",
        "alpha_t / alpha_s * (sigma_s / sigma_t)",
        "process",
    ),
    Mutant(
        "an exploding chain begins at variance 1",
        "diffusion/process.py",
        "return per_pixel(self.scale(t), z) * z",
        "return z",
        "process",
    ),
    Mutant(
        "score divided by the variance, not eps by its root",
        "diffusion/process.py",
        "per_pixel(alpha / sigma**2, x_t) * x0 - per_pixel(sigma**-2, x_t) * x_t",
        "per_pixel(alpha / sigma, x_t) * x0 - per_pixel(sigma**-1, x_t) * x_t",
        "process",
    ),
    Mutant(
        "tables in float32",
        "diffusion/schedules.py",
        "torch.linspace(start, end, steps, dtype=torch.float64)",
        "torch.linspace(start, end, steps, dtype=torch.float32)",
        "schedules",
    ),
    # What the network is asked and told
    Mutant(
        "v with the wrong sign",
        "diffusion/predictions.py",
        "per_pixel(alpha / scale, x0) * eps - per_pixel(sigma / scale, x0) * x0",
        "per_pixel(sigma / scale, x0) * x0 - per_pixel(alpha / scale, x0) * eps",
        "predictions",
    ),
    Mutant(
        "mean: x_t's share not taken off",
        "diffusion/predictions.py",
        "return -process.posterior_coef_xt(t, t - 1) / coef_x0, 1",
        "return 0 * coef_x0, 1",
        "predictions",
    ),
    Mutant(
        "score: not divided by the noise",
        "diffusion/predictions.py",
        "return -eps / per_pixel(process.alpha_sigma(t)[1], eps)",
        "return -eps",
        "predictions",
    ),
    Mutant(
        "the network hears the index, not the time",
        "diffusion/denoiser.py",
        "t * (1000 / self.process.steps), cond",
        "t, cond",
        "denoiser",
    ),
    Mutant(
        "the network's time is off by one",
        "diffusion/denoiser.py",
        "t * (1000 / self.process.steps), cond",
        "(t - 1) * (1000 / self.process.steps), cond",
        "denoiser",
    ),
    Mutant(
        "exploding x_t not scaled for the network",
        "diffusion/denoiser.py",
        "self.network(c_in * x_t, t",
        "self.network(x_t, t",
        "denoiser",
    ),
    Mutant(
        "halves of the network's answer swapped",
        "diffusion/denoiser.py",
        "prediction, variance_output = output.chunk",
        "variance_output, prediction = output.chunk",
        "denoiser",
    ),
    # Variances
    Mutant(
        "learned v read from [0, 1]",
        "diffusion/variances.py",
        "return middle + half * output",
        "return per_pixel(low, like) + per_pixel(high - low, like) * output",
        "variances",
    ),
    Mutant(
        "learned v clamped",
        "diffusion/variances.py",
        "half * output",
        "half * output.clamp(-1, 1)",
        "variances",
    ),
    Mutant(
        "ends of the learned range swapped",
        "diffusion/variances.py",
        "high, low = process.beta(t, s).log(), process.log_beta_tilde(t, s)",
        "low, high = process.beta(t, s).log(), process.log_beta_tilde(t, s)",
        "variances",
    ),
    Mutant(
        "beta in the step to the data",
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
    # Objectives and times
    Mutant(
        "lambda on one term, without T",
        "diffusion/objectives.py",
        "return denoiser.process.steps * term",
        "return term",
        "objectives",
    ),
    Mutant(
        "the bound's gradient reaches the mean",
        "diffusion/objectives.py",
        "output = output._replace(prediction=output.prediction.detach())",
        "output = output._replace(prediction=output.prediction)",
        "objectives",
    ),
    Mutant(
        "sum over pixels for mean",
        "diffusion/objectives.py",
        "(output.prediction - target).square().flatten(1).mean(1)",
        "(output.prediction - target).square().flatten(1).sum(1)",
        "objectives",
    ),
    Mutant(
        "min-SNR: the larger for the smaller",
        "diffusion/objectives.py",
        "clamp(max=self.gamma)",
        "clamp(min=self.gamma)",
        "objectives",
    ),
    Mutant(
        "weights of x_0 on errors of eps",
        "diffusion/objectives.py",
        "scale**2 * self.weight",
        "self.weight",
        "objectives",
    ),
    Mutant(
        "times drawn from 0 to T - 1",
        "diffusion/timestep_samplers.py",
        "torch.randint(1, self.steps + 1,",
        "torch.randint(0, self.steps,",
        "timesteps",
    ),
    Mutant(
        "mean matching: coefficient not squared",
        "diffusion/objectives.py",
        "return process.posterior_coef_x0(t, t - 1) ** 2",
        "return process.posterior_coef_x0(t, t - 1)",
        "objectives",
    ),
    Mutant(
        "importance: forgotten by checkpoints",
        "diffusion/timestep_samplers.py",
        "torch.zeros(steps + 1, history, dtype=torch.float64))",
        "torch.zeros(steps + 1, history, dtype=torch.float64), persistent=False)",
        "timesteps",
    ),
    Mutant(
        "importance: weights left out",
        "diffusion/timestep_samplers.py",
        "(1 / (self.steps * p[t])).float()",
        "torch.ones_like(p[t]).float()",
        "timesteps",
    ),
    Mutant(
        "importance: first moment for second",
        "diffusion/timestep_samplers.py",
        ".square().mean(1).sqrt()",
        ".mean(1)",
        "timesteps",
    ),
    Mutant(
        "importance: ranks learn alone",
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
    # The bound
    Mutant(
        "nats for bits",
        "diffusion/likelihood.py",
        "return nats.flatten(1).mean(1) / math.log(2)",
        "return nats.flatten(1).mean(1)",
        "likelihood",
    ),
    Mutant(
        "bits of a image for bits of a dimension",
        "diffusion/likelihood.py",
        "nats.flatten(1).mean(1)",
        "nats.flatten(1).sum(1)",
        "likelihood",
    ),
    Mutant(
        "L_0 with the wrong sign",
        "diffusion/likelihood.py",
        "-decoder, kl))",
        "decoder, kl))",
        "likelihood",
    ),
    Mutant(
        "KL the wrong way round",
        "diffusion/likelihood.py",
        "denoiser.process.posterior(x0, x_t, t, s).kl(reverse)",
        "reverse.kl(denoiser.process.posterior(x0, x_t, t, s))",
        "likelihood",
    ),
    Mutant(
        "L_T against N(0, 1) where variance explodes",
        "diffusion/likelihood.py",
        "2 * process.scale(t).log()",
        "0 * process.scale(t)",
        "likelihood",
    ),
    Mutant("256 bins for 255", "data/module.py", "return 2 / 255 if", "return 2 / 256 if", "data"),
    Mutant(
        "edges of the decoder not open",
        "diffusion/gaussian.py",
        "first, last = x < -1 + width / 2, x > 1 - width / 2",
        "first, last = x < -9 + width / 2, x > 9 - width / 2",
        "likelihood",
    ),
    Mutant(
        "a floor of 1e-12 in the decoder",
        "diffusion/gaussian.py",
        "mass = high + torch.where(gap > split, near, far)",
        "mass = (torch.special.ndtr(z + half) - torch.special.ndtr(z - half)).clamp(min=1e-12).log()",
        "likelihood",
    ),
    Mutant(
        "the cdf by tanh in the decoder",
        "diffusion/gaussian.py",
        "mass = high + torch.where(gap > split, near, far)",
        "cdf = [(1 + torch.tanh((2 / math.pi) ** 0.5 * (y + 0.044715 * y**3))) / 2 for y in (z + half, z - half)]\n"
        "        mass = (cdf[0] - cdf[1]).log()",
        "likelihood",
    ),
    Mutant(
        "flips in NLL",
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
        "chains end at t = 1",
        "diffusion/timestep_spacing.py",
        "times = [*reversed(_from_name(T, steps, str(spacing))), 0]",
        "return [*reversed(_from_name(T, steps, str(spacing)))]",
        "samplers",
    ),
    Mutant(
        "uniform chains do not begin at T",
        "diffusion/timestep_spacing.py",
        "return [int(T - i * stride + 0.5)",
        "return [int(T - i * stride - 0.5) or 1",
        "samplers",
    ),
    Mutant(
        "s = t - T / K whatever the spacing",
        "diffusion/samplers.py",
        "pairwise(torch.tensor(self.timesteps(denoiser.process.steps, t_end)).unbind())",
        "pairwise(torch.linspace((c := self.timesteps(denoiser.process.steps))[0], t_end, len(c)).long().unbind())",
        "samplers",
    ),
    Mutant(
        "x_0 clipped, eps kept",
        "diffusion/samplers.py",
        "return process.ddim_update(x_t, step.estimate.x0, t, s)",
        "return process.diffuse(step.estimate.x0, process.eps(x_t, denoiser(x_t, t, cond).x0, t), s)",
        "samplers",
    ),
    Mutant(
        "an Euler step forgets what x_0 is in x_t",
        "diffusion/process.py",
        "alpha_s - ratio * alpha_t",
        "alpha_s",
        "samplers",
    ),
    Mutant(
        "eta for its square",
        "diffusion/samplers.py",
        "variance = self.eta**2 * process",
        "variance = self.eta * process",
        "samplers",
    ),
    Mutant(
        "sigma hat in the mean",
        "diffusion/samplers.py",
        "** 2 - variance)",
        "** 2 - (process.beta(t, s) if self.sigma_hat else variance))",
        "samplers",
    ),
    Mutant(
        "heun without its second evaluation",
        "diffusion/ode_solvers.py",
        "mean = (eps + end) / 2",
        "mean = eps",
        "samplers",
    ),
    Mutant(
        "dpm_solver: ratio of steps upside down",
        "diffusion/ode_solvers.py",
        "ratio / 2",
        "1 / ratio / 2",
        "samplers",
    ),
    Mutant(
        "dpm_solver: log SNR for its half",
        "diffusion/ode_solvers.py",
        "torch.expm1(0.5 * (process",
        "torch.expm1(1.0 * (process",
        "samplers",
    ),
    Mutant(
        "langevin: root of a, not of 2 a",
        "diffusion/langevin.py",
        "(2 * step).sqrt()",
        "step.sqrt()",
        "samplers",
    ),
    Mutant(
        "dynamic threshold below the bound",
        "diffusion/samplers.py",
        ".values.clamp(min=self.clip)",
        ".values",
        "samplers",
    ),
    Mutant(
        "encoding is an ordinary step",
        "diffusion/samplers.py",
        "s = s.clamp(min=1)",
        "s = t.clamp(min=1)",
        "samplers",
    ),
    Mutant(
        "density: log volume with the wrong sign",
        "diffusion/ode_likelihood.py",
        "log_prior.sum(1) + log_volume",
        "log_prior.sum(1) - log_volume",
        "evaluation",
    ),
    Mutant(
        "a mixture: nearness of x_t / signal, not of x_t",
        "diffusion/analytic_denoisers.py",
        "-0.5 * alpha * gain",
        "-0.5 * gain",
        "exact",
    ),
    # Guidance, EMA, sampling
    Mutant(
        "guidance: w without its 1",
        "diffusion/guidance.py",
        "guided = x0 + w * (x0 - baseline)",
        "guided = baseline + w * (x0 - baseline)",
        "guidance",
    ),
    Mutant(
        "guidance: scale taken for w",
        "diffusion/guidance.py",
        "self.w = w if scale is None else scale - 1",
        "self.w = w if scale is None else scale",
        "guidance",
    ),
    Mutant(
        "guidance: the interval's outside",
        "diffusion/guidance.py",
        "per_pixel(inside, x0).bool(), guided, x0)",
        "per_pixel(inside, x0).bool(), x0, guided)",
        "guidance",
    ),
    Mutant(
        "classifier: gradient with the wrong sign",
        "diffusion/classifier_guidance.py",
        "return estimate._replace(x0=estimate.x0 + shift)",
        "return estimate._replace(x0=estimate.x0 - shift)",
        "classifier",
    ),
    Mutant(
        "classifier: without the root of 1 - alpha_bar",
        "diffusion/classifier_guidance.py",
        "self.scale * sigma**2 / alpha, x_t)",
        "self.scale * sigma / alpha, x_t)",
        "classifier",
    ),
    Mutant(
        "classifier: gradient of the batch's mean",
        "diffusion/classifier_guidance.py",
        "torch.autograd.grad(log_prob.sum(), leaf)",
        "torch.autograd.grad(log_prob.mean(), leaf)",
        "classifier",
    ),
    Mutant(
        "classifier: mean moved by sigma, not its square",
        "diffusion/classifier_guidance.py",
        "self.scale * step.log_var.exp() *",
        "self.scale * (step.log_var / 2).exp() *",
        "classifier",
    ),
    Mutant(
        "clipping before guidance",
        "diffusion/guidance.py",
        "conditional, null = both.x0.chunk(2)",
        "conditional, null = both.x0.clamp(-1, 1).chunk(2)",
        "guidance",
    ),
    Mutant(
        "the null's variance under guidance",
        "diffusion/guidance.py",
        "both.variance_output.chunk(2)[0]",
        "both.variance_output.chunk(2)[1]",
        "guidance",
    ),
    Mutant(
        "noise of a sample from its place in the batch",
        "diffusion/rng.py",
        "else make_generator(seed, i) for i in samples]",
        "else make_generator(seed, i) for i, _ in enumerate(samples)]",
        "samplers",
    ),
    Mutant(
        "labels dropped at sampling",
        "sampling/pipeline.py",
        "cond: Condition = self.denoiser.conditioner(conditions, noise)",
        "cond: Condition = self.denoiser.conditioner(conditions, noise).drop(self.denoiser.conditioner.dropout)",
        "system",
    ),
    Mutant(
        "dropout of the network at sampling",
        "sampling/pipeline.py",
        "module.eval()",
        "pass",
        "system",
    ),
    Mutant(
        "EMA per micro-batch",
        "callbacks/ema.py",
        "if trainer.global_step == self.updates:",
        "if trainer.global_step < 0:",
        "system",
    ),
    Mutant(
        "EMA begins at zero",
        "callbacks/ema.py",
        "self._averages = [parameter.data for",
        "self._averages = [parameter.data.zero_() for",
        "system",
    ),
    Mutant(
        "EMA not used for sampling",
        "callbacks/ema.py",
        'return "ema", system.pipeline.with_denoiser(averages[0])',
        'return "raw", system.pipeline',
        "system",
    ),
    # Conditions, and how a network hears them
    Mutant(
        "always the first caption",
        "conditioners/text.py",
        "(chance * counts).long().clamp(max=counts - 1)",
        "torch.zeros_like(label)",
        "conditioners",
    ),
    Mutant(
        "the small image is noisy at sampling as in training",
        "conditioners/low_res.py",
        "if self.training:",
        "if self.max_noise_level:",
        "conditioners",
    ),
    Mutant(
        "the small image gains variance with its noise",
        "conditioners/low_res.py",
        "z = angle.cos() * z",
        "z = z",
        "conditioners",
    ),
    Mutant(
        "the small image's noise is not told",
        "conditioners/low_res.py",
        "noise_level=1000 * noise_level)",
        "noise_level=0 * noise_level)",
        "conditioners",
    ),
    Mutant(
        "dropped tokens are heard",
        "networks/layers.py",
        "torch.where(cond.dropped[:, None, None], self.null, tokens)",
        "tokens",
        "networks",
    ),
    Mutant(
        "keys for values",
        "networks/layers.py",
        "k, v = self.kv(",
        "v, k = self.kv(",
        "networks",
    ),
    Mutant(
        "the guess before is always told in training",
        "systems/diffusion.py",
        "and bernoulli(noise)",
        "",
        "system",
    ),
    Mutant(
        "gradients through the guess before",
        "systems/diffusion.py",
        "with torch.no_grad():",
        "with torch.enable_grad():",
        "system",
    ),
    Mutant(
        "the guess before is forgotten at sampling",
        "diffusion/samplers.py",
        "previous_x0=step.estimate.x0)",
        "previous=None)",
        "guidance",
    ),
    Mutant(
        "DiT: attention is not gated",
        "networks/dit.py",
        "x = x + gate1 * self.out(",
        "x = x + gate1.abs().sign() + self.out(",
        "networks",
    ),
    Mutant(
        "DiT: scale where 1 + scale is meant",
        "networks/dit.py",
        "x.shape[-1:], eps=1e-6), 1 + scale)",
        "x.shape[-1:], eps=1e-6), scale)",
        "networks",
    ),
    Mutant(
        "DiT: x for y in the places",
        "networks/dit.py",
        "for position in (x, y)",
        "for position in (x, x)",
        "networks",
    ),
    # Judging
    Mutant(
        "features of the samples before are kept",
        "evaluation/fid.py",
        "sums = {label: self._sums(BLOCKS if label < 0 else 1) for label in self.reference}",
        "sums = self.__dict__.setdefault('old', {label: self._sums(BLOCKS if label < 0 else 1)\n"
        "                                                for label in self.reference})",
        "quality",
    ),
    Mutant(
        "FID within a class over all classes",
        "evaluation/fid.py",
        "features[labels == label]",
        "features[labels >= 0]",
        "quality",
    ),
    Mutant(
        "recall for precision",
        "evaluation/fid.py",
        'results["precision"], results["recall"] = pair',
        'results["recall"], results["precision"] = pair',
        "quality",
    ),
    Mutant(
        "all values are drawn alike",
        "evaluation/sample_quality.py",
        "        configure()\n        prefix",
        "        prefix",
        "quality",
    ),
    # Latents and cascades
    Mutant(
        "the log variance's root forgotten",
        "networks/autoencoder.py",
        "(0.5 * log_var).exp() * noise(mean)",
        "log_var.exp() * noise(mean)",
        "latents",
    ),
    Mutant(
        "KL with the wrong sign of the log variance",
        "networks/autoencoder.py",
        "log_var.exp() - 1 - log_var",
        "log_var.exp() - 1 + log_var",
        "latents",
    ),
    Mutant(
        "the commitment moves the codebook",
        "networks/autoencoder.py",
        "self.commitment * (h - nearest.detach()).square()",
        "self.commitment * (h.detach() - nearest).square()",
        "latents",
    ),
    Mutant(
        "no gradient through the quantisation",
        "networks/autoencoder.py",
        "return z + (nearest - z).detach()",
        "return nearest",
        "latents",
    ),
    Mutant(
        "the penalty per image beside a loss per pixel",
        "systems/autoencoder_system.py",
        "encoding.penalty / x[0].numel()",
        "encoding.penalty",
        "latents",
    ),
    Mutant(
        "the adversary's loss reaches the autoencoder",
        "systems/autoencoder_system.py",
        "discriminator(reconstruction.detach())",
        "discriminator(reconstruction)",
        "latents",
    ),
    Mutant(
        "the autoencoder's loss reaches the adversary",
        "systems/autoencoder_system.py",
        "functional_call(discriminator, frozen, (reconstruction,))",
        "discriminator(reconstruction)",
        "latents",
    ),
    Mutant(
        "latents over their variance, not its root",
        "sampling/codecs.py",
        "std = (square - mean.square()).sqrt()",
        "std = square - mean.square()",
        "latents",
    ),
    Mutant(
        "latents around their mean, not 0",
        "sampling/codecs.py",
        "return (z - self.mean[:, None, None]) /",
        "return z /",
        "latents",
    ),
    Mutant(
        "another autoencoder decodes",
        "sampling/codecs.py",
        'if state["autoencoder"] != self.space:',
        "if False:",
        "latents",
    ),
    Mutant(
        "latents counted in bins of pixels",
        "systems/diffusion.py",
        "cond, self.codec.bin_width)",
        "cond, self.bin_width)",
        "latents",
    ),
    Mutant(
        "the noisy image of a truncated stage is not scaled",
        "sampling/cascade.py",
        "x / per_pixel(stage.process.scale(time), x)",
        "x",
        "cascade",
    ),
    Mutant(
        "a truncated chain ends at a stop, not at its time",
        "diffusion/samplers.py",
        "if t > t_end), t_end]",
        "if t > t_end), t_end and max(t for t in timesteps(T, self.steps, self.spacing) if t <= t_end)]",
        "cascade",
    ),
    Mutant(
        "the analytic variance of latents without their own noise",
        "evaluation/analytic_variance.py",
        "pipeline.codec.encode(images.x0.to(device), noise)",
        "pipeline.codec.encode(images.x0.to(device), torch.zeros_like)",
        "latents",
    ),
    Mutant(
        "truncated: noise is added once more",
        "conditioners/low_res.py",
        'if "noise_level" in batch:',
        "if False:",
        "conditioners",
    ),
    Mutant(
        "levels by the variance of the noise, not its angle",
        "sampling/cascade.py",
        "torch.atan2(sigma, alpha)",
        "torch.atan2(sigma**2, alpha**2)",
        "cascade",
    ),
    Mutant(
        "stages of a cascade share their noise",
        "sampling/pipeline.py",
        "PerSampleGenerator(seed, samples, self.denoiser.conditioner.noise_stream)",
        "PerSampleGenerator(seed, samples)",
        "cascade",
    ),
    Mutant(
        "a stage is asked for other classes than the one before",
        "sampling/cascade.py",
        'label = conditions.get("label")',
        'label = conditions["label"].flip(0)',
        "cascade",
    ),
    Mutant(
        "every small image is blurred",
        "conditioners/low_res.py",
        "uniform(noise, noise_level) < 0.5",
        "uniform(noise, noise_level) < 2",
        "conditioners",
    ),
    Mutant(
        "a blur along one axis",
        "conditioners/low_res.py",
        "for axis in (2, 3):",
        "for axis in (2,):",
        "conditioners",
    ),
    # Metrics of the papers' tables
    Mutant(
        "inception score: against the uniform law, not that of y",
        "evaluation/statistics.py",
        "xlogy(mean[:, :-1], mean[:, :-1]).sum(1)",
        "xlogy(mean[:, :-1], mean[:, :-1].mean()).sum(1)",
        "quality",
    ),
    Mutant(
        "inception score: a mean before the exp",
        "evaluation/statistics.py",
        ".exp().mean().item()",
        ".mean().exp().item()",
        "quality",
    ),
    Mutant(
        "a round trip on data in [-1, 1]",
        "evaluation/reconstruction.py",
        "((decoded - data) / 2)",
        "((decoded - data) / 1)",
        "evaluation",
    ),
    # Sweeps and reports
    Mutant(
        "a failed cell counts as done",
        "sweeps/job.py",
        'return self.state().get("status") == 0',
        'return "status" in self.state()',
        "sweeps",
    ),
    Mutant(
        "a cell is done whatever its configuration",
        "sweeps/job.py",
        'return state if state.get("config") == self.config_hash else {}',
        "return state",
        "sweeps",
    ),
    Mutant(
        "a cell does not wait for what it needs",
        "sweeps/scheduler.py",
        "elif len(running) < max_workers and all(need.done() for need in job.needs):",
        "elif len(running) < max_workers:",
        "sweeps",
    ),
    Mutant(
        "the paper's less ours",
        "reports/table.py",
        "self.ours - self.theirs",
        "self.theirs - self.ours",
        "reports",
    ),
    Mutant(
        "a mean over the seeds that are there",
        "reports/table.py",
        "if self.sources and len(self.values) == len(self.sources) else None",
        "if self.values else None",
        "reports",
    ),
    Mutant(
        "a claim that holds for the last column only",
        "ablations/tables.py",
        "holds = holds if in_order else False",
        "holds = in_order",
        "ablations",
    ),
    Mutant(
        "a claim of a ratio that is not asked for",
        "ablations/tables.py",
        "all(a * order.ratio <= b and a < b for",
        "all(a < b for",
        "ablations",
    ),
    Mutant(
        "no mark where the count differs",
        "ablations/tables.py",
        "if entry.protocol.get(key, usual[key]) != usual[key]]:",
        "if entry.protocol.get(key, usual[key]) != usual[key] and False]:",
        "ablations",
    ),
    Mutant(
        "no mark where the paper measured otherwise",
        "ablations/tables.py",
        "for key, value in theirs.items() if usual.get(key) != value",
        "for key, value in theirs.items() if False",
        "ablations",
    ),
    Mutant(
        "processes draw the same rows",
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
        "jackknife: an error of one block",
        "evaluation/statistics.py",
        "(BLOCKS - 1) * scores.var(correction=0)",
        "scores.var(correction=0)",
        "quality",
    ),
    Mutant(
        "jackknife: the limit is the value",
        "evaluation/statistics.py",
        "BLOCKS * value - (BLOCKS - 1) * scores.mean().item()",
        "value",
        "quality",
    ),
    Mutant(
        "all samples in one block",
        "evaluation/fid.py",
        "numbers * BLOCKS // count",
        "numbers * 0",
        "quality",
    ),
    Mutant(
        "statistics are kept without labels",
        "data/datasets.py",
        "return _digest(self.pixels, self.labels)",
        "return _digest(self.pixels)",
        "quality",
    ),
    Mutant(
        "16 bits are cut off at 255",
        "data/image_transform.py",
        "((values * 255 + most // 2) // most)",
        "values.clip(0, 255)",
        "folder",
    ),
    Mutant(
        "transparent pixels show what is under them",
        "data/image_transform.py",
        'image = Image.alpha_composite(ground, image.convert("RGBA"))',
        "pass",
        "folder",
    ),
    Mutant(
        "EXIF is not heard",
        "data/image_io.py",
        "ImageOps.exif_transpose(image, in_place=True)",
        "pass",
        "folder",
    ),
    Mutant(
        "held-out images are trained on",
        "data/image_tree.py",
        "if splits and train is not None and tests:",
        "if False:",
        "folder",
    ),
    Mutant(
        "a damaged store is taken",
        "data/shards.py",
        "            source.verify()\n",
        "            pass\n",
        "folder",
    ),
    # Killed runs
    Mutant(
        "noise of a batch depends on what was before",
        "systems/base.py",
        "self.generator.manual_seed(derive_seed(self.seed, batch_idx, 1))",
        "pass",
        "resume",
    ),
    Mutant(
        "a run that goes on begins with the first batch",
        "data/module.py",
        "divmod(self.done, size // self.batch_size)",
        "divmod(0, size // self.batch_size)",
        "resume",
    ),
    Mutant(
        "what was still to be looked at is forgotten",
        "callbacks/periodic.py",
        "    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:\n        self._run_if_due(trainer, pl_module)\n",
        "",
        "resume",
    ),
    Mutant(
        "a validation that was due is forgotten",
        "systems/base.py",
        "            loop.val_loop.run()\n",
        "            pass\n",
        "resume",
    ),
    Mutant(
        "a checkpoint forgets half a mean",
        "callbacks/losses.py",
        "self.values[name].append(value.to(pl_module.device))",
        "pass",
        "resume",
    ),
    Mutant(
        "metrics.csv begins anew",
        "callbacks/checkpoints.py",
        "history.rewind(text)",
        "pass",
        "resume",
    ),
    Mutant(
        "a partial file takes the place",
        "utils/atomic_io.py",
        "    finally:\n        partial.unlink(missing_ok=True)\n",
        "    except OSError:\n        partial.replace(file)\n        raise\n",
        "resume",
    ),
    Mutant(
        "two runs share a folder",
        "utils/atomic_io.py",
        "if error.errno in LOCKED:\n",
        "if False:\n",
        "resume",
    ),
    Mutant(
        "another run is taken for the same",
        "runs/resume.py",
        "    if changed:\n",
        "    if False:\n",
        "resume",
    ),
    Mutant(
        "a run that ended goes on",
        "runs/resume.py",
        "if step >= config.trainer.max_steps and",
        "if step > config.trainer.max_steps and",
        "resume",
    ),
    Mutant(
        "a step that is not finite is taken",
        "systems/nonfinite_steps.py",
        "optimizer.found_inf = bad",
        "pass",
        "resume",
    ),
    Mutant(
        "steps that are not finite go on for ever",
        "systems/nonfinite_steps.py",
        "if self.host_counts[1] >= LIMIT:",
        "if False:",
        "resume",
    ),
    Mutant(
        "numbers that are not finite are saved",
        "callbacks/checkpoints.py",
        "if path := next(find_non_finite(checkpoint), None):",
        "if path := None:",
        "resume",
    ),
    Mutant(
        "a signal waits for what takes long",
        "utils/watchdog.py",
        "if _State.signal and _State.alone:",
        "if False:",
        "resume",
    ),
    Mutant(
        "a damaged checkpoint ends the search",
        "runs/weights.py",
        "            damage.append(error)\n            continue",
        "            raise",
        "safety",
    ),
    # What comes from elsewhere
    Mutant(
        "torch may unpickle",
        "utils/safe_load.py",
        "weights_only=True",
        "weights_only=None",
        "safety",
    ),
    Mutant("damage is not looked for", "utils/safe_load.py", "archive.testzip()", "None", "safety"),
    Mutant(
        "safetensors have no checksum",
        "utils/safe_load.py",
        'if metadata.pop("sha256", None) != _checksum(tensors, metadata):',
        "if not metadata.pop('sha256', None):",
        "safety",
    ),
    Mutant(
        "data of others are read unasked",
        "runs/trusted_paths.py",
        "        if _line(key, path) not in",
        "        if False and _line(key, path) not in",
        "safety",
    ),
    Mutant(
        "W&B reads the current directory",
        "callbacks/loggers.py",
        "with chdir(Path(__file__).parent):",
        "with suppress():",
        "safety",
    ),
    Mutant(
        "a run configures Hydra",
        "runs/saved_config.py",
        'if "hydra" in content:',
        "if False:",
        "safety",
    ),
    Mutant("any class is built", "runs/saved_config.py", "name in targets or", "name or", "safety"),
    Mutant(
        "any group may be referred to",
        "runs/saved_config.py",
        "and reference[1] not in groups:",
        "and False:",
        "safety",
    ),
    Mutant(
        "tags and aliases are read",
        "runs/saved_config.py",
        'if getattr(event, "anchor", None) or getattr(event, "tag", None):',
        "if False:",
        "safety",
    ),
    Mutant(
        "a model takes what it likes",
        "utils/safe_load.py",
        "if shape != parameter.shape:",
        "if False:",
        "safety",
    ),
    Mutant(
        "links are followed",
        "utils/safe_load.py",
        "if Path(path).is_symlink():",
        "if False:",
        "safety",
    ),
    Mutant(
        "FIFOs are waited for",
        "utils/safe_load.py",
        "if not stat.S_ISREG(reject_links(path).lstat().st_mode):",
        "if stat.S_ISDIR(reject_links(path).lstat().st_mode):",
        "safety",
    ),
    Mutant(
        "secrets are logged", "runs/saved_config.py", "variables.append(name)", "pass", "safety"
    ),
    Mutant(
        "terminals obey names",
        "utils/errors.py",
        "return match[0] if lines and",
        "return match[0] if",
        "safety",
    ),
]


class Verdict(NamedTuple):
    outcome: str
    """caught, SURVIVED or BROKEN"""
    by: str
    """The first test that failed"""


def spans(code: str, text: str) -> list[tuple[int, int]]:
    """Return the start and end of each occurrence of `code` in `text`, however it is laid out."""
    wanted = [token for token, _, _ in _tokens(code)]
    tokens = list(_tokens(text))
    names = [token for token, _, _ in tokens]
    starts = [i for i in range(len(names)) if names[i : i + len(wanted)] == wanted]
    return [(tokens[i][1], tokens[i + len(wanted) - 1][2]) for i in starts]


def _tokens(code: str) -> Iterator[tuple[str, int, int]]:
    """Yield words and signs with their places, without space and trailing commas."""
    for match in re.finditer(r"\w+|,(?!\s*[)\]}])|[^\w\s,]", code):
        yield match[0], match.start(), match.end()


def seed(mutant: Mutant, package: Path) -> None:
    """Write the mutation into `package`. Raise ValueError unless its code occurs once."""
    file = package / mutant.file
    text = file.read_text()
    places = spans(mutant.old, text)
    if len(places) != 1:
        raise ValueError(f"{mutant.name}: its code occurs {len(places)} times in {mutant.file}")
    ((start, end),) = places
    file.write_text(text[:start] + mutant.new.strip() + text[end:])


def check(mutant: Mutant | None, tests: str) -> Verdict:
    """The tests on a copy of the code; None: the code as it is."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("src", "tests", "configs", "scripts", "pyproject.toml"):
            source = ROOT / name
            shutil.copytree(source, copy / name) if source.is_dir() else shutil.copy(
                source, copy / name
            )
        if mutant is not None:
            seed(mutant, copy / "src" / "ddpm_lab")
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-x",
                "-p",
                "no:cacheprovider",
                "-n",
                "0",
                "--tb=short",
                "-m",
                "not nightly",
                *(f"tests/test_{name}.py" for name in tests.split()),
            ],
            cwd=copy,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1"},
        )
    if done.returncode == 0:
        return Verdict("SURVIVED", "")
    raised = re.findall(r"^E\s+(?:\w+\.)*(\w+Error)\b", done.stdout, re.MULTILINE)
    failed = re.findall(r"^(?:FAILED|ERROR) tests/([^ [\n]+)", done.stdout, re.MULTILINE)
    if done.returncode not in (1, 2) or not failed or any(error in BROKEN for error in raised):
        return Verdict("BROKEN", done.stdout[-600:] + done.stderr[-600:])
    return Verdict("caught", failed[0])


def main() -> None:
    overrides = sys.argv[1:]
    chosen = [
        mutant
        for mutant in MUTANTS
        if not overrides or any(word in mutant.name for word in overrides)
    ]
    tests = " ".join(sorted({name for mutant in chosen for name in mutant.tests.split()}))
    bar = tqdm(total=len(chosen) + 1, unit="mutation")
    with ThreadPoolExecutor(os.cpu_count()) as pool, bar:
        jobs = [pool.submit(check, None, tests)]
        jobs += [pool.submit(check, mutant, mutant.tests) for mutant in chosen]
        for job in jobs:
            job.add_done_callback(lambda _: bar.update())
        whole, *verdicts = [job.result() for job in jobs]
    if whole.outcome != "SURVIVED":
        sys.exit(f"error: the tests fail without any slip: {whole.by}")
    for mutant, verdict in zip(chosen, verdicts, strict=True):
        print(f"{verdict.outcome:8}  {mutant.name}  {verdict.by}")
    caught = sum(verdict.outcome == "caught" for verdict in verdicts)
    print(f"{caught} of {len(chosen)} caught")
    if not overrides:
        rows = [
            f"| {mutant.name} | `{mutant.file}` | {verdict.outcome} | `{verdict.by}` |"
            for mutant, verdict in zip(chosen, verdicts, strict=True)
        ]
        REPORT.write_text(
            "\n".join(
                [
                    "# Known slips, and the tests that catch them",
                    "",
                    "`python scripts/mutants.py` seeds each into a copy of the code and runs the tests that should notice;",
                    f"on the code as it is they pass. {caught} of {len(chosen)} are caught.",
                    "",
                    "| slip | in | outcome | first test that failed |",
                    "|---|---|---|---|",
                    *rows,
                    "",
                ]
            )
        )
        print(f"saved in {REPORT.relative_to(ROOT)}")
    sys.exit(caught < len(chosen))


if __name__ == "__main__":
    main()
