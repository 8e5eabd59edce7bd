"""Training a classifier of noisy images, for classifier guidance."""

import inspect
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_lab.conditioners.base import DataSpec
from ddpm_lab.data.datasets import Batch
from ddpm_lab.diffusion.classifier_guidance import NoisyClassifier
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.rng import NoiseSampler
from ddpm_lab.diffusion.timestep_samplers import TimestepSampler
from ddpm_lab.systems.base import TimestepSystem
from ddpm_lab.utils.errors import UserError, prefix_errors


class ClassifierSystem(TimestepSystem):
    """Cross-entropy of labels given x_t at random times (Dhariwal & Nichol, 2021, section 4.1), and the accuracy on
    held-out images by quarter of the times.

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
        timestep_sampler: Callable[[int], TimestepSampler],
        optimizer: Callable[..., torch.optim.Optimizer],
        lr_schedule: Callable[[int, int], float],
    ) -> None:
        super().__init__()
        if classes is None:
            raise UserError(
                "system=classifier needs labels, which this data has not; try data with a folder per class"
            )
        self.save_hyperparameters(
            DataSpec(shape, classes, bin_width, captions)._asdict() | {"shape": list(shape)}
        )
        offered = inspect.signature(network).parameters
        if "classes" not in offered or "outputs" in offered:
            raise UserError("model does not name classes; try model=classifier")
        with prefix_errors("model"):
            body = network(tuple(shape), classes=classes)
            self.classifier = NoisyClassifier(body, process, tuple(shape), classes, captions)
        self.process = process
        self.set_timestep_sampler(timestep_sampler)
        self.set_optimizer(optimizer, lr_schedule)

    @property
    def compile_target(self) -> nn.Module:
        return self.classifier.network

    def answers(self, batch: Batch, t: Tensor, noise: NoiseSampler = torch.randn_like) -> Tensor:
        """log p(y | x_t), (B, classes), at one draw of x_t."""
        return self.classifier(self.process.diffuse(batch["x0"], noise(batch["x0"]), t), t)

    def losses(self, batch: Batch, t: Tensor, noise: NoiseSampler = torch.randn_like) -> Tensor:
        return F.nll_loss(self.answers(batch, t, noise), batch["label"], reduction="none")

    def validation_step(self, batch: Batch, index: int) -> None:
        with self.validation_batch(batch, index) as (mine, t, noise):
            log_p = self.answers(mine, t, noise)
        right = (log_p.argmax(1) == mine["label"]).float()
        self.log_mean("val/loss", F.nll_loss(log_p, mine["label"], reduction="none"))
        self.log_mean("val/accuracy", right)
        for q in range(4):
            self.log_mean(f"val/accuracy_q{q + 1}", right[(t - 1) * 4 // self.process.steps == q])

    def suggestions(self, run: str, measured: bool) -> list[tuple[str, str]]:
        return [
            (
                "sample",
                f"run=DIR guidance=classifier guidance.classifier.run={run} guidance.scale=1",
            )
        ]
