"""A trained model in Python: samples, latents and metrics, with the numbers of the commands."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self, Unpack

import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.cli.evaluate import as_json, available_metrics, select_metrics
from ddpm_lab.config.instantiate import build
from ddpm_lab.config.overrides import format_override
from ddpm_lab.data.datasets import Batch
from ddpm_lab.data.module import Data
from ddpm_lab.diffusion.denoiser import Denoiser
from ddpm_lab.diffusion.samplers import Sampler
from ddpm_lab.runs.compose import SamplingChoices, choice_overrides, compose_method
from ddpm_lab.runs.run_config import make_deterministic
from ddpm_lab.runs.run_dir import RunDir
from ddpm_lab.sampling import editing
from ddpm_lab.sampling.cascade import Cascade
from ddpm_lab.sampling.conditions import Label, check_label_count, class_labels, format_size
from ddpm_lab.sampling.pipeline import SamplingPipeline
from ddpm_lab.sampling.samples import Samples, check_tensor, to_split
from ddpm_lab.utils.arguments import check_call
from ddpm_lab.utils.distributed import all_gather
from ddpm_lab.utils.errors import UserError, prefix_errors
from ddpm_lab.utils.ranges import Count, NonNegativeInt, PositiveFraction

REBUILT = ("weights", "checkpoint", "variance", "conditioner", "codec")
"""Keys whose change requires another network; sampler and guidance are replaced"""


class Model:
    """A trained diffusion model, with its averaged weights, on the GPU if there is one.

    `overrides` of methods, as for sample.py, apply to one call. In a cascade, `sample` and
    `evaluate` use all of its models and the other methods the last one.
    """

    def __init__(
        self,
        run: str | Path | Sequence[str | Path],
        overrides: Sequence[str] = (),
        config_dir: str | Path | None = None,
    ) -> None:
        stages = [run] if isinstance(run, str | Path) else [*run]
        if not stages:
            raise UserError("run is an empty list; try the directory of a run")
        self.directory, self.config_dir = Path(stages[-1]), config_dir
        self._overrides = [format_override("run", self.directory)]
        self._settings = self._compose("sample", overrides)
        self._overrides += overrides
        self._run = RunDir(str(self.directory), self._settings)
        self.pipeline: SamplingPipeline = self._run.pipeline
        """The denoiser, codec, sampler and guidance"""
        self._earlier = [Model(stage, (), config_dir).pipeline for stage in stages[:-1]]
        for stage, pipeline in zip(stages, self._earlier, strict=False):
            pipeline.denoiser.origin = f"{stage} (ema)"
        Cascade([*self._earlier, self.pipeline])  # raises UserError

    def __repr__(self) -> str:
        labels = f", {classes} classes" if (classes := self.pipeline.classes) else ""
        return f"Model({str(self.directory)!r}: {format_size(self.shape)}{labels})"

    @property
    def config(self) -> DictConfig:
        """The configuration of the training run."""
        return self._run.config

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W), or (d,) for points"""
        return self.pipeline.shape

    @property
    def class_names(self) -> list[str] | None:
        """The name of each class; None for a model that takes no classes."""
        return self.pipeline.class_names

    @property
    def denoiser(self) -> Denoiser:
        """The denoiser, an nn.Module: (x_t, t, condition) -> x_0 estimate."""
        return self.pipeline.denoiser

    @property
    def data(self) -> Data:
        """The data of the run: `train` and `test` splits. Raises UserError if it is gone."""
        return self._run.data

    @check_call
    def to(self, device: str | torch.device) -> Self:
        """Move the model to `device`, and return it. Raises UserError for a missing device."""
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            raise UserError(f'device={device} is not available; try device="cpu"') from error
        self.pipeline.denoiser.to(device), self.pipeline.codec.to(device)
        return self

    @check_call
    def sample(
        self,
        count: Count = 16,
        *,
        label: Label = None,
        text: str | list[str] | None = None,
        images: Samples | Tensor | None = None,
        seed: NonNegativeInt = 0,
        sampler: str | Sampler | None = None,
        steps: Count | None = None,
        guidance: float | str | None = None,
        batch_size: Count = 256,
        overrides: Sequence[str] = (),
    ) -> Samples:
        """Sample `count` images or points.

        Sample i of a seed does not depend on the count, the batch size or the device.

        Args:
            count: Number of samples, at least 1.
            label: A class by name or number; several in a list, array or tensor, which repeats; or
                "all" for the same share of each; or None for all in turn.
            text: A caption or a list, which repeats, for a model with conditioner=text.
            images: Images to upsample, for conditioner=low_res (None: those of the cascade, or
                held-out images).
            seed: Seed of the noise, at least 0.
            sampler: A choice such as "ddim", or a `Sampler`, which has all of its options itself
                (None: that of the run).
            steps: Number of sampling steps, `sampler.steps`, in 1..T.
            guidance: Strength `guidance.w` of classifier-free guidance, in 0..10,000, where 0 is
                off; or a choice such as "none".
            batch_size: Number of samples at a time, at least 1.
            overrides: Other keys, such as "sampler.eta=0.5", "guidance.interval=[10,80]".

        Raises UserError for values that the model does not take.
        """
        pipeline = self._pipeline(
            sampler=sampler, steps=steps, guidance=guidance, overrides=overrides
        )
        # Images to upsample replace the samples of the earlier models.
        cascade = Cascade([*(self._earlier if images is None else ()), pipeline])
        if len(cascade.stages) > 1:
            conditions = cascade.stages[0].make_conditions(count, label, text)
            cascade.check_conditions(conditions)
        else:
            conditions = self._conditions(pipeline, count, label, text, images)
        options = {"seed": seed, "batch_size": batch_size}
        with (
            _bar(cascade.num_steps(count, batch_size), f"sampling {count}") as bar,
            torch.inference_mode(),
            prefix_errors("sampler"),
        ):
            _, final = cascade.sample_earlier_stages(conditions, count, **options, bar=bar)
            samples = pipeline.sample(count, conditions=final, **options, bar=bar)
            batches = all_gather([batch[0].cpu() for batch in samples])
        return Samples(torch.cat(batches), conditions.get("label"), self.class_names)

    @check_call
    def trajectory(
        self,
        count: Count = 1,
        *,
        label: Label = None,
        text: str | list[str] | None = None,
        images: Samples | Tensor | None = None,
        seed: NonNegativeInt = 0,
        **choices: Unpack[SamplingChoices],
    ) -> Iterator[tuple[float, Tensor, Tensor]]:
        """Yield t, x_t and the x_0 estimate of each step, from T to 0, for the samples of `sample`.

        Both are (N, ...) float32, data in [-1, 1] or latents. The estimate is guided and clipped.
        The last pair is the sample twice. See `sample` for the arguments.
        """
        pipeline = self._pipeline(**choices)
        conditions = self._conditions(pipeline, count, label, text, images)
        return pipeline.estimates(range(count), conditions, seed)

    @check_call
    def encode(
        self,
        images: Samples | Tensor,
        *,
        label: Label = None,
        batch_size: Count = 256,
        **choices: Unpack[SamplingChoices],
    ) -> Tensor:
        """Return x_T (N, ...) float32 of data, from which `decode` returns it.

        The chain is deterministic (Song et al., 2021, section 5.4): `sampler.eta` is 0 by default.

        Args:
            images: Samples, or images (N, C, H, W) uint8.
            label: A class, or one per image (None: those of the samples).
            batch_size: Number of images at a time, at least 1.
            choices: sampler, steps, guidance and overrides, as for `sample`.

        Raises UserError if the model needs classes, or the sampler has no inverse.
        """
        pipeline = self._pipeline(deterministic=True, **choices)
        split = to_split(images, self.shape, pipeline.bin_width is None)
        check_label_count(label, split.size)
        conditions = pipeline.data_conditions(split, label)
        total = pipeline.num_steps * -(-split.size // batch_size)
        with _bar(total, "encoding") as bar, prefix_errors("sampler"):
            return pipeline.encode_data(split.x0, conditions, batch_size=batch_size, bar=bar).cpu()

    @check_call
    def decode(
        self,
        x_T: Tensor,
        *,
        label: Label = None,
        seed: NonNegativeInt = 0,
        batch_size: Count = 256,
        **choices: Unpack[SamplingChoices],
    ) -> Samples:
        """Sample from `x_T` instead of noise. `sampler.eta` is 0 by default.

        Args:
            x_T: Noise, or the return value of `encode`, (N, ...) float32.
            label: A class, or one per row. Images return only under the classes with which they
                were encoded (None: all in turn, as for `sample`).
            seed: Seed of a sampler that adds noise, at least 0.
            batch_size, choices: See `encode`.
        """
        pipeline = self._pipeline(deterministic=True, **choices)
        check_tensor("x_T", x_T, pipeline.codec.shape, torch.float32)
        check_label_count(label, len(x_T))
        conditions = self._conditions(pipeline, len(x_T), label, None, None)
        with _bar(pipeline.num_steps * -(-len(x_T) // batch_size), "decoding") as bar:
            return pipeline.decode_samples(
                x_T, conditions, range(len(x_T)), seed=seed, batch_size=batch_size, bar=bar
            )

    @check_call
    def edit(
        self,
        images: Samples | Tensor,
        strength: PositiveFraction = 0.5,
        *,
        label: Label = None,
        seed: NonNegativeInt = 0,
        batch_size: Count = 256,
        **choices: Unpack[SamplingChoices],
    ) -> Samples:
        """Noise `images` up to t = strength T and sample from there (SDEdit); see `encode`."""
        pipeline = self._pipeline(**choices)
        split = to_split(images, self.shape, pipeline.bin_width is None)
        check_label_count(label, split.size)
        cond = editing.edit_conditions(pipeline, split, label)
        return editing.edit(pipeline, split.x0, cond, strength, seed, batch_size)

    @check_call
    def interpolate(
        self,
        start: Samples | Tensor,
        end: Samples | Tensor,
        frames: Count = 9,
        strength: PositiveFraction | None = None,
        *,
        label: Label = None,
        seed: NonNegativeInt = 0,
        **choices: Unpack[SamplingChoices],
    ) -> Samples:
        """Return N rows of `frames` samples from each `start` to its `end`.

        Args:
            start, end: Samples or images uint8, or x_T (N, ...) float32.
            frames: Number of samples in a row, with both ends, at least 1.
            strength: Interpolate noised images at t = strength T (None: x_T, on the sphere).
            label: A class, or one per row (None: none with a strength, else those of `start`).
            seed, choices: See `decode`.
        """
        if len(start) != len(end):
            raise UserError(f"start has {len(start)} rows, but end has {len(end)}")
        check_label_count(label, len(start))
        pipeline = self._pipeline(deterministic=strength is None, **choices)
        if strength is not None:
            a, b = (to_split(each, self.shape, pipeline.bin_width is None) for each in (start, end))
            cond = editing.edit_conditions(pipeline, a._replace(labels=None), label)
            return editing.interpolate_images(pipeline, a.x0, b.x0, cond, frames, strength, seed)
        label = getattr(start, "labels", None) if label is None else label
        first, last = (self._to_latents(value, label, choices) for value in (start, end))
        x_T = editing.interpolate_latents(pipeline, first, last, frames)
        labels = self._conditions(pipeline, len(start), label, None, None).get("label")
        rows = None if labels is None else labels.repeat_interleave(frames)
        return self.decode(x_T, label=rows, seed=seed, **choices)

    @check_call
    def bits_per_dim(
        self,
        images: Samples | Tensor | None = None,
        overrides: Sequence[str] = (),
        *,
        label: Label = None,
    ) -> Tensor:
        """Return the variational bound on -log2 p(x_0) per dimension of each image, (N,) float64.

        Args:
            images: Samples, or images (N, C, H, W) uint8 (None: all held-out images).
            overrides: As for evaluate.py, such as "nll.steps=50".
            label: A class, or one per image (None: those of the samples).

        Raises UserError if the model needs classes and there are none.
        """
        settings = self._compose("evaluate", overrides)
        cascade = Cascade([self._configured(settings).pipeline])
        metric = select_metrics(available_metrics(settings), ["nll"], cascade)["nll"]
        pipeline = cascade.stages[-1]
        if images is None:
            split = self.data.test.select(slice(None))
        else:
            split = to_split(images, self.shape, pipeline.bin_width is None)
        if label is not None:
            check_label_count(label, split.size)
            labels = class_labels(split.size, label, pipeline.classes, pipeline.captions)
            split = split._replace(labels=labels)
        pipeline.data_conditions(split)  # raises UserError
        prior, terms, _ = metric.terms(pipeline, split)
        return prior + terms.sum(0)

    @check_call
    def evaluate(
        self, metrics: Sequence[str] | None = None, overrides: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Return metrics as in the metrics.json of evaluate.py.

        Args:
            metrics: Names such as "fid", "kid", "nll" (None: FID, or ode_nll for points).
            overrides: As for evaluate.py, such as "count=500", "sampler.steps=50".
        """
        names = [] if metrics is None else [f"metrics=[{','.join(metrics)}]"]
        settings = self._compose("evaluate", [*names, *overrides])
        run = self._configured(settings)
        cascade = Cascade([*self._earlier, run.pipeline])
        selection = select_metrics(available_metrics(settings), settings.metrics, cascade)
        data = self.data if settings.data == self._settings.data else run.data
        results: dict[str, Any] = {}
        for name, metric in selection.items():
            results |= as_json(name, metric, metric.compute(cascade, data, settings.weights))
        return results

    def _compose(self, verb: str, overrides: Sequence[str]) -> DictConfig:
        return compose_method(verb, self._overrides, overrides, self.config_dir)

    def _pipeline(
        self, deterministic: bool = False, **choices: Unpack[SamplingChoices]
    ) -> SamplingPipeline:
        """Return the pipeline with these options, with eta = 0 if it is `deterministic`."""
        settings = self._compose("sample", overrides := choice_overrides(choices))
        if deterministic:
            make_deterministic(settings, [*self._overrides, *overrides])
        pipeline = self._configured(settings).pipeline
        if isinstance(sampler := choices.get("sampler"), Sampler):
            pipeline.set_sampler(sampler, pipeline.guidance)
        return pipeline

    def _configured(self, settings: DictConfig) -> RunDir:
        """Return the run with `settings`, which shares the network unless another is needed."""
        run = RunDir(str(self.directory), settings)
        if self._settings.checkpoint == settings.checkpoint:
            run.checkpoint = self._run.checkpoint
        if any(self._settings[key] != settings[key] for key in REBUILT):
            device = self.pipeline.device
            run.pipeline.denoiser.to(device), run.pipeline.codec.to(device)
        else:
            run.pipeline = copy.copy(self.pipeline)
            run.pipeline.set_sampler(build(settings, "sampler"), build(settings, "guidance"))
        return run

    def _conditions(
        self,
        pipeline: SamplingPipeline,
        count: int,
        label: Label,
        text: str | list[str] | None,
        images: Samples | Tensor | None,
    ) -> Batch:
        if pipeline.denoiser.conditioner.low_res_shape is None:
            if images is not None:
                raise UserError("images= is for a model that upsamples, and this one does not")
            return pipeline.make_conditions(count, label, text)
        split = self.data.test if images is None else to_split(images, ("C", "H", "W"), False)
        return pipeline.make_conditions(count, label, text, split)

    def _to_latents(
        self, value: Samples | Tensor, label: Label, choices: SamplingChoices
    ) -> Tensor:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
        has_labels = getattr(value, "labels", None) is not None
        return self.encode(value, label=None if has_labels else label, **choices)


def _bar(total: int, desc: str) -> "tqdm[Any]":
    return tqdm(total=total, desc=desc, unit="step", disable=None, leave=False)
