"""Training a classifier of noisy pictures, for classifier guidance."""

import inspect
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_lab.diffusion.classifier import Classifier
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.timesteps import Stratified, TimeSampler
from ddpm_lab.errors import UserError, naming
from ddpm_lab.systems.training import clip_gradients, optimizers

Batch = dict[str, Tensor]


class ClassifierSystem(L.LightningModule):
    """Cross-entropy of labels given x_t at random times (Dhariwal & Nichol, 2021, section 4.1), and the accuracy on
    held-out pictures by quarter of the times.

    What the data dictates, `shape` and `classes`, completes the `network`; `bin_width` is not needed.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int | None,
        bin_width: float | None,
        *,
        network: Callable[..., nn.Module],
        process: ForwardProcess,
        timesteps: Callable[[int], TimeSampler],
        optimizer: Callable[..., torch.optim.Optimizer],
        lr_schedule: Callable[[int, int], float],
    ) -> None:
        super().__init__()
        if classes is None:
            raise UserError("system=classifier needs labels, which this data has not; try data with a folder per class")
        self.save_hyperparameters({"shape": list(shape), "classes": classes, "bin_width": bin_width})
        if "outputs" in inspect.signature(network).parameters:
            raise UserError("model answers with pictures, not classes; try model=classifier")
        with naming("model"):
            self.classifier = Classifier(network(tuple(shape), classes=classes), process, tuple(shape), classes)
        with naming("timesteps"):
            self.timesteps = timesteps(process.steps)
        with naming("optimizer"):
            optimizer(self.parameters())
        self.process, self.optimizer, self.lr_schedule = process, optimizer, lr_schedule

    def losses(self, batch: Batch, t: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropies in nats (B,), and whether each was right (B,), at one draw of x_t each."""
        x_t = self.process.diffuse(batch["x0"], torch.randn_like(batch["x0"]), t)
        log_p = self.classifier(x_t, t)
        return F.nll_loss(log_p, batch["label"], reduction="none"), log_p.argmax(1) == batch["label"]

    def training_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        t, weight = self.timesteps(len(batch["x0"]), self.device)
        losses, _ = self.losses(batch, t)
        self.timesteps.learn(t, losses.detach())
        return {"loss": (weight * losses).mean(), "losses": losses.detach(), "weight": weight, "t": t}

    def validation_step(self, batch: Batch, index: int) -> None:
        # The same draw at every validation, and the training stream stays where it was.
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(index)
            t, _ = Stratified(self.process.steps)(len(batch["x0"]), self.device)
            losses, right = self.losses(batch, t)
        self.log("val/loss", losses.mean(), batch_size=len(losses))
        self.log("val/accuracy", right.float().mean(), batch_size=len(losses))
        for q in range(4):
            mine = (t - 1) * 4 // self.process.steps == q
            if mine.any():
                self.log(f"val/accuracy_q{q + 1}", right[mine].float().mean(), batch_size=int(mine.sum()))

    def configure_optimizers(self) -> Any:
        return optimizers(self, self.optimizer, self.lr_schedule)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        clip_gradients(self, gradient_clip_val)

    def suggestions(self, run: str, measured: bool) -> list[tuple[str, str]]:
        """What to type next, (verb, arguments)."""
        return [("sample", f"run=DIR guidance=classifier guidance.classifier.run={run} guidance.scale=1")]
