"""Training an autoencoder, the first stage of latent diffusion (Rombach et al., 2022, section 3.1, appendix G)."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torchmetrics.functional.image import peak_signal_noise_ratio

from ddpm_lab.conditioners.base import DataSpec
from ddpm_lab.data.datasets import Batch
from ddpm_lab.diffusion.rng import NoiseSampler
from ddpm_lab.networks.autoencoder import Autoencoder, PatchDiscriminator
from ddpm_lab.sampling.conditions import format_size
from ddpm_lab.systems.base import BaseSystem, eval_mode
from ddpm_lab.utils.errors import UserError, prefix_errors


class AutoencoderSystem(BaseSystem):
    """|x - x^| plus the bottleneck's own penalty and, from step `start` on, `adversarial` times what an adversary says
    of x^, by its hinge loss, in units of the reconstruction's gradient (Esser et al., 2021, eq. 7); `perceptual` weighs
    LPIPS (Zhang et al., 2018), whose weights torchvision downloads.

    Of what the data dictates, `shape` completes the `network`. Raises UserError for points.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int | None,
        bin_width: float | None,
        captions: Sequence[Sequence[str]] | None = None,
        *,
        network: Callable[..., Autoencoder],
        optimizer: Callable[..., torch.optim.Optimizer],
        lr_schedule: Callable[[int, int], float],
        perceptual: float = 0.0,
        adversarial: float = 0.0,
        start: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(
            DataSpec(shape, classes, bin_width, captions)._asdict() | {"shape": list(shape)}
        )
        if bin_width is None:
            raise UserError("system=autoencoder is for images; points have nothing to be left out")
        for name, value in {
            "perceptual": perceptual,
            "adversarial": adversarial,
            "start": start,
        }.items():
            if not 0 <= value < math.inf:
                raise UserError(
                    f"system.{name} must be a number of at least 0 (got {value:g}); try 0"
                )
        for name, value, least in (("perceptual", perceptual, 16), ("adversarial", adversarial, 4)):
            if value and min(shape[1:]) < least:
                raise UserError(
                    f"system.{name}={value:g} looks at images of at least {least}x{least}, and these are "
                    f"{format_size(shape)}; try 0"
                )
        if "bottleneck" not in inspect.signature(network).parameters:
            raise UserError(
                "model is not an autoencoder; try model=autoencoder_kl or autoencoder_vq"
            )
        with prefix_errors("model"):
            self.autoencoder = network(tuple(shape))
        self.perceptual, self.adversarial, self.start = perceptual, adversarial, start
        self.discriminator = PatchDiscriminator(shape[0], 32, 2) if adversarial else None
        self._lpips = (
            [_lpips(perceptual)] if perceptual else []
        )  # in a list, so that it is in no checkpoint
        self.set_optimizer(optimizer, lr_schedule)

    def losses(
        self, x: Tensor, noise: NoiseSampler = torch.randn_like
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The parts that add up to the loss, each (B,) or the same for all, and reconstructions, (B, C, H, W)."""
        passed = self.autoencoder.encode(x, noise)
        found = self.autoencoder.decode(passed.z)
        parts = {
            "l1": (found - x).abs().flatten(1).mean(1),
            "penalty": passed.penalty / x[0].numel(),
        }
        for lpips in self._lpips:
            colour = (x.expand(-1, 3, -1, -1), found.clamp(-1, 1).expand(-1, 3, -1, -1))
            parts["lpips"] = self.perceptual * lpips.to(x.device)(*colour)
        return parts, found

    def batch_losses(self, batch: Batch) -> Tensor:
        return total(self.losses(batch["x0"])[0])

    def zero_prediction_loss(self, batch: Batch) -> float:
        return batch["x0"].abs().mean().item()

    def training_step(self, batch: Batch, index: int) -> dict[str, Any]:
        parts, found = self.losses(batch["x0"], self.noise(len(batch["x0"])))
        losses = total(parts)
        loss = losses.mean()
        if self.discriminator is not None and self.trainer.global_step >= self.start:
            parts["hinge"], parts["fooled"] = self._adversary(
                self.discriminator, batch["x0"], found, loss
            )
            loss = loss + parts["hinge"] + parts["fooled"]
        return {"loss": loss, "losses": losses.detach(), "parts": parts}

    def _adversary(
        self, discriminator: PatchDiscriminator, x: Tensor, found: Tensor, loss: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Its own loss and the autoencoder's: each is blind to the other's weights, so one optimizer does."""
        hinge = (
            F.relu(1 - discriminator(x)) + F.relu(1 + discriminator(found.detach()))
        ).mean() / 2
        held = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
        fooled = -functional_call(discriminator, held, (found,)).mean()
        last = self.autoencoder.last.weight
        sizes = [
            torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (loss, fooled)
        ]
        weight = (
            (sizes[0] / (sizes[1] + 1e-4)).clamp(max=1e4).detach()
        )  # both numbers are those of their code
        return hinge, self.adversarial * weight * fooled

    def clipped_modules(self) -> list[nn.Module]:
        """Each side alone, so that the adversary's gradients do not set the autoencoder's step."""
        return [part for part in (self.autoencoder, self.discriminator) if part is not None]

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, C, H, W) in [-1, 1], and its codes (B, h, w), where it has a codebook; nothing is left to chance."""
        with eval_mode(self.autoencoder):
            passed = self.autoencoder.encode(x, torch.zeros_like)
            return self.autoencoder.decode(passed.z).clamp(-1, 1), passed.codes

    def validation_step(self, batch: Batch, index: int) -> None:
        x = batch["x0"][self.shard_slice(len(batch["x0"]))]
        parts, found = self.losses(x, torch.zeros_like)
        psnr = peak_signal_noise_ratio(
            found.clamp(-1, 1), x, (-1.0, 1.0), reduction="none", dim=(1, 2, 3)
        )
        self.log_mean("val/loss", total(parts))
        self.log_mean("val/psnr", psnr)

    def suggestions(self, run: str, measured: bool) -> list[tuple[str, str]]:
        return [("train", f"codec=autoencoder codec.run={run}")]


def total(parts: dict[str, Tensor]) -> Tensor:
    """Their sum."""
    return torch.stack(torch.broadcast_tensors(*parts.values())).sum(0)


def _lpips(weight: float) -> Any:
    """Raises UserError where its weights cannot be had."""
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        return LearnedPerceptualImagePatchSimilarity("vgg").requires_grad_(False)
    except OSError as error:  # URLError is one
        raise UserError(
            f"system.perceptual={weight:g} needs the weights of VGG, which torchvision could not download "
            f"({error}); try system.perceptual=0"
        ) from error
