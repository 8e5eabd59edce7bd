"""How well DDIM's encoding of data can be undone (Song et al., 2021, section 5.4)."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.data.datasets import Batch, select_rows, to_batch
from ddpm_lab.data.module import DataModule
from ddpm_lab.sampling.pipeline import SamplingPipeline


@torch.inference_mode()
def reconstruct(
    pipeline: SamplingPipeline, data: Tensor, conditions: Batch, batch_size: int
) -> tuple[Tensor, Tensor, float]:
    """x_T (N, *codec.shape) of `data` (N, *shape) in [-1, 1], what is decoded from it, (N, *shape), and the mean square
    error per dimension, of data in [0, 1]. Every sample is told what is `asked` (see `Diffusion.settle`).

    Raises ValueError, which begins with an option of the sampler, where that cannot be run backwards.
    """
    index = torch.arange(len(data), device=data.device).split(batch_size)
    steps = len(pipeline.sampler.timesteps(pipeline.process.steps)) - 1
    ends = []
    with tqdm(
        total=2 * steps * len(index),
        desc="encoding and decoding",
        unit="step",
        leave=False,
        disable=None,
    ) as bar:

        def end(trajectory: Iterator[tuple[int, Tensor]]) -> Tensor:
            x = torch.empty(0)
            for _, x in trajectory:  # noqa: B007 (the last is the end)
                bar.update()
            return x

        for some in index:
            told = select_rows(conditions, some)
            top = end(pipeline.encode(pipeline.codec.encode(data[some], torch.zeros_like), told))
            down = pipeline.decode(top, told, torch.zeros_like)
            ends.append(
                (top, pipeline.codec.decode(end(islice(down, 1, None))))
            )  # the first is `top` itself
    x_T, decoded = (torch.cat(parts) for parts in zip(*ends, strict=True))
    return x_T, decoded, ((decoded - data) / 2).square().mean().item()


def evaluate_reconstruction(
    pipeline: SamplingPipeline,
    data: DataModule,
    *,
    weights: str,
    split: str,
    count: int | None,
    batch_size: int,
) -> dict[str, Any]:
    """The error of a round trip of the first `count` samples of a split (None: all), given their labels where the model
    or its guidance hears any (Song et al., 2021, table 2, without guidance).
    """
    given = {"train": data.train, "test": data.test}[split].select(slice(count)).to(pipeline.device)
    _, _, mse = reconstruct(pipeline, given.x0, pipeline.resolve(to_batch(given)), batch_size)
    labels = "none" if pipeline.classes is None else "the samples'"
    protocol = {
        **pipeline.protocol(),
        "weights": weights,
        "split": split,
        "count": given.size,
        "labels": labels,
    }
    return {"mse": mse, "protocol": protocol}
