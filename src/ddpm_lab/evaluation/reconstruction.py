"""Reconstruction error of DDIM: data to x_T and back (Song et al., 2021, section 5.4)."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.data.datasets import Batch, select_rows, to_batch
from ddpm_lab.data.module import Data
from ddpm_lab.evaluation.metrics import Metric, Number, Results, Rows, SplitName, first_samples
from ddpm_lab.sampling.cascade import Cascade
from ddpm_lab.sampling.pipeline import SamplingPipeline, Step
from ddpm_lab.utils.errors import prefix_errors
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
    bar = tqdm(total=total, desc="encoding and decoding", unit="step", leave=False, disable=None)

    def last(trajectory: Iterator[Step]) -> Tensor:
        x = torch.empty(0)
        for _, x_t in trajectory:
            x = x_t
            bar.update()
        return x

    pairs = []
    with bar:
        for part in index:
            cond = select_rows(conditions, part)
            x0 = pipeline.codec.encode(data[part], torch.zeros_like)
            x_T = last(pipeline.encode(x0, cond))
            steps = pipeline.decode(x_T, cond, torch.zeros_like)
            pairs.append((x_T, pipeline.codec.decode(last(islice(steps, 1, None)))))
    latents, decoded = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return latents, decoded, ((decoded - data) / 2).square().mean().item()


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
        conditions = pipeline.resolve(to_batch(samples))
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
        remark = f"{samples}, {protocol['steps']} steps each way, {protocol['weights']} weights"
        return [("reconstruction, MSE", f"{results['mse']:.2g}", f"on data in [0, 1]; {remark}")]
