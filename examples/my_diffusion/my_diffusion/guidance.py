"""Guidances: denoisers around a denoiser."""

from torch import Tensor

from ddpm_lab.diffusion.guidance import ClassifierFreeGuidance
from ddpm_lab.diffusion.process import per_pixel


class RampGuidance(ClassifierFreeGuidance):
    """Classifier-free guidance of strength w t / T, which fades towards the data."""

    def extrapolate(self, x0: Tensor, baseline: Tensor, t: Tensor) -> Tensor:
        w = self.w * per_pixel(t / self.process.steps, x0)
        return x0 + w * (x0 - baseline)
