"""Training of classifiers of noisy images, for classifier guidance."""

import inspect
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_lab.data.datasets import Batch
from ddpm_lab.diffusion.classifier_guidance import NoisyClassifier
from ddpm_lab.diffusion.conditioning import DataSpec
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.rng import NoiseSampler
from ddpm_lab.diffusion.timestep_samplers import TimestepSampler
from ddpm_lab.systems.base import TimestepSystem
from ddpm_lab.utils.errors import UserError, prefix_errors


class ClassifierSystem(TimestepSystem):
    """Cross-entropy of labels given x_t at random times (Dhariwal & Nichol, 2021, section 4.1).

    Validation logs the accuracy on held-out images, in total and by quarter of the times. `shape`
    and `classes` of the data complete the `network`. Raises UserError for data without labels.
    """

    validated = ("loss", "accuracy")

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int | None,
        bin_width: float | None,
        captions: Sequence[Sequence[str]] | None = None,
        *,
        network: Callable[..., nn.Module],
        process: ForwardProcess,
        timestep_sampler: Callable[[ForwardProcess], TimestepSampler],
        optimizer: Callable[..., torch.optim.Optimizer],
        lr_schedule: Callable[[int, int], float],
    ) -> None:
        super().__init__()
        if classes is None:
            raise UserError("system=classifier needs labels; try data with a folder per class")
        self.save_hyperparameters(
            DataSpec(shape, classes, bin_width, captions)._asdict() | {"shape": list(shape)}
        )
        parameters = inspect.signature(network).parameters
        if "classes" not in parameters or "outputs" in parameters:
            raise UserError("model is not a classifier; try model=classifier")
        with prefix_errors("model"):
            body = network(tuple(shape), classes=classes)
            self.classifier = NoisyClassifier(body, process, tuple(shape), classes, captions)
        self.process = process
        self.set_timestep_sampler(timestep_sampler)
        self.set_optimizer(optimizer, lr_schedule)

    @property
    def compile_target(self) -> nn.Module:
        return self.classifier.network

    def log_probabilities(
        self, batch: Batch, t: Tensor, noise: NoiseSampler = torch.randn_like
    ) -> Tensor:
        """Return log p(y | x_t), (B, classes), for one x_t per image."""
        return self.classifier(self.process.diffuse(batch["x0"], noise(batch["x0"]), t), t)

    def losses(self, batch: Batch, t: Tensor, noise: NoiseSampler = torch.randn_like) -> Tensor:
        log_p = self.log_probabilities(batch, t, noise)
        return F.nll_loss(log_p, batch["label"], reduction="none")

    def validation_step(self, batch: Batch, index: int) -> None:
        with self.validation_noise(index) as (t, noise):
            log_p = self.log_probabilities(batch, t, noise)
        correct = (log_p.argmax(1) == batch["label"]).float()
        self.log_mean("val/loss", F.nll_loss(log_p, batch["label"], reduction="none"))
        self.log_mean("val/accuracy", correct)
        for q in range(4):
            self.log_mean(f"val/accuracy_q{q + 1}", correct[(t - 1) * 4 // self.process.steps == q])

    def suggestions(self, run: str, measured: bool) -> list[tuple[str, str]]:
        guidance = f"guidance=classifier guidance.classifier.run={run} guidance.scale=1"
        return [("sample", f"run=DIR {guidance}")]
