"""The sampling pipeline: from conditions to images or points, without Lightning."""

import copy
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from typing import Any, NoReturn, TypedDict, Unpack

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ddpm_lab.data.datasets import (
    Batch,
    Images,
    InMemorySplit,
    Points,
    Split,
    select_rows,
    to_batch,
    to_device,
    to_uint8,
)
from ddpm_lab.diffusion.conditioning import Condition, Conditioner, DataSpec
from ddpm_lab.diffusion.denoiser import Denoiser, DenoiserLike, eval_mode
from ddpm_lab.diffusion.distillation import warn_unless_fits
from ddpm_lab.diffusion.predictions import Prediction
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.rng import NoiseSampler, PerSampleGenerator
from ddpm_lab.diffusion.samplers import Sampler
from ddpm_lab.diffusion.samplers import Step as SamplerStep
from ddpm_lab.diffusion.variances import Variance
from ddpm_lab.sampling.class_names import captions_differ
from ddpm_lab.sampling.codecs import Codec, check_conditioner
from ddpm_lab.sampling.conditions import (
    Label,
    class_labels,
    low_res_conditions,
    text_tokens,
)
from ddpm_lab.sampling.samples import Samples
from ddpm_lab.utils import watchdog
from ddpm_lab.utils.distributed import shard
from ddpm_lab.utils.errors import UserError, choice_name, prefix_errors

Step = tuple[float, Tensor]
"""A timestep t and x_t, (B, *codec.shape)"""


class SamplingOptions(TypedDict, total=False):
    """Options of `SamplingPipeline.sample`."""

    seed: int
    batch_size: int
    bar: "tqdm[NoReturn] | None"
    """Progress bar that counts steps"""


class SamplingPipeline:
    """A denoiser with the codec, sampler and guidance that turn noise into data.

    Sample i of a seed does not depend on the batch size, the device or the number of processes.

    Args:
        spec: Shape, classes and bin width of the data.
        codec: Map between the data and the space in which the denoiser works.
        denoiser: The raw or averaged denoiser.
        sampler: The sampler.
        guidance: Map from a denoiser to a guided one.
        distilled_steps: Number of steps for which the denoiser was distilled (None: any).

    Raises UserError if sampler, guidance and model are incompatible.
    """

    shape: tuple[int, ...]
    """Shape of a sample, (C, H, W) or (d,)"""
    bin_width: float | None
    """Bin width of the quantized data; None for points"""
    classes: int | None
    """Number of classes that the guided denoiser takes"""
    captions: Sequence[Sequence[str]] | None
    """Names of the classes, from the data or the classifier that guides the denoiser"""
    references: dict[str, Tensor]
    """Pictures (N, C, H, W) in [-1, 1] that guide the samples, by caption; see `InverseGuidance`"""

    def __init__(
        self,
        spec: DataSpec,
        codec: Codec,
        denoiser: Denoiser,
        sampler: Sampler,
        guidance: partial[DenoiserLike],
        distilled_steps: int | None = None,
    ) -> None:
        self.distilled_steps = distilled_steps
        self.spec, self.codec, self.denoiser = spec, codec, denoiser
        self.shape, self.bin_width = spec.shape, spec.bin_width
        self.set_sampler(sampler, guidance)

    def with_denoiser(self, denoiser: Denoiser) -> "SamplingPipeline":
        """Return a pipeline with another `denoiser`, such as the average of this one."""
        pipeline = copy.copy(self)
        pipeline.denoiser = denoiser
        return pipeline

    @property
    def process(self) -> ForwardProcess:
        return self.denoiser.process

    @property
    def device(self) -> torch.device:
        return self.process.table.device

    @property
    def num_steps(self) -> int:
        """Number of sampling steps."""
        return len(self.sampler.timesteps(self.process)) - 1

    def set_sampler(self, sampler: Sampler, guidance: partial[DenoiserLike]) -> None:
        """Replace sampler and guidance. Raises UserError if the model does not support them."""
        with prefix_errors("sampler"):
            first = sampler.timesteps(self.process)[0]
            self.process.warn_nonzero_terminal_snr("sampler.spacing begins", first)
            if sampler.dynamic_threshold is not None and self.codec.bin_width is None:
                raise ValueError(
                    f"dynamic_threshold={sampler.dynamic_threshold:g} saturates pixels in [-1, 1], "
                    "not latents or points; try dynamic_threshold=null"
                )
            if sampler.clip is not None and self.codec.space:
                raise ValueError(f"clip={sampler.clip:g} bounds pixels, not latents; try clip=null")
        with prefix_errors("guidance"):
            guided = guidance(self.denoiser)
            captions = getattr(getattr(guided, "classifier", None), "captions", None)
            if captions_differ(self.spec.captions, captions):
                raise ValueError(
                    "classifier has the same classes as this model under different labels; train "
                    "both on the same data"
                )
            message = getattr(guided, "requires_reverse", "")
            if message and not sampler.uses_reverse:
                raise ValueError(message.format(sampler=f"sampler={choice_name(sampler)}"))
        if self.distilled_steps and warn_unless_fits(sampler, self.process, self.distilled_steps):
            self.distilled_steps = None  # one warning
        self.guidance, self.sampler = guidance, sampler
        self.references = getattr(guided, "references", {})
        self.classes, self.captions = guided.classes, self.spec.captions or captions
        captions = self.captions if self.classes else None
        self.class_names = [names[0] for names in captions] if captions else None

    def make_conditions(
        self,
        count: int,
        label: Label = None,
        text: str | list[str] | None = None,
        images: Split | None = None,
    ) -> Batch:
        """Return the conditions of `count` samples: labels, texts or `images` to upsample.

        Images that a guidance restores have label "none" unless there is another.
        Raises UserError if the model does not take them.
        """
        conditioner = self.denoiser.conditioner
        if self.references and self.denoiser.classes is not None and label is None and text is None:
            label = "none"
        if label is not None and text is not None:
            raise UserError(f"label={label} and text={text} both set the condition; remove one")
        if text is not None:
            return {"text": text_tokens(count, text, conditioner.text_length)}
        if conditioner.low_res_shape is not None:
            sizes = conditioner.low_res_shape, self.shape
            return low_res_conditions(count, label, images, *sizes, self.classes, self.captions)
        nullable = self.denoiser.supports_cfg
        labels = class_labels(count, label, self.classes, self.captions, nullable)
        return {} if labels is None else {"label": labels}

    def condition(self, conditions: Batch, noise: NoiseSampler = torch.randn_like) -> Condition:
        """Return the `Condition` of conditions (see `make_conditions`) or of a batch of data."""
        conditions = to_device(conditions, self.device)
        if self.denoiser.classes is not None and conditions.keys() <= {"x0", "index"}:
            return Condition(index=conditions.get("index"))  # label=none
        cond: Condition = self.denoiser.conditioner(conditions, noise)
        # Guidance may take labels that the model does not take, and the numbers of the samples.
        label = conditions.get("label") if cond.label is None else cond.label
        return replace(cond, label=label, index=conditions.get("index"))

    def resolve(self, conditions: Batch) -> Batch:
        """Return `conditions` with all random choices made; see `Conditioner.resolve`."""
        resolve = self.denoiser.conditioner.resolve
        return resolve(to_device(conditions, self.device)) if conditions else {}

    def data_conditions(
        self, data: InMemorySplit, label: Label = None, text: str | list[str] | None = None
    ) -> Batch:
        """Return the resolved conditions of `data`: its own, or those of `label` or `text`.

        Raises UserError if the model needs labels and there are none.
        """
        if label is not None or text is not None:
            return self.resolve(self.make_conditions(data.size, label, text, data))
        if self.denoiser.classes is not None and data.labels is None:
            raise UserError("the input has no labels, but this model needs them; try label=none")
        return self.resolve(to_batch(data))

    def trajectory(
        self, samples: Sequence[int], conditions: Batch, seed: int, t_end: int = 0
    ) -> Generator[Step, None, None]:
        """Yield (t, x_t) from the prior down to `t_end` for the samples with these numbers."""
        noise, x = self.prior(samples, seed)
        yield from self.decode(x, _with_index(conditions, samples), noise, t_end)

    def chain(
        self, samples: Sequence[int], conditions: Batch, seed: int
    ) -> Iterator[tuple[SamplerStep, Tensor]]:
        """Yield each step of `trajectory`, with its x_0 estimate, and the x_s that it leads to."""
        noise, x = self.prior(samples, seed)
        with eval_mode(self.denoiser):
            cond = self.condition(_with_index(conditions, samples), noise)
            yield from self.sampler.chain(self.guidance(self.denoiser), x, cond, noise)

    @torch.no_grad()
    def estimates(
        self, samples: Sequence[int], conditions: Batch, seed: int
    ) -> Iterator[tuple[float, Tensor, Tensor]]:
        """Yield t, x_t and the x_0 estimate of each step on the CPU, then the samples twice."""
        x0 = torch.empty(0)
        for step, x_s in self.chain(samples, conditions, seed):
            yield step.t.item(), step.x_t.cpu(), step.estimate.x0.cpu()
            x0 = x_s.cpu()
        yield 0, x0, x0

    def prior(self, samples: Sequence[int], seed: int) -> tuple[PerSampleGenerator, Tensor]:
        """Return the noise of the samples with these numbers, and their x_T (B, *codec.shape)."""
        noise = PerSampleGenerator(seed, samples, self.denoiser.conditioner.noise_stream)
        z = noise(torch.empty(len(samples), *self.codec.shape, device=self.device))
        return noise, self.sampler.prior(self.process, z)

    def decode(
        self, x: Tensor, conditions: Batch, noise: NoiseSampler = torch.randn_like, t_end: int = 0
    ) -> Iterator[Step]:
        """Yield (t, x_t) from `x` (B, *codec.shape) down to `t_end`, beginning with `x` itself."""
        with eval_mode(self.denoiser):
            yield self.sampler.timesteps(self.process, t_end)[0], x
            cond, guided = self.condition(conditions, noise), self.guidance(self.denoiser)
            for step in self.sampler.trajectory(guided, x, cond, noise, t_end):
                watchdog.heartbeat()
                yield step

    def encode(self, x0: Tensor, conditions: Batch) -> Iterator[Step]:
        """Yield (t, x_t) from `x0` (B, *codec.shape) up to T, deterministically."""
        with eval_mode(self.denoiser):
            cond = self.condition(conditions, torch.zeros_like)
            yield from self.sampler.encode(self.guidance(self.denoiser), x0, cond)

    def to_images(self, x: Tensor, labels: Tensor | None) -> InMemorySplit:
        """Return x_0 (B, *codec.shape) as uint8 images, or as points if the data are points."""
        x = self.codec.decode(x)
        split = Points(x, labels) if self.bin_width is None else Images(to_uint8(x), labels)
        return split.to(self.device)

    @torch.inference_mode()
    def sample(
        self, count: int, *, conditions: Batch, **options: Unpack[SamplingOptions]
    ) -> Iterator[InMemorySplit]:
        """Yield this process's share of `count` samples, in batches."""
        for x, batch in self.sample_latents(count, conditions=conditions, **options):
            yield self.to_images(x, batch.get("label"))

    @torch.inference_mode()
    def sample_latents(
        self,
        count: int,
        *,
        conditions: Batch,
        t_end: int = 0,
        seed: int = 0,
        batch_size: int = 256,
        bar: "tqdm[NoReturn] | None" = None,
    ) -> Iterator[tuple[Tensor, Batch]]:
        """Yield x at `t_end` (B, *codec.shape) with its conditions, in the batches of `sample`."""
        for samples in shard(torch.arange(count).split(batch_size)):
            batch = select_rows(conditions, samples)
            trajectory = self.trajectory(samples.tolist(), batch, seed, t_end)
            _, x = next(trajectory)
            for _, x_t in trajectory:
                x = x_t
                if bar is not None:
                    bar.update(1)
            yield x, batch

    @torch.no_grad()
    def encode_data(
        self,
        data: Tensor,
        conditions: Batch,
        *,
        batch_size: int = 256,
        bar: "tqdm[NoReturn] | None" = None,
    ) -> Tensor:
        """Return x_T (N, *codec.shape) of `data` (N, *shape) in [-1, 1], with resolved conditions.

        Raises ValueError, beginning with an option of the sampler, if it has no inverse.
        """
        ends = []
        for index in torch.arange(len(data)).split(batch_size):
            x = self.codec.encode(data[index].to(self.device), torch.zeros_like)
            batch = _with_index(select_rows(conditions, index), index)
            for _, x_t in self.encode(x, batch):
                x = x_t
                if bar is not None:
                    bar.update()
            ends.append(x)
        return torch.cat(ends)

    @torch.no_grad()
    def decode_samples(
        self,
        x_T: Tensor,
        conditions: Batch,
        streams: Sequence[int],
        *,
        seed: int = 0,
        batch_size: int = 256,
        bar: "tqdm[NoReturn] | None" = None,
    ) -> Samples:
        """Sample from `x_T` (N, *codec.shape). The noise of row i has the number streams[i]."""
        tensors = []
        for index in torch.arange(len(x_T)).split(batch_size):
            noise = PerSampleGenerator(seed, [streams[i] for i in index.tolist()])
            x, batch = (
                x_T[index].to(self.device),
                _with_index(select_rows(conditions, index), index),
            )
            for _, x_t in islice(self.decode(x, batch, noise), 1, None):
                x = x_t
                if bar is not None:
                    bar.update()
            tensors.append(self.to_images(x, None)[0].cpu())
        return Samples(torch.cat(tensors), conditions.get("label"), self.class_names)

    def protocol(self) -> dict[str, Any]:
        """Return everything that samples depend on except weights and seed."""
        options = {
            key: getattr(value, "origin", value) for key, value in self.guidance.keywords.items()
        }
        return {
            "sampler": {"name": type(self.sampler).__name__, **asdict(self.sampler)},
            "guidance": {"name": self.guidance.func.__name__, **options},
            "variance": type(self.denoiser.variance).__name__,
            "steps": self.num_steps,
            "T": self.process.steps,
            **self.denoiser.conditioner.sampling_options,
        }


def build_pipeline(
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
    conditioner: Callable[[DataSpec], Conditioner],
    guidance: partial[DenoiserLike],
    sampler: Sampler,
    distilled_steps: int | None = None,
) -> SamplingPipeline:
    """Build a pipeline; the fields of `DataSpec` complete network, codec and conditioner.

    Raises UserError for incompatible parts.
    """
    if not isinstance(variance, Variance):
        raise UserError(
            "variance=analytic is estimated from a trained network; train with another, such as "
            "variance=beta_tilde, and evaluate the run with variance=analytic"
        )
    spec = DataSpec(tuple(shape), classes, bin_width, captions)
    with prefix_errors("codec"):
        space = codec(spec)
    with prefix_errors("conditioner"):
        conditioning = conditioner(spec)
    check_conditioner(network, conditioning, space)
    with prefix_errors("model"):
        body = network(space.shape, outputs=variance.outputs, **conditioning.cond_dims)
    denoiser = Denoiser(body, process, prediction, variance, conditioning, space.shape, space.space)
    return SamplingPipeline(spec, space, denoiser, sampler, guidance, distilled_steps)


def _with_index(conditions: Batch, samples: Sequence[int] | Tensor) -> Batch:
    """Add the numbers of the samples."""
    return {**conditions, "index": torch.as_tensor(samples)}
