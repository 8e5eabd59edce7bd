"""Pictures beside their reconstructions, and how close these are."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from ddpm_lab.callbacks.log import datamodule, log, log_picture
from ddpm_lab.data.splits import Images, batch, to_bytes
from ddpm_lab.evaluation.extractors import Extractor
from ddpm_lab.evaluation.judge import Judge, numbered
from ddpm_lab.evaluation.pictures import save_grid
from ddpm_lab.systems.autoencoder import AutoencoderSystem

LOG = logging.getLogger(__name__)
WINDOW = 5
"""Half the width of SSIM's, in pixels"""


class Reconstructions(L.Callback):
    """Every `every` steps and at the end, `rows` rows of held-out pictures, each above its reconstruction; at the end,
    of all of them: PSNR, SSIM, rFID (of reconstructions, to the pictures themselves) and the share of a codebook that
    they use.
    """

    def __init__(self, extractor: Callable[[], Extractor], every: int = 200, rows: int = 4, columns: int = 20) -> None:
        for name, value in {"every": every, "rows": rows, "columns": columns}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1 (got {value})")
        self.find, self.every, self.rows, self.columns = extractor, every, rows, columns
        self.extractor: Extractor | None = None
        self.result: dict[str, Any] = {}
        self._drawn = 0

    def setup(self, trainer: L.Trainer, pl_module: AutoencoderSystem, stage: str) -> None:
        try:
            extractor = self.find()
            extractor.check(pl_module.autoencoder.shape)
            self.extractor = extractor
        except ValueError as error:
            LOG.info("rFID will not be measured: %s", error)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: AutoencoderSystem, *args: Any) -> None:
        step = trainer.global_step  # the same for several batches where gradients are accumulated
        if step % self.every == 0 and step < trainer.max_steps and step != self._drawn:
            self._drawn = step
            self._draw(trainer, pl_module)

    @rank_zero_only
    def on_train_end(self, trainer: L.Trainer, pl_module: AutoencoderSystem) -> None:
        self._draw(trainer, pl_module)
        test = datamodule(trainer).test.to(pl_module.device)
        assert isinstance(test, Images)  # the system refuses points
        self.result = self._measure(test, pl_module)
        log(trainer, {f"quality/{name}": value for name, value in self.result.items() if name != "standard_error"})

    @rank_zero_only
    def _draw(self, trainer: L.Trainer, system: AutoencoderSystem) -> None:
        x = datamodule(trainer).test.at(slice(self.rows * self.columns)).x0.to(system.device)
        columns = min(self.columns, len(x))
        x = x[: len(x) // columns * columns]
        pairs = zip(x.split(columns), system.reconstruct(x)[0].split(columns), strict=True)
        file = Path(trainer.default_root_dir) / "pictures" / f"reconstructions-{trainer.global_step:06d}.png"
        pixels = to_bytes(torch.cat([half for pair in pairs for half in pair]))
        log_picture(trainer, "reconstructions", save_grid(pixels, file, columns))

    def _measure(self, test: Images, system: AutoencoderSystem) -> dict[str, Any]:
        parts = [system.reconstruct(batch(test.at(some))["x0"])
                 for some in torch.arange(test.size).split(500)]  # fmt: skip
        found = torch.cat([part[0] for part in parts])
        result: dict[str, Any] = {"psnr": float(peak_signal_noise_ratio(found, test.x0, (-1.0, 1.0), dim=(1, 2, 3)))}
        if min(found.shape[2:]) > WINDOW:
            ssim = structural_similarity_index_measure(found, test.x0, data_range=(-1.0, 1.0))
            assert isinstance(ssim, Tensor)  # with the picture of it, only if asked
            result["ssim"] = ssim.item()
        if self.extractor is not None:
            judge = Judge(self.extractor, test, device=system.device)
            made = Images(torch.cat([to_bytes(part[0]) for part in parts]), None)
            rfid = judge(numbered(made), made.size)
            result |= {"rfid": rfid["fid"], "standard_error": {"rfid": rfid["standard_error"].get("fid")}}
        if system.autoencoder.bottleneck.codes is not None:
            codes = [part[1].flatten() for part in parts if part[1] is not None]
            result["codes_used"] = torch.cat(codes).unique().numel() / system.autoencoder.bottleneck.codes
        return result
