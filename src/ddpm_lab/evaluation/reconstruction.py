"""Reconstruction error of DDIM: data to x_T and back (Song et al., 2021, section 5.4)."""

from dataclasses import dataclass
from itertools import islice
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.data.datasets import Batch, select_rows
from ddpm_lab.data.module import Data
from ddpm_lab.evaluation.metrics import Metric, Number, Results, Rows, SplitName, first_samples
from ddpm_lab.sampling.cascade import Cascade
from ddpm_lab.sampling.pipeline import SamplingPipeline
from ddpm_lab.utils.errors import pluralize, prefix_errors
from ddpm_lab.utils.ranges import Count, check_ranges


@torch.inference_mode()
def reconstruct(
    pipeline: SamplingPipeline, data: Tensor, conditions: Batch, batch_size: int
) -> tuple[Tensor, Tensor, float]:
    """Encode and decode `data` (N, *shape) in [-1, 1], with resolved `conditions`.

    Returns x_T (N, *codec.shape), the decoded data (N, *shape), and the mean squared error per
    dimension of data in [0, 1]. Raises ValueError, beginning with an option of the sampler, if the
    sampler has no deterministic inverse.
    """
    index = torch.arange(len(data), device=data.device).split(batch_size)
    total = 2 * pipeline.num_steps * len(index)
    parts = []
    with tqdm(
        total=total, desc="encoding and decoding", unit="step", leave=False, disable=None
    ) as bar:
        x_T = pipeline.encode_data(data, conditions, batch_size=batch_size, bar=bar)
        for part in index:
            x = x_T[part]
            steps = pipeline.decode(x, select_rows(conditions, part), torch.zeros_like)
            for _, x_t in islice(steps, 1, None):
                x = x_t
                bar.update()
            parts.append(pipeline.codec.decode(x))
    decoded = torch.cat(parts)
    return x_T, decoded, ((decoded - data) / 2).square().mean().item()


@check_ranges
@dataclass(frozen=True)
class Reconstruction(Metric):
    """Error of the first `count` samples of a split (None: all), encoded and decoded."""

    numbers = (Number("reconstruction.mse", "mean squared error", "lower"),)
    split: SplitName = "test"
    count: Annotated[int, Ge(2)] | None = None
    batch_size: Count = 250

    def compute(self, cascade: Cascade, data: Data, weights: str) -> Results:
        pipeline = cascade.stages[-1]
        samples = first_samples(data, self.split, self.count, pipeline.device)
        conditions = pipeline.data_conditions(samples)
        with prefix_errors("sampler"):
            _, _, mse = reconstruct(pipeline, samples.x0, conditions, self.batch_size)
        protocol = {
            **pipeline.protocol(),
            "weights": weights,
            "split": self.split,
            "count": samples.size,
            "labels": "none" if pipeline.classes is None else "the samples'",
        }
        return {"mse": mse, "protocol": protocol}

    def rows(self, results: Results) -> Rows:
        protocol = results["protocol"]
        samples = f"{protocol['count']} of {protocol['split']} encoded and decoded"
        steps = pluralize(protocol["steps"], "step")
        remark = f"{samples}, {steps} each way, {protocol['weights']} weights"
        return [("reconstruction, MSE", f"{results['mse']:.2g}", f"on data in [0, 1]; {remark}")]
