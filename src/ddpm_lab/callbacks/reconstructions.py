"""Reconstructions of an autoencoder: image grids and metrics."""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from tqdm import tqdm

from ddpm_lab.callbacks.lightning_internals import datamodule
from ddpm_lab.callbacks.periodic import Periodic, image_path, log_image, log_metrics
from ddpm_lab.data.datasets import Images, to_uint8
from ddpm_lab.data.module import Data
from ddpm_lab.evaluation.extractors import Extractor
from ddpm_lab.evaluation.fid import FIDEvaluator, indexed_batches
from ddpm_lab.reports.grids import save_grid
from ddpm_lab.systems.autoencoder_system import AutoencoderSystem
from ddpm_lab.utils.distributed import all_gather, is_rank_zero, shard
from ddpm_lab.utils.errors import pluralize
from ddpm_lab.utils.ranges import Count, check_ranges

LOG = logging.getLogger(__name__)
KEYS = ("rfid", "psnr", "ssim", "codes_used")
WINDOW = 5
"""Half the width of SSIM's window, in pixels"""


@check_ranges
class Reconstructions(Periodic):
    """Saves `rows` rows of held-out images above their reconstructions, every `every` steps.

    At the end of training it also computes metrics of all held-out images: PSNR, SSIM, rFID
    (between images and reconstructions) and the share of the codebook in use.
    """

    supports = ("an autoencoder",)

    def __init__(
        self,
        extractor: Callable[[], Extractor],
        every: Count = 200,
        rows: Count = 4,
        columns: Count = 20,
    ) -> None:
        self.load_extractor, self.every, self.rows, self.columns = extractor, every, rows, columns
        self.extractor: Extractor | None = None
        self.result: dict[str, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: AutoencoderSystem, stage: str) -> None:
        try:
            extractor = self.load_extractor()
            extractor.check(pl_module.autoencoder.shape)
            self.extractor = extractor.ready(datamodule(trainer).train)
        except ValueError as error:
            LOG.info("rFID will not be measured: %s", error)

    def on_train_end(self, trainer: L.Trainer, pl_module: AutoencoderSystem) -> None:
        self.run(trainer, pl_module)
        self.result = self._measure(datamodule(trainer), pl_module)
        log_metrics(
            trainer, {f"eval/{key}": self.result[key] for key in KEYS if key in self.result}
        )

    @rank_zero_only
    def run(self, trainer: L.Trainer, system: AutoencoderSystem) -> None:
        x = datamodule(trainer).test.select(slice(self.rows * self.columns)).x0.to(system.device)
        columns = min(self.columns, len(x))
        x = x[: len(x) // columns * columns]
        pairs = zip(x.split(columns), system.reconstruct(x)[0].split(columns), strict=True)
        pixels = to_uint8(torch.cat([half for pair in pairs for half in pair]))
        file = image_path(trainer, f"reconstructions-{trainer.global_step:06d}")
        steps = pluralize(trainer.global_step, "step")
        caption = f"Held-out images above their reconstructions, after {steps}."
        log_image(trainer, "reconstructions", save_grid(pixels, file, columns, caption))

    def _measure(self, data: Data, system: AutoencoderSystem) -> dict[str, Any]:
        values: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "codes": []}
        batches = _reconstruct(data, system, values)
        result: dict[str, Any] = {}
        errors: dict[str, float | None] = {}
        protocol = {"split": "test", "count": data.test.size, "data": data.name, "weights": "raw"}
        if self.extractor is None:
            deque(batches, maxlen=0)
        else:
            evaluator = FIDEvaluator(self.extractor, data.test, device=system.device)
            quality = evaluator(batches, data.test.size)
            result["rfid"], errors["rfid"] = quality["fid"], quality["standard_error"].get("fid")
            protocol |= {
                "data_sha256": evaluator.data_sha256,
                "extractor": self.extractor.name,
                "extractor_sha256": self.extractor.sha256,
                "resize": self.extractor.resize,
            }
        for name in ("psnr", "ssim"):
            if parts := all_gather(values[name]):  # a process may have no images
                each = torch.cat(parts).double()
                result[name] = each.mean().item()
                errors[name] = each.std().item() / math.sqrt(len(each))
        if (size := system.autoencoder.bottleneck.codes) is not None:
            codes = torch.cat(all_gather(values["codes"]))
            result["codes_used"] = codes.unique().numel() / size
        return {**result, "standard_error": errors, "protocol": protocol}


def _reconstruct(
    data: Data, system: AutoencoderSystem, values: dict[str, list[Tensor]]
) -> Iterator[tuple[Tensor, Images]]:
    """Yield reconstructions, and append their "psnr", "ssim" and used "codes" to `values`."""
    batches = tqdm(
        indexed_batches(data.test, 50),
        "reconstructions",
        len(shard(range(0, data.test.size, 50))),
        leave=False,
        disable=None if is_rank_zero() else True,
    )
    for indices, images in batches:
        x = images.x0.to(system.device)
        decoded, used = system.reconstruct(x)
        psnr = peak_signal_noise_ratio(decoded, x, (-1.0, 1.0), reduction="none", dim=(1, 2, 3))
        values["psnr"].append(psnr.cpu())
        if min(x.shape[2:]) > WINDOW:
            ssim = structural_similarity_index_measure(
                decoded, x, data_range=(-1.0, 1.0), reduction="none"
            )
            values["ssim"].append(torch.as_tensor(ssim).cpu())
        if used is not None:
            values["codes"].append(used.unique().cpu())
        yield indices, Images(to_uint8(decoded), None)
