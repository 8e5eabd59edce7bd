"""Run directories: found, offered to Hydra, and turned back into systems."""

import difflib
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from ddpm_lab.utils import safe_load
from ddpm_lab.runs import trusted_paths, run_record
from ddpm_lab.runs.run_record import ADJUSTABLE, REPLACEABLE
from ddpm_lab.runs.saved_config import TRUSTED, load_saved_config
from ddpm_lab.runs.variance import load_variance
from ddpm_lab.utils.errors import CorruptFileError, UserError, prefix_errors

if TYPE_CHECKING:
    from ddpm_lab.sampling.codecs import Latents
    from ddpm_lab.conditioners.base import DataSpec
    from ddpm_lab.diffusion.classifier_guidance import NoisyClassifier
    from ddpm_lab.diffusion.denoiser import Denoiser
    from ddpm_lab.systems.diffusion import Diffusion

LOG = logging.getLogger(__name__)


def load_config(run: str) -> DictConfig:
    """The configuration that `run` was trained with. Raises UserError if it has none of ours."""
    file = safe_load.reject_links(run) / "config.yaml"
    if not os.path.lexists(file):
        near = [str(above) for above in file.parent.parents if (above / "config.yaml").is_file()]
        near += difflib.get_close_matches(
            run, [str(found.parent) for found in Path("runs").glob("*/*/config.yaml")]
        )
        hint = (
            f"; did you mean {near[0]}?"
            if near
            else "; it is the folder that train.py names at its end"
        )
        raise UserError(f"run={run} is no run, for it holds no config.yaml{hint}")
    saved = load_saved_config(file, TRUSTED)
    safe_load.reject_links_in_run(Path(run))
    groups = ("system", "model", "trainer", "callbacks", "logger", *REPLACEABLE, *ADJUSTABLE)
    if not all(isinstance(saved._get_node(group), DictConfig) for group in groups):
        raise UserError(f"run={run}: its config.yaml is not a configuration of ours")
    return run_record.resolve_paths(saved, run_record.read_record(run).directory)


def register_run_choices(arguments: list[str], find: Callable[[str], DictConfig] = load_config) -> None:
    """Makes the run's own choices of `REPLACEABLE` and `ADJUSTABLE` the choice `run` of these groups.

    `sample.yaml` and `evaluate.yaml` choose it, so that `sampler.steps=50` changes what the run was trained with and
    `sampler=ddim` replaces it, all in Hydra's own grammar. `find` reads the configuration of a run.
    """
    named = [argument for argument in arguments if argument.startswith("run=")]
    saved = [find(run) for run in (_named(named[-1]) if named else [])]
    for group in REPLACEABLE:
        if (
            len(
                {
                    str(one[group])
                    for one in saved
                    if f"{group}=" not in {a[: len(group) + 1] for a in arguments}
                }
            )
            > 1
        ):
            raise UserError(f"{group} differs between these runs; say which, such as {group}=NAME")
        ConfigStore.instance().store(group=group, name="run", node=saved[0][group] if saved else {})
    for group in ADJUSTABLE:
        alike = len({str(one[group]) for one in saved}) == 1
        if saved and not alike and any(argument.startswith(f"{group}.") for argument in arguments):
            raise UserError(
                f"{group} differs between these runs, so that nothing of it can be chosen for all of them; "
                "give one run at a time"
            )
        ConfigStore.instance().store(group=group, name="run", node=saved[0][group] if alike else {})


def _named(argument: str) -> list[str]:
    """The runs that run=... names, several in a sweep."""
    try:
        said = OverridesParser.create().parse_override(argument)
    except HydraException:  # which Hydra will say as well
        return [argument[4:]]
    return [*map(str, said.sweep_iterator() if said.is_sweep_override() else [said.value()])]


def expand_cascade(arguments: list[str]) -> list[str]:
    """`arguments` with what `cascade=[...]` says of its last stage as arguments of their own: `run=` and its words."""
    given = [argument for argument in arguments if argument.startswith("cascade=")]
    if not given or given[-1] == "cascade=null":
        return arguments
    if any(argument.startswith("run=") for argument in arguments):
        raise UserError(f"run= and {given[-1]} both say what draws; give one of them")
    try:
        override = OverridesParser.create().parse_override(given[-1])
        stages: Any = None if override.is_sweep_override() else override.value()
    except HydraException:
        stages = None
    if not isinstance(stages, list) or not stages:
        raise UserError(
            f"{given[-1]} must be a list of runs, from the smallest images on; try cascade=[DIR,DIR2]"
        )
    # Before all that is typed beside, which so holds, and behind options of Hydra's own, such as --cfg job.
    first = next(
        i
        for i, argument in enumerate(arguments)
        if "=" in argument and not argument.startswith("-")
    )
    return [*arguments[:first], *_words(stages[-1]), *arguments[first:]]


def _words(stage: Any) -> list[str]:
    """What an entry of `cascade` says, `run=` first. Raises UserError."""
    try:
        run, *overrides = shlex.split(str(stage))
    except ValueError as error:
        raise UserError(
            f"cascade: a stage must be a run, and behind it its words; {stage!r} is not; "
            "try cascade=['DIR sampler.steps=50',DIR2]"
        ) from error
    groups = (*REPLACEABLE, *ADJUSTABLE)
    if wrong := [word for word in overrides if re.split("[.=]", word)[0] not in (*groups, "weights")]:
        raise UserError(
            f"cascade: {wrong[0]} cannot be said of one stage, of which can be chosen: weights, "
            f"{', '.join(groups)}"
        )
    return [f"run={run}", *overrides]


def load_earlier_stages(settings: DictConfig) -> list["Diffusion"]:
    """The stages of `settings.cascade` before the last: each is a run, behind which stands what it does otherwise than
    it was trained to do, in the words of sample.py.
    """
    found = []
    for stage in (settings.cascade or [])[:-1]:
        overrides = _words(stage)
        try:
            register_run_choices(overrides)
            chosen = compose("sample", overrides=overrides)
            found.append(load_system(chosen))
        except (HydraException, UserError) as error:
            kind = type(error) if isinstance(error, UserError) else UserError
            raise kind(f"cascade, stage {stage}: {' '.join(str(error).split())[:300]}") from error
        found[-1].denoiser.origin = f"{chosen.run} ({chosen.weights})"
    register_run_choices(sys.argv[1:])  # for what a sweep composes next
    return found


def load_system(settings: DictConfig) -> "Diffusion":
    """The system of `settings.run` with the groups in `settings` in place of its own.

    Its denoiser has the weights that `settings.weights` names, "ema" or "raw".
    """
    import torch

    saved = load_config(settings.run)
    for group in {*REPLACEABLE} - {"variance"} & {*settings}:
        saved[group] = settings[group]
    for group in ADJUSTABLE:
        run_record.apply_adjustable(saved, settings, group)
    system, content, file = _restored(settings.run, saved, "Diffusion")
    if settings.weights == "ema":
        if "EMA" not in content["callbacks"]:
            raise UserError(
                f"weights=ema are not in run={settings.run}, which kept no average; try weights=raw"
            )
        try:
            system.denoiser.load_state_dict(content["callbacks"]["EMA"]["average"])
        except (RuntimeError, TypeError, KeyError, AttributeError) as error:
            raise CorruptFileError(
                f"run={settings.run}: {file.name} holds an average of other weights"
            ) from error
    elif settings.weights != "raw":
        raise UserError(f"weights={settings.weights} is not one of ema, raw")
    elif content.get("weights") == "ema":
        raise UserError(
            f"weights=raw are not in run={settings.run}, which was shared without them; try weights=ema"
        )
    system.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    if "variance" in settings and settings.variance != saved.variance:
        system.denoiser.variance = load_variance(settings, system, saved, file)
    return system


def make_deterministic(settings: DictConfig) -> None:
    """Set `sampler.eta` to 0 unless it was typed: x_T decides an image only where the chain is deterministic."""
    eta = settings.sampler.get("eta")
    if eta and not settings.sampler.get("sigma_hat") and eta == load_config(settings.run).sampler.get("eta"):
        LOG.info(
            "sampler.eta=0 here, not the run's %g: x_T decides an image only without noise on the way",
            eta,
        )
        settings.sampler.eta = 0.0


def _restored(run: str, saved: DictConfig, kind: str) -> tuple[Any, dict[str, Any], Path]:
    """The system that `saved` describes with the weights of the newest checkpoint, what else that holds, and the file.
    Raises UserError unless the system is a `kind`.
    """
    from ddpm_lab.config.instantiate import build
    from ddpm_lab.runs.weights import read_weights

    if (own := saved.system._target_.rpartition(".")[2]) != kind:
        names = {
            "Diffusion": "a diffusion model",
            "ClassifierSystem": "a classifier",
            "AutoencoderSystem": "an autoencoder",
        }
        raise UserError(f"run={run} is not {names[kind]} but {names.get(own, own)}")
    content, file = read_weights(run)
    trusted_paths.require_named(saved, f"run={run}", trusted_paths.MODELS)
    prefix = {
        "Diffusion": "denoiser.network.",
        "ClassifierSystem": "classifier.network.",
        "AutoencoderSystem": "autoencoder.",
    }[kind]
    network = safe_load.check_shapes(build(saved, "model"), content["state_dict"], prefix)
    system = build(saved, "system", network=network, **content["hyper_parameters"])
    try:
        with prefix_errors("codec"):
            system.load_state_dict(content["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"run={run}: the weights in {file.name} do not fit the model that config.yaml describes; "
            "another version of ddpm-lab may have written them"
        ) from error
    return system, content, file


def load_classifier(run: str) -> "NoisyClassifier":
    """The classifier that `python train.py system=classifier` trained, for classifier guidance."""
    system, _, _ = _restored(run, load_config(run), "ClassifierSystem")
    found: NoisyClassifier = system.classifier.requires_grad_(False)
    found.origin = run
    return found


def load_latents(spec: "DataSpec", run: str) -> "Latents":
    """Those of the autoencoder that `python train.py system=autoencoder` trained, for codec=autoencoder."""
    from ddpm_lab.sampling.codecs import Latents

    try:
        saved = load_config(run)
        saved.system.perceptual = 0  # is for training, and would download VGG
        system, _, _ = _restored(run, saved, "AutoencoderSystem")
    except UserError as error:
        told = str(error) if str(error).startswith("run=") else f"run={run}: {error}"
        raise type(error)(f"codec.{told}; if it was moved, add codec.run=DIR") from error
    return Latents(spec, system.autoencoder, run)


def load_denoiser(run: str, weights: str = "ema") -> "Denoiser":
    """The denoiser of another run, for guidances that need one."""
    found = load_system(OmegaConf.create({"run": run, "weights": weights})).denoiser.requires_grad_(False)
    found.origin = f"{run} ({weights})"
    return found
