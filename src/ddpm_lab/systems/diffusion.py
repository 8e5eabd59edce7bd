"""The one Lightning module of all diffusion models."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ddpm_lab.conditioners import Conditioner
from ddpm_lab.data.images import Images
from ddpm_lab.diffusion.condition import Condition
from ddpm_lab.diffusion.denoiser import Denoiser, Denoises
from ddpm_lab.diffusion.noise import SampleNoise
from ddpm_lab.diffusion.objectives import Draw
from ddpm_lab.diffusion.predictions import Prediction
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.samplers import Sampler
from ddpm_lab.diffusion.variances import Variance
from ddpm_lab.errors import UserError, naming

Batch = dict[str, Tensor]


class Diffusion(L.LightningModule):
    """A denoiser in training, and what samples from it.

    What the data dictates, `shape` (C, H, W) and `classes` (None without labels), completes the `network` and the
    `conditioner`, which come as functions of it. Choices that do not fit one another raise ValueError here.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int | None,
        *,
        network: Callable[..., nn.Module],
        process: ForwardProcess,
        prediction: Prediction,
        variance: Variance,
        objective: Callable[[Denoiser, Draw], Tensor],
        conditioner: Callable[..., Conditioner],
        guidance: partial[Denoises],
        sampler: Sampler,
        optimizer: Callable[..., torch.optim.Optimizer],
        lr_schedule: Callable[[int, int], float],
    ) -> None:
        super().__init__()
        self.save_hyperparameters({"shape": list(shape), "classes": classes})
        self.shape = tuple(shape)
        with naming("conditioner"):
            self.conditioner = conditioner(classes)
        with naming("model"):
            body = network(shape, **self.conditioner.doors)
        self.denoiser = Denoiser(body, process, prediction, variance, knows_null=self.conditioner.dropout > 0)
        self.objective, self.guidance, self.sampler = objective, guidance, sampler
        self.optimizer, self.lr_schedule = optimizer, lr_schedule
        with naming("optimizer"):
            optimizer(self.parameters())
        with naming("sampler"):
            sampler.times(process.steps)
        with naming("guidance"):
            guidance(self.denoiser)

    def draw(self, batch: Batch) -> Draw:
        """A noised batch: x_t = signal_t x_0 + noise_t eps at uniform times, some conditions dropped."""
        x0 = batch["image"]
        t = torch.randint(1, self.denoiser.process.steps + 1, (len(x0),), device=x0.device)
        eps = torch.randn_like(x0)
        cond = self.conditioner(batch).drop(self.conditioner.dropout)
        return Draw(x0, eps, self.denoiser.process.diffuse(x0, eps, t), t, cond)

    def training_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        draw = self.draw(batch)
        losses = self.objective(self.denoiser, draw)
        return {"loss": losses.mean(), "losses": losses.detach(), "t": draw.t}

    def validation_step(self, batch: Batch, index: int) -> None:
        # The same draw at every validation, and the training stream stays where it was.
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(index)
            losses = self.objective(self.denoiser, self.draw(batch))
        self.log("val/loss", losses.mean(), batch_size=len(losses))

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        steps = self.trainer.max_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.lr_schedule(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning's own refuses fused optimizers under mixed precision, even in bf16, where nothing is scaled.
        if gradient_clip_val:
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def labels(self, count: int, label: int | Sequence[int] | None = None) -> Tensor | None:
        """Labels for `count` samples, (count,): those asked for, or all, in turn; None for a model without labels."""
        classes = self.conditioner.doors.get("classes")
        if classes is None:
            if label is not None:
                raise UserError(f"label={label} asks for what this model was not trained with; try label=null")
            return None
        wanted = range(classes) if label is None else list(label) if isinstance(label, Sequence) else [label]
        if not wanted or any(type(one) is not int or not 0 <= one < classes for one in wanted):
            raise UserError(f"label={label} is not among the labels of this model, 0..{classes - 1}")
        return torch.tensor(wanted)[torch.arange(count) % len(wanted)]

    def walk(
        self, denoiser: Denoiser, samples: Sequence[int], labels: Tensor | None, seed: int
    ) -> Iterator[tuple[int, Tensor]]:
        """Each time from T down to 0 with its x_t, (len(samples), C, H, W).

        `samples` are numbers, `labels` (len(samples),) theirs. Sample i of a seed is the same in any company.
        """
        training = denoiser.training
        denoiser.eval()
        try:
            noise = SampleNoise(seed, samples)
            x = noise(torch.empty(len(samples), *self.shape, device=self.device))
            yield denoiser.process.steps, x
            cond = Condition() if labels is None else self.conditioner({"label": labels.to(self.device)})
            yield from self.sampler.walk(self.guidance(denoiser), x, cond, noise)
        finally:
            denoiser.train(training)

    @torch.inference_mode()
    def sample(
        self,
        denoiser: Denoiser,
        count: int,
        *,
        labels: Tensor | None = None,
        seed: int = 0,
        batch_size: int = 256,
        progress: bool = False,
    ) -> Iterator[Images]:
        """`count` pictures, in batches; labels (count,) are all in turn unless given. `progress` shows a bar."""
        labels = self.labels(count) if labels is None else labels
        batches = torch.arange(count).split(batch_size)
        total = len(batches) * (len(self.sampler.times(denoiser.process.steps)) - 1)
        silent = None if progress else True  # None: only where there is no terminal
        with tqdm(total=total, desc=f"sampling {count} pictures", unit="step", disable=silent, leave=False) as bar:
            for samples in batches:
                some = None if labels is None else labels[samples].to(self.device)
                x = torch.empty(0)
                for t, x in self.walk(denoiser, samples.tolist(), some, seed):  # noqa: B007 (the last is the picture)
                    bar.update(t < denoiser.process.steps)
                yield Images(to_bytes(x), some)

    def protocol(self) -> dict[str, Any]:
        """What samples depend on beside weights and seed."""
        guidance = {"name": self.guidance.func.__name__, **self.guidance.keywords}
        return {
            "sampler": {"name": type(self.sampler).__name__, **asdict(self.sampler)},
            "guidance": guidance,
            "variance": type(self.denoiser.variance).__name__,
            "T": self.denoiser.process.steps,
        }


def to_bytes(x: Tensor) -> Tensor:
    """[-1, 1] to uint8; what lies outside is cut."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte()
