"""python evaluate.py run=DIR"""

import json
import logging

from omegaconf import DictConfig

from ddpm_lab.commands.build import at_least, build
from ddpm_lab.commands.output import output, quality_rows, quiet, table
from ddpm_lab.commands.runs import config as saved_config
from ddpm_lab.commands.runs import load
from ddpm_lab.errors import UserError, naming
from ddpm_lab.evaluation.quality import assess

LOG = logging.getLogger(__name__)


def evaluate(config: DictConfig) -> None:
    """FID, and accuracy where labels are known, of samples of a run, in `metrics.json` in `config.out`."""
    quiet()
    if config.split not in ("train", "test"):
        raise UserError(f"split={config.split} is not one of train, test")
    at_least(config, {"count": 2, "batch_size": 1, "seed": 0})
    with naming("extractor"):
        extractor = build(config, "extractor")()
    system = load(config)
    extractor.check(system.shape)
    data = build(saved_config(config.run), "data")
    out = output(config.out)
    result = assess(system, system.denoiser, data, extractor, weights=config.weights,
                    split=config.split, count=config.count, seed=config.seed, batch_size=config.batch_size)  # fmt: skip
    (out / "metrics.json").write_text(json.dumps({"run": str(config.run), **result}, indent=2) + "\n")
    LOG.info("%s\n  saved in %s", table(quality_rows(result)), out / "metrics.json")
