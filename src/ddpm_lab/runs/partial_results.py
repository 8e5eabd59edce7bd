"""Finished parts of an evaluation, kept until all of it is done."""

import hashlib
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from ddpm_lab.utils import safe_load
from ddpm_lab.config.overrides import config_hash, format_override
from ddpm_lab.utils.safe_load import read_json
from ddpm_lab.utils.distributed import all_gather, is_rank_zero
from ddpm_lab.utils.atomic_io import is_locked, write_text

if TYPE_CHECKING:
    from ddpm_lab.data.module import DataModule
    from ddpm_lab.sampling.pipeline import SamplingPipeline

LOG = logging.getLogger(__name__)
FILE = "unfinished.json"


class PartialResults:
    """Results by name of the part, in `unfinished.json` of a folder. Those of another `key`, which is all that results
    depend on, are dropped. Of several processes the first reads and writes.
    """

    def __init__(self, folder: Path, key: str, command: Sequence[str]) -> None:
        overrides = [word for word in command if not word.startswith("hydra.run.dir=")]
        self.file, self.about = folder / FILE, {"key": key, "command": overrides}
        saved = read_json(self.file) if is_rank_zero() else {}
        (self.parts,) = all_gather([saved.get("parts", {}) if saved.get("key") == key else {}])[:1]
        self._save()

    def keep(self, name: str, result: dict[str, Any]) -> dict[str, Any]:
        """Return `result`, which is on the disk from now on."""
        self.parts[name] = result
        self._save()
        return result

    def end(self, kept: bool = False) -> None:
        """Remove the file, for everything is in metrics.json; one that is `kept` only if nothing is finished."""
        if is_rank_zero() and not (kept and self.parts):
            self.file.unlink(missing_ok=True)

    def _save(self) -> None:
        if is_rank_zero():
            write_text(self.file, json.dumps({**self.about, "parts": self.parts}, indent=2) + "\n")


def open_partial_results(config: DictConfig, stages: Sequence["SamplingPipeline"], data: "DataModule") -> PartialResults:
    """Of an evaluation of `stages` on `data`, in `config.out`. It depends on the configuration, on the weights and on
    the data, but not on which metrics or values are asked for.
    """
    from ddpm_lab.data.datasets import head
    from ddpm_lab.evaluation.sample_quality import weights_digest

    settings = OmegaConf.masked_copy(
        config, [str(key) for key in config if key not in ("out", "metrics", "values")]
    )
    said = [
        config_hash(settings, Path(config.out)),
        *(weights_digest(stage.denoiser) for stage in stages),
        head(data.train).digest(),
        data.test.digest(),
    ]
    found = PartialResults(
        Path(config.out), hashlib.sha256(" ".join(said).encode()).hexdigest(), sys.argv[1:]
    )
    if found.parts and is_rank_zero():
        LOG.info("going on in %s, where these are finished: %s", config.out, ", ".join(found.parts))
    return found


def resume_overrides(overrides: list[str]) -> list[str]:
    """Return the arguments of evaluate.py, completed by the newest folder of the run where the same command did not
    come to its end.
    """
    runs = [word.removeprefix("run=").strip("'\"") for word in overrides if word.startswith("run=")]
    placed = any(word.startswith(("hydra.run.dir=", "out=")) for word in overrides)
    if not runs or placed or {"-m", "--multirun"} & {*overrides}:
        return overrides
    evaluations = Path(runs[-1], "evaluations")
    if evaluations.is_symlink():
        return overrides
    folders = [
        file.parent for file in evaluations.glob(f"*/{FILE}") if not file.parent.is_symlink()
    ]
    found = [
        folder
        for folder in folders
        if read_json(folder / FILE).get("command") == overrides and not is_locked(folder)
    ]
    return [*overrides, format_override("hydra.run.dir", safe_load.reject_links_in_run(max(found)))] if found else overrides
