"""Reconstruction from DDIM's encoding of data (Song et al., 2021, section 5.4)."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.data.datasets import Batch, select_rows, to_batch
from ddpm_lab.data.module import DataModule
from ddpm_lab.diffusion.denoiser import Denoiser
from ddpm_lab.systems.diffusion import Diffusion


@torch.inference_mode()
def reconstruct(
    system: Diffusion, denoiser: Denoiser, data: Tensor, conditions: Batch, batch_size: int
) -> tuple[Tensor, Tensor, float]:
    """Encode and decode `data` (N, *shape) in [-1, 1] under `conditions`.

    Return x_T (N, *codec.shape), the reconstruction (N, *shape), and the mean squared error per
    dimension of data scaled to [0, 1].

    Raises ValueError, which begins with a sampler option, if the sampler is not invertible.
    """
    index = torch.arange(len(data), device=data.device).split(batch_size)
    steps = len(system.sampler.timesteps(denoiser.process.steps)) - 1
    pairs = []
    with tqdm(
        total=2 * steps * len(index),
        desc="encoding and decoding",
        unit="step",
        leave=False,
        disable=None,
    ) as bar:

        def last(trajectory: Iterator[tuple[int, Tensor]]) -> Tensor:
            states = []
            for _, x in trajectory:
                states = [x]
                bar.update()
            return states[0]

        for some in index:
            rows = select_rows(conditions, some)
            latents = system.codec.encode(data[some], torch.zeros_like)
            x_T = last(system.encode(denoiser, latents, rows))
            states = system.decode(denoiser, x_T, rows, torch.zeros_like)
            states = islice(states, 1, None)  # the first is `x_T` itself
            pairs.append((x_T, system.codec.decode(last(states))))
    x_T, decoded = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return x_T, decoded, ((decoded - data) / 2).square().mean().item()


def evaluate_reconstruction(
    system: Diffusion,
    denoiser: Denoiser,
    data: DataModule,
    *,
    weights: str,
    split: str,
    count: int | None,
    batch_size: int,
) -> dict[str, Any]:
    """Return the reconstruction MSE of the first `count` samples of a split (None: all).

    Samples are conditioned on their labels if the model or its guidance is conditional. Without
    guidance, this is table 2 of Song et al. (2021).
    """
    samples = {"train": data.train, "test": data.test}[split].select(slice(count)).to(system.device)
    _, _, mse = reconstruct(
        system, denoiser, samples.x0, system.resolve(to_batch(samples)), batch_size
    )
    labels = "none" if system.classes is None else "the samples'"
    protocol = {
        **system.protocol(),
        "weights": weights,
        "split": split,
        "count": samples.size,
        "labels": labels,
    }
    return {"mse": mse, "protocol": protocol}
