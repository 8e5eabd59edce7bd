"""python evaluate.py run=DIR"""

import json
import logging
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ddpm_lab.commands import datasets, records
from ddpm_lab.commands.build import at_least, build
from ddpm_lab.commands.output import density_rows, nll_rows, output, quality_rows, quiet, round_trip_rows, table
from ddpm_lab.commands.runs import before, load
from ddpm_lab.commands.sweep import sweep
from ddpm_lab.diffusion.variances import Analytic
from ddpm_lab.errors import UserError, naming
from ddpm_lab.evaluation.density import assess_density
from ddpm_lab.evaluation.likelihood import assess_likelihood
from ddpm_lab.evaluation.pictures import save_bound
from ddpm_lab.evaluation.quality import assess
from ddpm_lab.evaluation.round_trip import assess_round_trip
from ddpm_lab.ranks import first, join
from ddpm_lab.systems.cascade import Cascade

LOG = logging.getLogger(__name__)
METRICS = ("fid", "kid", "prc", "nll", "density", "round_trip")
THOROUGH = ("kid", "prc")


def evaluate(config: DictConfig) -> None:
    """What `config.metrics` names, of samples or weights of a run, in `metrics.json` in `config.out`; with
    `config.against`, how the quality of samples depends on one choice.
    """
    quiet()
    _check(config)
    join()
    stages = [*before(config), load(config)]
    Cascade(stages)
    system = stages.pop()
    metrics = config.metrics or (["density"] if system.bin_width is None else ["fid"])
    judged = config.against is not None or not {"fid", *THOROUGH}.isdisjoint(metrics)
    if judged:
        if system.bin_width is None:
            raise UserError("metrics=[fid] judges pictures, and this run drew points; try metrics=[density]")
        with naming("extractor"):
            extractor = build(config, "extractor")()
        extractor.check(system.shape)
    if config.against is not None:
        sweep(config, stages, system, extractor)
        return
    data = datasets.data(config)
    result: dict[str, Any] = {"run": str(config.run), "run_id": records.read(config.run).id}
    rows = []
    common = {"weights": config.weights}
    if "round_trip" in metrics:
        with naming("sampler"):
            result["round_trip"] = assess_round_trip(system, system.denoiser, data, **common, **config.round_trip,
                                                     batch_size=config.batch_size)  # fmt: skip
        rows += round_trip_rows(result["round_trip"])
    if "nll" in metrics:
        bounded = (config.nll.clip, None) == (system.sampler.clip, system.sampler.dynamic_threshold)
        if isinstance(system.denoiser.variance, Analytic) and not bounded:
            raise UserError(f"nll.clip={config.nll.clip} bounds guesses in another way than sampler.clip="
                            f"{system.sampler.clip}, for which variance=analytic was estimated; make them equal, with "
                            "sampler.dynamic_threshold=null")  # fmt: skip
        options: dict[str, Any] = OmegaConf.to_container(config.nll)  # type: ignore[assignment]
        with naming("nll"):
            result["nll"] = assess_likelihood(system, system.denoiser, data, **common, **options, seed=config.seed,
                                              batch_size=config.batch_size)  # fmt: skip
        rows += nll_rows(result["nll"])
    if "density" in metrics:
        result["density"] = assess_density(system, system.denoiser, data, **common, **config.density)
        rows += density_rows(result["density"])
    if judged:
        result |= next(assess(system, system.denoiser, data, extractor, **common, before=stages,
                              thorough={*THOROUGH} & {*metrics}, split=config.split, count=config.count,
                              seed=config.seed, batch_size=config.batch_size))  # fmt: skip
        rows += quality_rows(result)
    if not first():
        return
    out = output(config.out)
    (out / "metrics.json").write_text(json.dumps(result, indent=2) + "\n")
    saved = [out / "metrics.json"]
    if "nll" in metrics:
        saved.append(save_bound(result["nll"]["terms"], out / "bound.png"))
    LOG.info("%s\n  saved in %s", table(rows), ", ".join(map(str, saved)))


def _check(config: DictConfig) -> None:
    """What can be seen before anything is loaded."""
    metrics = config.metrics
    if metrics is not None and (not OmegaConf.is_list(metrics) or not metrics or not {*metrics} <= {*METRICS}):
        raise UserError(f"metrics={metrics} must be a list of {', '.join(METRICS)}; try metrics=[nll]")
    if config.against is not None and metrics is not None:
        raise UserError(f"metrics={metrics} cannot be chosen with against={config.against}, which measures FID, "
                        "precision and recall; try metrics=null")  # fmt: skip
    if config.cascade is not None and not {"fid", *THOROUGH} >= {*(metrics or [])}:
        raise UserError(f"metrics={metrics} looks at one model, and cascade={config.cascade} has several; try "
                        "metrics=[fid], or run=DIR")  # fmt: skip
    if config.against is None and config["values"] is not None:
        raise UserError(f"values={config['values']} are values of nothing; try against=guidance.w")
    for key in ("split", "nll.split", "density.split", "round_trip.split"):
        if (split := OmegaConf.select(config, key)) not in ("train", "test"):
            raise UserError(f"{key}={split} is not one of train, test")
    counts = [key for key in ("nll.count", "round_trip.count") if OmegaConf.select(config, key) is not None]
    thorough = config.against is not None or not {*THOROUGH}.isdisjoint(metrics or [])
    at_least(
        config,
        {"count": 4 if thorough else 2, "batch_size": 1, "seed": 0, "density.count": 2} | dict.fromkeys(counts, 2),
    )
    clip = config.nll.clip
    if clip is not None and not (isinstance(clip, int | float) and clip > 0):
        raise UserError(f"nll.clip={clip} must be above 0, or null")
