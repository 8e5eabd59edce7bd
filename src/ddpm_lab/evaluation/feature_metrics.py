"""Metrics of the features of samples and of real images: KID, precision and recall.

torch-fidelity is imported within functions, because it imports torchvision, which takes seconds.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_lab.evaluation.metrics import Estimates, FeatureMetric, Number, Results, Rows
from ddpm_lab.reports.terminal import format_with_error
from ddpm_lab.utils.ranges import Count, check_ranges


@check_ranges
@dataclass(frozen=True)
class KID(FeatureMetric):
    """Kernel inception distance (Binkowski et al., 2018), as in torch-fidelity.

    The value is the mean over 100 subsets of `subset_size` features, the error their standard
    deviation.
    """

    numbers = (Number("kid", "KID", "lower"),)
    subset_size: Count = 1000

    def compute(self, features: Tensor, reference: Tensor, device: torch.device) -> Estimates:
        from torch_fidelity.metric_kid import (
            KEY_METRIC_KID_MEAN,
            KEY_METRIC_KID_STD,
            kid_features_to_metric,
        )

        size = min(self.subset_size, len(features), len(reference))
        kid = kid_features_to_metric(features, reference, kid_subset_size=size, verbose=False)
        return {"kid": (kid[KEY_METRIC_KID_MEAN], kid[KEY_METRIC_KID_STD])}

    def rows(self, results: Results) -> Rows:
        remark = f"standard deviation over subsets; held-out images {results['real']['kid']:.3g}"
        text = format_with_error(results["kid"], results["standard_error"]["kid"])
        return [("KID", text, remark)]


class PrecisionRecall(FeatureMetric):
    """Precision and recall, by third neighbors (Kynkaanniemi et al., 2019)."""

    numbers = (
        Number("precision", "precision", "higher", "{:.3f}"),
        Number("recall", "recall", "higher", "{:.3f}"),
    )

    def compute(self, features: Tensor, reference: Tensor, device: torch.device) -> Estimates:
        from torch_fidelity.metric_prc import calculate_precision_recall_part

        precision, recall = calculate_precision_recall_part(features.to(device), reference)
        return {"precision": (precision, None), "recall": (recall, None)}

    def rows(self, results: Results) -> Rows:
        text, others = (
            f"{one['precision']:.3f}, {one['recall']:.3f}" for one in (results, results["real"])
        )
        return [("precision, recall", text, f"held-out images {others}")]
