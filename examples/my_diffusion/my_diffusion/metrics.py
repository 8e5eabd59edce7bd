"""Metrics of the features of samples."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_lab.evaluation.metrics import Estimates, FeatureMetric, Number, Results, Rows


@dataclass(frozen=True)
class Coverage(FeatureMetric):
    """Coverage (Naeem et al., 2020): the share of real images with a sample nearby.

    Nearby is within the distance to the `neighbors`-th nearest real image.
    """

    numbers = (Number("coverage", "coverage", "higher", "{:.3f}"),)
    neighbors: int = 5

    def compute(self, features: Tensor, reference: Tensor, device: torch.device) -> Estimates:
        real = torch.cdist(reference, reference)
        radius = real.kthvalue(self.neighbors + 1, dim=1).values  # the nearest is itself
        nearest = torch.cdist(reference, features.to(device)).min(dim=1).values
        return {"coverage": ((nearest <= radius).double().mean().item(), None)}

    def rows(self, results: Results) -> Rows:
        remark = f"held-out images {results['real']['coverage']:.3f}"
        return [("coverage", f"{results['coverage']:.3f}", remark)]
