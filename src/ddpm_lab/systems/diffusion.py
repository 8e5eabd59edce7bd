"""The one Lightning module of all diffusion models."""

import inspect
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ddpm_lab.conditioners.base import DataSpec
from ddpm_lab.conditioners.low_res import LowRes
from ddpm_lab.conditioners.text import CaptionConditioner
from ddpm_lab.data.datasets import (
    Batch,
    Images,
    InMemorySplit,
    Points,
    Split,
    select_rows,
    to_device,
    to_uint8,
)
from ddpm_lab.diffusion.conditioning import Condition, Conditioner
from ddpm_lab.diffusion.denoiser import Denoiser, DenoiserLike
from ddpm_lab.diffusion.objectives import NoisedBatch, Objective
from ddpm_lab.diffusion.predictions import Prediction
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.rng import NoiseSampler, PerSampleGenerator, bernoulli
from ddpm_lab.diffusion.samplers import Sampler
from ddpm_lab.diffusion.timestep_samplers import TimestepSampler
from ddpm_lab.diffusion.variances import Variance
from ddpm_lab.sampling import conditions
from ddpm_lab.sampling.codecs import Codec
from ddpm_lab.sampling.conditions import format_size
from ddpm_lab.systems.base import TimestepSystem, eval_mode
from ddpm_lab.utils import watchdog
from ddpm_lab.utils.distributed import shard
from ddpm_lab.utils.errors import UserError, choice_name, prefix_errors

MODEL_FOR_CONDITION = {"classes": "unet", "context": "unet_cross", "image": "unet"}
"""A model that has the door"""


def check_conditioner(
    network: Callable[..., nn.Module], told: Conditioner, codec: Codec, shape: tuple[int, ...]
) -> None:
    """Raises UserError unless a `network` can be built with the doors by which `told` speaks, for data of `shape`."""
    offered = inspect.signature(network).parameters
    if "outputs" not in offered:
        raise UserError(
            "model is one that cannot draw; classifier is for system=classifier, autoencoder_kl and "
            "autoencoder_vq are for system=autoencoder"
        )
    if deaf := told.cond_dims.keys() - offered.keys():
        instead = (
            f"model={MODEL_FOR_CONDITION[min(deaf)]}" if len(shape) == 3 else "conditioner=label"
        )
        raise UserError(
            f"conditioner={choice_name(told)} speaks by {' and '.join(deaf)}, which this model cannot hear; "
            f"try {instead}"
        )
    if "image" in told.cond_dims and codec.space:
        raise UserError(
            f"conditioner={choice_name(told)} lays a image beside what is drawn, which codec={choice_name(codec)} "
            f"makes {format_size(codec.shape)}; try codec=pixels"
        )


class Diffusion(TimestepSystem):
    """A denoiser in training, and what samples from it.

    What the data dictates, the fields of `Spec`, completes the `network`, the `conditioner` and the `timestep_sampler`, which
    come as functions of it. Choices that do not fit one another raise ValueError here.
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
        timestep_sampler: Callable[[int], TimestepSampler],
        conditioner: Callable[[DataSpec], Conditioner],
        guidance: partial[DenoiserLike],
        sampler: Sampler,
        optimizer: Callable[..., torch.optim.Optimizer],
        lr_schedule: Callable[[int, int], float],
    ) -> None:
        super().__init__()
        if not isinstance(variance, Variance):
            raise UserError(
                "variance=analytic is estimated from a trained network; train with another, such as "
                "beta_tilde, and evaluate the run with variance=analytic"
            )
        spec = DataSpec(tuple(shape), classes, bin_width, captions)
        self.save_hyperparameters(spec._asdict() | {"shape": list(shape)})
        self.shape, self.bin_width, self.captions = spec.shape, bin_width, captions
        with prefix_errors("codec"):
            self.codec = codec(spec)
        with prefix_errors("conditioner"):
            told = conditioner(spec)
        check_conditioner(network, told, self.codec, self.shape)
        with prefix_errors("model"):
            body = network(self.codec.shape, outputs=variance.outputs, **told.cond_dims)
        self.denoiser = Denoiser(
            body, process, prediction, variance, told, self.codec.shape, self.codec.space
        )
        self.process = process
        self.objective = objective
        if variance.outputs > 1 and not objective.trains_variance:
            raise UserError(
                f"variance={choice_name(variance)} learns from the bound, which objective={choice_name(objective)} "
                "has no part of; try objective=hybrid or objective=vlb"
            )
        self.set_timestep_sampler(timestep_sampler)
        self.set_optimizer(optimizer, lr_schedule)
        self.set_sampler(sampler, guidance)

    @property
    def compile_target(self) -> nn.Module:
        return self.denoiser.network

    @property
    def network_calls(self) -> int:  # type: ignore[override]
        return len(self.sampler.timesteps(self.process.steps)) - 1

    def set_sampler(self, sampler: Sampler, guidance: partial[DenoiserLike]) -> None:
        """How samples are drawn from now on. Raises UserError where these do not fit the model, or one another."""
        with prefix_errors("sampler"):
            self.process.warn_nonzero_terminal_snr(
                "sampler.spacing begins", sampler.timesteps(self.process.steps)[0]
            )
            if sampler.dynamic_threshold is not None and self.codec.bin_width is None:
                what = "latents have" if self.codec.space else "this data has"
                raise ValueError(
                    f"dynamic_threshold={sampler.dynamic_threshold:g} saturates pixels, which lie in "
                    f"[-1, 1]; {what} no such range; try dynamic_threshold=null"
                )
            if sampler.clip is not None and self.codec.space:
                raise ValueError(
                    f"clip={sampler.clip:g} bounds pixels, and codec={choice_name(self.codec)} has latents, "
                    "which have no bounds; try clip=null"
                )
        with prefix_errors("guidance"):
            guided = guidance(self.denoiser)
            self.classes = guided.classes
            self.captions = conditions.common_captions(
                self.captions, getattr(guided, "classifier", None)
            )
            if getattr(guided, "reversing", False) and not sampler.uses_reverse:
                raise ValueError(
                    "form=mean moves the means of steps that are drawn with the model's own variance, "
                    f"which sampler={choice_name(sampler)} does not; try sampler=ddpm or guidance.form=score"
                )
        self.guidance, self.sampler = guidance, sampler

    def noise_batch(
        self, batch: Batch, t: Tensor, noise: NoiseSampler = torch.randn_like
    ) -> NoisedBatch:
        """A noised batch: x_t = signal_t x_0 + noise_t eps at times t (B,), some conditions dropped."""
        x0 = self.codec.encode(batch["x0"], noise)
        eps = noise(x0)
        conditioner = self.denoiser.conditioner
        cond = conditioner(batch, noise).drop(conditioner.dropout, noise)
        x_t = self.denoiser.process.diffuse(x0, eps, t)
        if self.denoiser.self_conditioning and bernoulli(noise):  # Chen et al., 2023, algorithm 1
            with torch.no_grad():
                cond = replace(cond, previous=self.sampler.estimate(self.denoiser, x_t, t, cond).x0)
        return NoisedBatch(x0, eps, x_t, t, cond, self.codec.bin_width)

    def losses(self, batch: Batch, t: Tensor, noise: NoiseSampler = torch.randn_like) -> Tensor:
        return self.objective(self.denoiser, self.noise_batch(batch, t, noise))

    def validation_step(self, batch: Batch, index: int) -> None:
        with self.validation_batch(batch, index) as drawn:
            self.log_mean("val/loss", self.losses(*drawn))

    def make_conditions(
        self,
        count: int,
        label: conditions.Label = None,
        text: str | list[str] | None = None,
        given: Split | None = None,
    ) -> Batch:
        """Return conditions of `count` samples: labels or texts, in turn, and images `given` to be enlarged."""
        conditioner, known = self.denoiser.conditioner, (self.classes, self.captions)
        if text is not None:
            if not isinstance(conditioner, CaptionConditioner):
                raise UserError(
                    f"text={text} asks for what this model was not trained with; try text=null, or train "
                    "with conditioner=text"
                )
            return {"text": conditions.text_tokens(count, text, conditioner.length)}
        if isinstance(conditioner, LowRes):
            return conditions.low_res_conditions(
                count, label, given, conditioner.small, self.shape, *known
            )
        labels = conditions.class_labels(count, label, *known)
        return {} if labels is None else {"label": labels}

    def condition(
        self, denoiser: Denoiser, conditions: Batch, noise: NoiseSampler = torch.randn_like
    ) -> Condition:
        """What `asked` (see `ask`), or a batch of data, says to `denoiser`."""
        conditions = to_device(conditions, self.device)
        cond = denoiser.conditioner(conditions, noise)
        # A guidance hears labels even where the model does not.
        return cond if cond.label is not None else replace(cond, label=conditions.get("label"))

    def resolve(self, conditions: Batch) -> Batch:
        """`asked` with nothing left to chance; see `Conditioner`."""
        return self.denoiser.conditioner.resolve(to_device(conditions, self.device))

    def trajectory(
        self,
        denoiser: Denoiser,
        samples: Sequence[int],
        conditions: Batch,
        seed: int,
        t_end: int = 0,
    ) -> Generator[tuple[int, Tensor], None, None]:
        """Each time from the chain's first down to `until` with its x_t, (len(samples), *codec.shape).

        `samples` are numbers, and `asked` says what they are to be. Sample i of a seed is the same in any company.
        """
        noise = PerSampleGenerator(seed, samples, denoiser.conditioner.stream)
        start = noise(torch.empty(len(samples), *self.codec.shape, device=self.device))
        yield from self.decode(
            denoiser, self.sampler.prior(denoiser.process, start), conditions, noise, t_end
        )

    def decode(
        self,
        denoiser: Denoiser,
        x: Tensor,
        conditions: Batch,
        noise: NoiseSampler = torch.randn_like,
        t_end: int = 0,
    ) -> Iterator[tuple[int, Tensor]]:
        """The walk from `x`, (B, *codec.shape): its first time with `x` itself, then each stop with its x_t."""
        with eval_mode(denoiser):
            yield self.sampler.timesteps(denoiser.process.steps, t_end)[0], x
            cond = self.condition(denoiser, conditions, noise)
            for stop in self.sampler.trajectory(self.guidance(denoiser), x, cond, noise, t_end):
                watchdog.heartbeat()
                yield stop

    def encode(
        self, denoiser: Denoiser, x0: Tensor, conditions: Batch
    ) -> Iterator[tuple[int, Tensor]]:
        """The walk upwards from `x0`, (B, *codec.shape): each stop with its x_t."""
        with eval_mode(denoiser):
            cond = self.condition(denoiser, conditions, torch.zeros_like)
            yield from self.sampler.encode(self.guidance(denoiser), x0, cond)

    def to_images(self, x: Tensor, labels: Tensor | None) -> InMemorySplit:
        """Ends of walks, `x` (B, *codec.shape), as what the data is: images, or points."""
        x = self.codec.decode(x)
        split: InMemorySplit = (
            Points(x, labels) if self.bin_width is None else Images(to_uint8(x), labels)
        )
        return split.to(self.device)

    @torch.inference_mode()
    def sample(
        self,
        denoiser: Denoiser,
        count: int,
        *,
        conditions: Batch,
        seed: int = 0,
        batch_size: int = 256,
        bar: "tqdm[NoReturn] | None" = None,
    ) -> Iterator[InMemorySplit]:
        """Yield `count` samples of what is `asked` in batches; several processes take turns. `bar` counts steps."""
        for x, some in self.sample_latents(
            denoiser, count, conditions=conditions, seed=seed, batch_size=batch_size, bar=bar
        ):
            yield self.to_images(x, some.get("label"))

    @torch.inference_mode()
    def sample_latents(
        self,
        denoiser: Denoiser,
        count: int,
        *,
        conditions: Batch,
        seed: int,
        batch_size: int,
        bar: "tqdm[NoReturn] | None" = None,
        t_end: int = 0,
    ) -> Iterator[tuple[Tensor, Batch]]:
        """The x of `sample` at time `until`, (B, *codec.shape), with what it was asked to be."""
        for samples in shard(torch.arange(count).split(batch_size)):
            some, x = select_rows(conditions, samples), torch.empty(0)
            trajectory = self.trajectory(denoiser, samples.tolist(), some, seed, t_end)
            for steps, (_, x) in enumerate(trajectory):  # noqa: B007 (the last is the end)
                if bar is not None:
                    bar.update(steps > 0)  # the first is where the walk begins
            yield x, some

    def suggestions(self, run: str, measured: bool) -> list[tuple[str, str]]:
        guided = (
            " guidance.w=1" if self.denoiser.supports_cfg and "w" in self.guidance.keywords else ""
        )
        sample = ("sample", f"run={run} count=100{guided}")
        if self.codec.space and not measured:  # latents have no likelihood
            return [sample]
        images = "sampler.steps=50" if measured else "'metrics=[nll]' nll.steps=50"
        return [
            sample,
            (
                "evaluate",
                f"run={run} {'ode_nll.split=train' if self.bin_width is None else images}",
            ),
        ]

    def protocol(self) -> dict[str, Any]:
        """What samples depend on beside weights and seed."""
        options = {
            key: getattr(value, "origin", value) for key, value in self.guidance.keywords.items()
        }
        return {
            "sampler": {"name": type(self.sampler).__name__, **asdict(self.sampler)},
            "guidance": {"name": self.guidance.func.__name__, **options},
            "variance": type(self.denoiser.variance).__name__,
            "steps": len(self.sampler.timesteps(self.process.steps)) - 1,
            "T": self.process.steps,
            **self.denoiser.conditioner.sampling_options,
        }
