"""Run directories: the trained models and the data of a run."""

import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from hydra import compose
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ddpm_lab.conditioners.labels import require_classes
from ddpm_lab.config.instantiate import build, check_settings
from ddpm_lab.data.module import Data
from ddpm_lab.diffusion.classifier_guidance import NoisyClassifier
from ddpm_lab.diffusion.conditioning import DataSpec
from ddpm_lab.diffusion.denoiser import Denoiser
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.networks.autoencoder import Autoencoder
from ddpm_lab.runs import data_check, run_record, trusted_paths
from ddpm_lab.runs.run_config import (
    distilled_steps,
    load_config,
    register_run_choices,
    stage_overrides,
)
from ddpm_lab.runs.run_record import ADJUSTABLE, REPLACEABLE, RunRecord
from ddpm_lab.runs.variance import load_variance
from ddpm_lab.runs.weights import read_weights
from ddpm_lab.sampling.averages import PREFIX, read_average
from ddpm_lab.sampling.cascade import Cascade
from ddpm_lab.sampling.codecs import Latents
from ddpm_lab.sampling.pipeline import SamplingPipeline, build_pipeline
from ddpm_lab.utils import safe_load
from ddpm_lab.utils.errors import CorruptFileError, UserError, prefix_errors

LOG = logging.getLogger(__name__)
SYSTEMS = {
    "Diffusion": "a diffusion model",
    "ClassifierSystem": "a classifier",
    "AutoencoderSystem": "an autoencoder",
}
"""Names of systems in messages"""


class RunDir:
    """A run directory, opened once. Its properties raise UserError.

    `settings` has groups that replace the run's own, `weights`, "ema" or "raw", and optionally
    `checkpoint`, "newest" or "best".
    """

    def __init__(self, path: str, settings: DictConfig | None = None) -> None:
        self.path = path
        self.settings = OmegaConf.create({"weights": "ema"}) if settings is None else settings

    @cached_property
    def config(self) -> DictConfig:
        """Configuration of the training run, with the groups of `settings`."""
        config = load_config(self.path)
        for group in {*REPLACEABLE} - {"variance"} & {*self.settings}:
            config[group] = self.settings[group]
        for group in ADJUSTABLE:
            run_record.apply_adjustable(config, self.settings, group)
        return config

    @cached_property
    def record(self) -> RunRecord:
        return run_record.read_record(self.path)

    @cached_property
    def checkpoint(self) -> tuple[dict[str, Any], Path]:
        """Content and file of the newest intact checkpoint, or of the best."""
        check_settings(self.settings, {"checkpoint": Literal["newest", "best"]})
        return read_weights(self.path, self.settings.get("checkpoint", "newest"))

    @cached_property
    def data(self) -> Data:
        """Data of the run at its current place. Logs a warning if it differs from training."""
        trusted_paths.require_named(self.config, f"run={self.path}", trusted_paths.DATA)
        data: Data = build(self.config, "data")
        data_check.warn_if_changed(self.record.data, data, self.config, self.path)
        return data

    @cached_property
    @torch.inference_mode(False)  # guidance by a classifier needs gradients
    def pipeline(self) -> SamplingPipeline:
        """Sampling pipeline with the weights `settings.weights`, on the GPU if there is one."""
        pipeline = self._build_pipeline()
        self._load_state({"denoiser.": pipeline.denoiser, "codec.": pipeline.codec})
        self._load_average(pipeline.denoiser)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        pipeline.codec.to(device).eval()
        pipeline.denoiser.to(device).eval()
        if "variance" in self.settings and self.settings.variance != self.config.variance:
            pipeline.denoiser.variance = load_variance(
                self.settings, pipeline, self.checkpoint[1], lambda: self.data
            )
        return pipeline

    def load_classifier(self) -> NoisyClassifier:
        network, spec = self._network("ClassifierSystem", "classifier.network.")
        process: ForwardProcess = build(self.config.system, "process")
        classes = require_classes(spec)
        with prefix_errors("model"):
            body = network(spec.shape, classes=classes)
            classifier = NoisyClassifier(body, process, spec.shape, classes, spec.captions)
        self._load_state({"classifier.": classifier})
        return classifier

    def load_autoencoder(self) -> Autoencoder:
        network, spec = self._network("AutoencoderSystem", "autoencoder.")
        with prefix_errors("model"):
            autoencoder: Autoencoder = network(spec.shape)
        self._load_state({"autoencoder.": autoencoder})
        return autoencoder

    def _build_pipeline(self) -> SamplingPipeline:
        """Build the pipeline with random weights."""
        network, spec = self._network("Diffusion", "denoiser.network.")
        config = self.config.copy()
        for key in config.system.keys() - inspect.signature(build_pipeline).parameters.keys():
            del config.system[key]
        config.system["_target_"] = f"{build_pipeline.__module__}.{build_pipeline.__name__}"
        steps = distilled_steps(load_config(self.path))
        pipeline: SamplingPipeline = build(
            config, "system", network=network, distilled_steps=steps, **spec._asdict()
        )
        return pipeline

    def _network(self, kind: str, prefix: str) -> tuple[Callable[..., Any], DataSpec]:
        """Return the constructor of the network, `prefix` in the state_dict, and its data."""
        if (name := self.config.system._target_.rpartition(".")[2]) != kind:
            raise UserError(f"run={self.path} is {SYSTEMS.get(name, name)}, not {SYSTEMS[kind]}")
        trusted_paths.require_named(self.config, f"run={self.path}", trusted_paths.MODELS)
        content, _ = self.checkpoint
        network = safe_load.check_shapes(build(self.config, "model"), content["state_dict"], prefix)
        spec = DataSpec(**content["hyper_parameters"])
        return network, spec._replace(shape=tuple(spec.shape))

    def _load_state(self, modules: Mapping[str, nn.Module]) -> None:
        """Load the checkpoint into `modules`, by their prefixes in the state_dict of the system."""
        content, file = self.checkpoint
        try:
            for prefix, module in modules.items():
                with prefix_errors(prefix.rstrip(".")):
                    module.load_state_dict(safe_load.select_prefix(content["state_dict"], prefix))
        except (RuntimeError, TypeError, AttributeError) as error:
            message = f"the weights in {file.name} do not fit the model of config.yaml"
            raise UserError(f"run={self.path}: {message}") from error

    def _load_average(self, denoiser: Denoiser) -> None:
        content, file = self.checkpoint
        weights = str(self.settings.weights)
        if weights.startswith(PREFIX):
            if self.settings.get("checkpoint", "newest") != "newest":
                raise UserError(f"weights={weights} is that of the last step; remove checkpoint=")
            denoiser.load_state_dict(read_average(self.path, weights))
            return
        check_settings(self.settings, {"weights": Literal["ema", "raw", "ema:LENGTH"]})
        if self.settings.weights == "raw":
            if content.get("weights") == "ema":
                raise UserError(
                    f"weights=raw: run={self.path} has averaged weights only; try weights=ema"
                )
            return
        if "EMA" not in content["callbacks"]:
            raise UserError(f"weights=ema: run={self.path} has no average; try weights=raw")
        try:
            denoiser.load_state_dict(content["callbacks"]["EMA"]["average"])
        except (RuntimeError, TypeError, KeyError, AttributeError) as error:
            message = f"run={self.path}: the average in {file.name} does not match its weights"
            raise CorruptFileError(message) from error


def load_cascade(run: RunDir) -> Cascade:
    """Return the cascade of `settings.cascade`, whose last stage is `run`; or `run` alone."""
    stages = []
    for stage in (run.settings.cascade or [])[:-1]:
        overrides = stage_overrides(stage)
        try:
            register_run_choices(overrides)
            settings = compose("sample", overrides=overrides)
            stages.append(RunDir(settings.run, settings).pipeline)
        except (HydraException, UserError) as error:
            kind = type(error) if isinstance(error, UserError) else UserError
            raise kind(f"cascade, stage {stage}: {' '.join(str(error).split())[:300]}") from error
        stages[-1].denoiser.origin = f"{settings.run} ({settings.weights})"
    if stages:
        register_run_choices(sys.argv[1:])  # for the next job of a sweep
    return Cascade([*stages, run.pipeline])


def load_classifier(run: str) -> NoisyClassifier:
    """Load the classifier of `python train.py system=classifier`, for classifier guidance."""
    classifier = RunDir(run).load_classifier().requires_grad_(False)
    classifier.origin, classifier.schedule = run, _schedule(run)
    return classifier


def load_latents(spec: DataSpec, run: str) -> Latents:
    """Load the autoencoder of `python train.py system=autoencoder`, for codec=autoencoder."""
    try:
        autoencoder = RunDir(run).load_autoencoder()
    except UserError as error:
        message = str(error) if str(error).startswith("run=") else f"run={run}: {error}"
        raise type(error)(f"codec.{message}; if it was moved, add codec.run=DIR") from error
    return Latents(spec, autoencoder, run)


def load_denoiser(run: str, weights: str = "ema") -> Denoiser:
    """Load the denoiser of another run, for guidance by a weaker model."""
    settings = OmegaConf.create({"weights": weights})
    denoiser = RunDir(run, settings).pipeline.denoiser.requires_grad_(False)
    denoiser.origin, denoiser.schedule = f"{run} ({weights})", _schedule(run)
    return denoiser


def _schedule(run: str) -> str:
    """Return the overrides of the schedule of `run`."""
    schedule = load_config(run).schedule
    keys = [key for key in map(str, schedule) if key != "_target_"]
    name = schedule._target_.rpartition(".")[2]
    return " ".join([f"schedule={name}", *(f"schedule.{key}={schedule[key]}" for key in keys)])
