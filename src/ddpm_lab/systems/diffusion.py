"""The Lightning module of all diffusion models."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from ddpm_lab.data.datasets import Batch
from ddpm_lab.diffusion.conditioning import Conditioner, DataSpec
from ddpm_lab.diffusion.denoiser import DenoiserLike
from ddpm_lab.diffusion.objectives import NoisedBatch, Objective
from ddpm_lab.diffusion.predictions import Prediction
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.rng import NoiseSampler, bernoulli
from ddpm_lab.diffusion.samplers import Sampler
from ddpm_lab.diffusion.timestep_samplers import TimestepSampler
from ddpm_lab.diffusion.variances import Variance
from ddpm_lab.sampling.codecs import Codec
from ddpm_lab.sampling.pipeline import SamplingPipeline, build_pipeline
from ddpm_lab.systems.base import TimestepSystem
from ddpm_lab.systems.sharding import shard


class Diffusion(TimestepSystem):
    """A denoiser in training, with the `SamplingPipeline` of its raw weights.

    The fields of `DataSpec` complete `network`, `codec` and `conditioner`, which are functions of
    them; `timestep_sampler` is a function of the process. Raises UserError for incompatible parts.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int | None,
        bin_width: float | None,
        captions: Sequence[Sequence[str]] | None = None,
        *,
        network: Callable[..., nn.Module],
        codec: Callable[[DataSpec], Codec],
        process: ForwardProcess,
        prediction: Prediction,
        variance: Variance,
        objective: Objective,
        timestep_sampler: Callable[[ForwardProcess], TimestepSampler],
        conditioner: Callable[[DataSpec], Conditioner],
        guidance: partial[DenoiserLike],
        sampler: Sampler,
        optimizer: Callable[..., torch.optim.Optimizer],
        lr_schedule: Callable[[int, int], float],
    ) -> None:
        super().__init__()
        self.pipeline: SamplingPipeline = build_pipeline(
            shape,
            classes,
            bin_width,
            captions,
            network=network,
            codec=codec,
            process=process,
            prediction=prediction,
            variance=variance,
            conditioner=conditioner,
            guidance=guidance,
            sampler=sampler,
        )
        spec = self.pipeline.spec
        self.save_hyperparameters(spec._asdict() | {"shape": list(shape)})
        self.shape, self.bin_width, self.captions = spec.shape, bin_width, captions
        self.codec, self.denoiser = self.pipeline.codec, self.pipeline.denoiser
        self.process, self.objective = process, objective
        self.set_timestep_sampler(timestep_sampler)
        objective.check(self.denoiser, self.timestep_sampler, sampler)
        self.set_optimizer(optimizer, lr_schedule)

    def configure_model(self) -> None:
        shard(self.denoiser, self.device_mesh)

    @property
    def compile_target(self) -> nn.Module:
        return self.denoiser.network

    @property
    def network_calls(self) -> int:
        return self.pipeline.num_steps

    def noise_batch(
        self, batch: Batch, t: torch.Tensor, noise: NoiseSampler = torch.randn_like
    ) -> NoisedBatch:
        """Return x_t = alpha_t x_0 + sigma_t eps at `t` (B,), with some conditions dropped."""
        x0 = self.codec.encode(batch["x0"], noise)
        eps = noise(x0)
        conditioner = self.denoiser.conditioner
        cond = conditioner(batch, noise).drop(conditioner.dropout, noise)
        x_t = self.process.diffuse(x0, eps, t)
        if self.denoiser.self_conditioning and bernoulli(noise):  # Chen et al., 2023, algorithm 1
            with torch.no_grad():
                previous = self.pipeline.sampler.estimate(self.denoiser, x_t, t, cond).x0
            cond = replace(cond, previous_x0=previous)
        return NoisedBatch(x0, eps, x_t, t, cond, self.codec.bin_width)

    def losses(
        self, batch: Batch, t: torch.Tensor, noise: NoiseSampler = torch.randn_like
    ) -> torch.Tensor:
        return self.objective(self.denoiser, self.noise_batch(batch, t, noise))

    def validation_step(self, batch: Batch, index: int) -> None:
        with self.validation_noise(index) as (t, noise):
            self.log_mean("val/loss", self.losses(batch, t, noise))

    def suggestions(self, run: str, measured: bool) -> list[tuple[str, str]]:
        guided = self.denoiser.supports_cfg and "w" in self.pipeline.guidance.keywords
        sample = ("sample", f"run={run} count=100{' guidance.w=1' if guided else ''}")
        if self.bin_width is None:
            return [sample, ("evaluate", f"run={run} ode_nll.split=train")]
        if self.objective.fits_sampler:
            return [sample, ("evaluate", f"run={run} 'metrics=[prc]'")]
        if measured:
            return [sample, ("evaluate", f"run={run} sampler.steps=50")]
        if self.codec.space:  # latents have no likelihood
            return [sample]
        return [sample, ("evaluate", f"run={run} 'metrics=[nll]' nll.steps=50")]
