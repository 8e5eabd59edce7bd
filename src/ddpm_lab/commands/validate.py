"""What only several keys together can be wrong about, and what the machine does not have: seen before a run has a
folder. What one key alone can be wrong about is checked by what it builds, see `commands.build`.
"""

import math
from collections.abc import Mapping

import torch
from lightning import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig

from ddpm_lab.callbacks.density import Density
from ddpm_lab.callbacks.ema import EMA
from ddpm_lab.callbacks.pictures import Pictures
from ddpm_lab.callbacks.quality import Quality
from ddpm_lab.callbacks.reconstructions import Reconstructions
from ddpm_lab.callbacks.scatter import Scatter
from ddpm_lab.commands.build import at_least
from ddpm_lab.data.module import Data
from ddpm_lab.data.splits import Points
from ddpm_lab.errors import UserError
from ddpm_lab.systems.autoencoder import AutoencoderSystem
from ddpm_lab.systems.classifier import ClassifierSystem
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.systems.training import Learner


def validate_settings(config: DictConfig) -> None:
    """Before anything is built. Raises UserError."""
    at_least(config, {"seed": 0, "trainer.max_steps": 1})
    if config.model._target_ == "ddpm_lab.diffusion.exact.MixtureDenoiser":
        raise UserError(
            "model=exact is known in closed form and has nothing to train; try: python evaluate.py model=exact"
        )
    if config.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(f"trainer.accelerator={config.trainer.accelerator}, and there is no GPU; try trainer=cpu")


def validate(config: DictConfig, data: Data, system: Learner, callbacks: Mapping[str, Callback]) -> None:
    """What was built, before a trainer is. Raises UserError."""
    _fitting(callbacks, system, data)
    if not isinstance(system, Diffusion) and config.codec._target_ != "ddpm_lab.codecs.Pixels":
        raise UserError(
            "codec=autoencoder is for system=diffusion, and nothing else works in latents; try codec=pixels"
        )
    reach = data.train[0].abs().max().item() if isinstance(data.train, Points) else 1.0
    if isinstance(system, Diffusion) and system.sampler.clip is not None and reach > system.sampler.clip:
        raise UserError(f"sampler.clip={system.sampler.clip:g} would cut this data, which reaches {reach:.3g}; "
                        f"try sampler.clip={math.ceil(reach)}")  # fmt: skip


def validate_trainer(config: DictConfig, trainer: Trainer) -> None:
    """What Lightning would take and we cannot. Raises UserError."""
    shares = isinstance(trainer.strategy, DDPStrategy) and not config.trainer.get("use_distributed_sampler", True)
    if trainer.world_size > 1 and not shares:
        raise UserError(f"trainer.devices={config.trainer.devices} is more than one device; try trainer=ddp")
    size = config.data.batch_size
    if size % trainer.world_size:
        fits = -(-size // trainer.world_size) * trainer.world_size
        raise UserError(f"data.batch_size={size} is that of all processes together, and {trainer.world_size} cannot "
                        f"share it; try data.batch_size={fits}")  # fmt: skip
    if trainer.precision not in ("32-true", "bf16-mixed"):
        raise UserError(f"trainer.precision={trainer.precision} would lose the float64 tables, or clip gradients that "
                        "are scaled; try 32-true or bf16-mixed")  # fmt: skip


def _fitting(callbacks: Mapping[str, Callback], system: Learner, data: Data) -> None:
    """Raises UserError where callbacks look at what there is not."""
    if isinstance(system, ClassifierSystem):
        kinds: tuple[type[Callback], ...] = (EMA, Scatter, Density, Pictures, Quality, Reconstructions)
        what, usual = "a classifier", "classifier"
    elif isinstance(system, AutoencoderSystem):
        kinds, what, usual = (EMA, Scatter, Density, Pictures, Quality), "an autoencoder", "autoencoder"
    elif data.bin_width is None:
        kinds, what, usual = (Pictures, Quality, Reconstructions), "points", "points"
    else:
        kinds, what, usual = (Scatter, Density, Reconstructions), "pictures", "default"
    for name, callback in callbacks.items():
        if not isinstance(callback, Callback):  # what an experiment sets of one that is not there
            raise UserError(f"callbacks.{name} sets keys of a callback that callbacks= does not have; "
                            f"try ~callbacks.{name}")  # fmt: skip
        if isinstance(callback, kinds):
            raise UserError(f"callbacks: {type(callback).__name__} is not for {what}; try callbacks={usual}")
