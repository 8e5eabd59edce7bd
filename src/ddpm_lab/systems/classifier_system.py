"""Training a classifier of noisy pictures, for classifier guidance."""

import inspect
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_lab.conditioners.base import Spec
from ddpm_lab.data.datasets import Batch
from ddpm_lab.diffusion.classifier_guidance import Classifier
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.rng import Noise
from ddpm_lab.diffusion.timestep_samplers import TimeSampler
from ddpm_lab.systems.base import System
from ddpm_lab.utils.errors import UserError, naming


class ClassifierSystem(System):
    """Cross-entropy of labels given x_t at random times (Dhariwal & Nichol, 2021, section 4.1), and the accuracy on
    held-out pictures by quarter of the times.

    Of what the data dictates, `shape` and `classes` complete the `network`; the rest is not needed.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int | None,
        bin_width: float | None,
        captions: Sequence[Sequence[str]] | None = None,
        *,
        network: Callable[..., nn.Module],
        process: ForwardProcess,
        timesteps: Callable[[int], TimeSampler],
        optimizer: Callable[..., torch.optim.Optimizer],
        lr_schedule: Callable[[int, int], float],
    ) -> None:
        super().__init__()
        if classes is None:
            raise UserError(
                "system=classifier needs labels, which this data has not; try data with a folder per class"
            )
        self.save_hyperparameters(
            Spec(shape, classes, bin_width, captions)._asdict() | {"shape": list(shape)}
        )
        offered = inspect.signature(network).parameters
        if "classes" not in offered or "outputs" in offered:
            raise UserError("model does not name classes; try model=classifier")
        with naming("model"):
            body = network(tuple(shape), classes=classes)
            self.classifier = Classifier(body, process, tuple(shape), classes, captions)
        self.process = process
        self.look_at(timesteps)
        self.learn_by(optimizer, lr_schedule)

    @property
    def compiles(self) -> nn.Module:
        return self.classifier.network

    def answers(self, batch: Batch, t: Tensor, noise: Noise = torch.randn_like) -> Tensor:
        """log p(y | x_t), (B, classes), at one draw of x_t."""
        return self.classifier(self.process.diffuse(batch["x0"], noise(batch["x0"]), t), t)

    def losses(self, batch: Batch, t: Tensor, noise: Noise = torch.randn_like) -> Tensor:
        return F.nll_loss(self.answers(batch, t, noise), batch["label"], reduction="none")

    def validation_step(self, batch: Batch, index: int) -> None:
        with self.held_out(batch, index) as (mine, t, noise):
            log_p = self.answers(mine, t, noise)
        right = (log_p.argmax(1) == mine["label"]).float()
        self.watch("val/loss", F.nll_loss(log_p, mine["label"], reduction="none"))
        self.watch("val/accuracy", right)
        for q in range(4):
            self.watch(f"val/accuracy_q{q + 1}", right[(t - 1) * 4 // self.process.steps == q])

    def suggestions(self, run: str, measured: bool) -> list[tuple[str, str]]:
        return [
            (
                "sample",
                f"run=DIR guidance=classifier guidance.classifier.run={run} guidance.scale=1",
            )
        ]
