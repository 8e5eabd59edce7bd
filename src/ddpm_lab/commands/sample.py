"""python sample.py run=DIR"""

import logging
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torchvision.transforms.v2.functional import to_pil_image

from ddpm_lab.commands.build import at_least
from ddpm_lab.commands.output import output, quiet
from ddpm_lab.commands.runs import load
from ddpm_lab.evaluation.pictures import save_grid

LOG = logging.getLogger(__name__)


def sample(config: DictConfig) -> None:
    """`config.count` pictures of a run: a grid, an .npz and a folder of PNGs in `config.out`."""
    quiet()
    at_least(config, {"count": 1, "batch_size": 1, "seed": 0})
    system = load(config)
    labels = system.labels(config.count, list(config.label) if OmegaConf.is_list(config.label) else config.label)
    out = output(config.out)
    batches = list(system.sample(system.denoiser, config.count, labels=labels, seed=config.seed,
                                 batch_size=config.batch_size, progress=True))  # fmt: skip
    pixels = torch.cat([batch.pixels for batch in batches]).cpu()

    (out / "images").mkdir(exist_ok=True)
    save_grid(pixels[:400], out / "grid.png", columns=min(10, config.count))
    for i, picture in enumerate(pixels):
        to_pil_image(picture).save(out / "images" / f"{i:06d}.png")
    arrays: dict[str, Any] = {"images": pixels.permute(0, 2, 3, 1).numpy()} | (
        {} if labels is None else {"labels": labels.numpy()}
    )
    np.savez_compressed(out / "samples.npz", **arrays)
    LOG.info("%d pictures of %s\n  a grid      %s\n  an array    %s, %s\n  one by one  %s", config.count,
             "x".join(map(str, system.shape)), out / "grid.png", out / "samples.npz",
             " and ".join(f"{name} {array.shape} {array.dtype}" for name, array in arrays.items()),
             out / "images")  # fmt: skip
