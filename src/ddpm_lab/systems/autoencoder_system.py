"""Training of autoencoders (Rombach et al., 2022, section 3.1 and appendix G)."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torchmetrics.functional.image import peak_signal_noise_ratio

from ddpm_lab.data.datasets import Batch
from ddpm_lab.diffusion.conditioning import DataSpec
from ddpm_lab.diffusion.denoiser import eval_mode
from ddpm_lab.diffusion.rng import NoiseSampler
from ddpm_lab.networks.autoencoder import Autoencoder, PatchDiscriminator
from ddpm_lab.sampling.conditions import format_size
from ddpm_lab.systems.base import BaseSystem
from ddpm_lab.utils.errors import UserError, prefix_errors
from ddpm_lab.utils.ranges import NonNegative, NonNegativeInt, check_ranges


@check_ranges
class AutoencoderSystem(BaseSystem):
    """Mean absolute error of the reconstruction plus the penalty of the bottleneck.

    `shape` of the data completes the `network`. Raises UserError for points.

    Args:
        perceptual: Weight of LPIPS (Zhang et al., 2018), whose weights torchvision downloads.
        adversarial: Weight of a hinge-loss discriminator, relative to the gradient of the other
            terms (Esser et al., 2021, eq. 7).
        start: First step that trains the discriminator.
    """

    validated = ("loss", "psnr")

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
        perceptual: NonNegative = 0.0,
        adversarial: NonNegative = 0.0,
        start: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(
            DataSpec(shape, classes, bin_width, captions)._asdict() | {"shape": list(shape)}
        )
        if bin_width is None:
            raise UserError(
                "system=autoencoder is for images, but this data set has points; try "
                "system=diffusion"
            )
        for name, weight, side in (("perceptual", perceptual, 16), ("adversarial", adversarial, 4)):
            if weight and min(shape[1:]) < side:
                least = f"{side}x{side} (got {format_size(shape)}); try 0"
                raise UserError(f"system.{name}={weight:g} needs images of at least {least}")
        if perceptual and shape[0] not in (1, 3):
            raise UserError(
                f"system.perceptual={perceptual:g} needs gray or RGB images (got "
                f"{format_size(shape)}); try 0"
            )
        if "bottleneck" not in inspect.signature(network).parameters:
            raise UserError("model is not an autoencoder; try model=autoencoder_kl, autoencoder_vq")
        with prefix_errors("model"):
            self.autoencoder = network(tuple(shape))
        self.perceptual, self.adversarial, self.start = perceptual, adversarial, start
        self.discriminator = PatchDiscriminator(shape[0], 32, 2) if adversarial else None
        # A list keeps LPIPS out of checkpoints.
        self._lpips = [_load_lpips(perceptual)] if perceptual else []
        self.set_optimizer(optimizer, lr_schedule)

    def losses(
        self, x: Tensor, noise: NoiseSampler = torch.randn_like
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the terms of the loss, each (B,) or a scalar, and reconstructions (B, C, H, W)."""
        encoding = self.autoencoder.encode(x, noise)
        reconstruction = self.autoencoder.decode(encoding.z)
        terms = {
            "l1": (reconstruction - x).abs().flatten(1).mean(1),
            "penalty": encoding.penalty / x[0].numel(),
        }
        for lpips in self._lpips:
            pair = (image.expand(-1, 3, -1, -1) for image in (x, reconstruction.clamp(-1, 1)))
            terms["lpips"] = self.perceptual * lpips.to(x.device)(*pair)
        return terms, reconstruction

    def batch_losses(self, batch: Batch) -> Tensor:
        return total(self.losses(batch["x0"])[0])

    def zero_prediction_loss(self, batch: Batch) -> float:
        return batch["x0"].abs().mean().item()

    def training_step(self, batch: Batch, index: int) -> dict[str, Any]:
        x = batch["x0"]
        terms, reconstruction = self.losses(x, self.noise(len(x)))
        losses = total(terms)
        loss = losses.mean()
        if self.discriminator is not None and self.trainer.global_step >= self.start:
            adversarial = self._adversarial_losses(self.discriminator, x, reconstruction, loss)
            terms["hinge"], terms["fooled"] = adversarial
            loss = loss + terms["hinge"] + terms["fooled"]
        return {"loss": loss, "losses": losses.detach(), "parts": terms}

    def _adversarial_losses(
        self, discriminator: PatchDiscriminator, x: Tensor, reconstruction: Tensor, loss: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of discriminator and autoencoder, each for its own weights only."""
        real = F.relu(1 - discriminator(x))
        fake = F.relu(1 + discriminator(reconstruction.detach()))
        hinge = (real + fake).mean() / 2
        frozen = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
        fooled = -functional_call(discriminator, frozen, (reconstruction,)).mean()
        last = self.autoencoder.last.weight
        loss_norm, fooled_norm = (
            torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (loss, fooled)
        )
        # Both constants are from the authors' code.
        weight = (loss_norm / (fooled_norm + 1e-4)).clamp(max=1e4).detach()
        return hinge, self.adversarial * weight * fooled

    def clipped_modules(self) -> list[nn.Module]:
        """Return autoencoder and discriminator, whose gradients are clipped independently."""
        return [part for part in (self.autoencoder, self.discriminator) if part is not None]

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return reconstructions (B, C, H, W) in [-1, 1], without noise, and codes (B, h, w).

        Codes are None without a codebook.
        """
        with eval_mode(self.autoencoder):
            encoding = self.autoencoder.encode(x, torch.zeros_like)
            return self.autoencoder.decode(encoding.z).clamp(-1, 1), encoding.codes

    def validation_step(self, batch: Batch, index: int) -> None:
        x = batch["x0"]
        terms, reconstruction = self.losses(x, torch.zeros_like)
        psnr = peak_signal_noise_ratio(
            reconstruction.clamp(-1, 1), x, (-1.0, 1.0), reduction="none", dim=(1, 2, 3)
        )
        self.log_mean("val/loss", total(terms))
        self.log_mean("val/psnr", psnr)

    def suggestions(self, run: str, measured: bool) -> list[tuple[str, str]]:
        return [("train", f"codec=autoencoder codec.run={run}")]


def total(terms: dict[str, Tensor]) -> Tensor:
    """Return the sum of the terms, each (B,) or a scalar."""
    return torch.stack(torch.broadcast_tensors(*terms.values())).sum(0)


def _load_lpips(weight: float) -> Any:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        return LearnedPerceptualImagePatchSimilarity("vgg").requires_grad_(False)
    except OSError as error:  # includes URLError
        raise UserError(
            f"system.perceptual={weight:g} needs the weights of VGG ({error}); "
            "try system.perceptual=0"
        ) from error
