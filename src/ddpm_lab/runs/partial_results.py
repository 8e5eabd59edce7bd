"""Finished parts of an evaluation, which survive an interruption."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from ddpm_lab.config.overrides import config_hash, format_override
from ddpm_lab.utils.atomic_io import is_locked, write_json
from ddpm_lab.utils.distributed import all_gather, is_rank_zero
from ddpm_lab.utils.safe_load import read_json, reject_links_in_run, sha256_of_text

if TYPE_CHECKING:
    from ddpm_lab.data.module import Data
    from ddpm_lab.sampling.pipeline import SamplingPipeline

LOG = logging.getLogger(__name__)
FILE = "unfinished.json"


class PartialResults:
    """Results by part name, in `unfinished.json` of a folder. `key` identifies everything that they
    depend on. Only rank zero reads and writes the file.
    """

    def __init__(self, folder: Path, key: str, command: Sequence[str]) -> None:
        overrides = [word for word in command if not word.startswith("hydra.run.dir=")]
        self.file, self.header = folder / FILE, {"key": key, "command": overrides}
        saved = read_json(self.file) if is_rank_zero() else {}
        (self.parts,) = all_gather([saved.get("parts", {}) if saved.get("key") == key else {}])[:1]
        self._save()

    def keep(self, name: str, result: dict[str, Any]) -> dict[str, Any]:
        """Save `result` as that of the part `name`, and return it."""
        self.parts[name] = result
        self._save()
        return result

    def close(self, keep_results: bool = False) -> None:
        """Remove the file; with `keep_results`, only if it has no results."""
        if is_rank_zero() and not (keep_results and self.parts):
            self.file.unlink(missing_ok=True)

    def _save(self) -> None:
        if is_rank_zero():
            write_json(self.file, {**self.header, "parts": self.parts})


def open_partial_results(
    config: DictConfig, stages: Sequence["SamplingPipeline"], data: "Data"
) -> PartialResults:
    """Return the results of this configuration so far, for any metrics, weights and data."""
    from ddpm_lab.data.datasets import head
    from ddpm_lab.evaluation.sample_quality import weights_digest

    keys = [str(key) for key in config if key not in ("out", "metrics", "values")]
    digests = [
        config_hash(OmegaConf.masked_copy(config, keys), Path(config.out)),
        *(weights_digest(stage.denoiser) for stage in stages),
        head(data.train).digest(),
        data.test.digest(),
    ]
    results = PartialResults(Path(config.out), sha256_of_text(" ".join(digests)), sys.argv[1:])
    if results.parts and is_rank_zero():
        LOG.info("resuming in %s; finished: %s", config.out, ", ".join(results.parts))
    return results


def resume_overrides(overrides: list[str]) -> list[str]:
    """Return the arguments of evaluate.py with the newest folder of the same unfinished command.

    They are unchanged if there is none, or if another process uses it.
    """
    runs = [word.removeprefix("run=").strip("'\"") for word in overrides if word.startswith("run=")]
    several_or_placed = ("-m", "--multirun", "hydra.run.dir=", "out=")
    if not runs or any(word.startswith(several_or_placed) for word in overrides):
        return overrides
    evaluations = Path(runs[-1], "evaluations")
    folders = [
        file.parent
        for file in ([] if evaluations.is_symlink() else evaluations.glob(f"*/{FILE}"))
        if not file.parent.is_symlink()
        and read_json(file).get("command") == overrides
        and not is_locked(file.parent)
    ]
    if not folders:
        return overrides
    return [*overrides, format_override("hydra.run.dir", reject_links_in_run(max(folders)))]
