"""python train.py ablation=NAME"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ddpm_lab.ablations.spec import Ablation, Tier, chosen
from ddpm_lab.config import messages
from ddpm_lab.config.overrides import CONFIGS, fingerprint, quoted
from ddpm_lab.runs import load
from ddpm_lab.sweeps.job import Cell, work
from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.shell import program

EXACT = ("schedule", "variance", "sampler", "guidance", "nll", "conditional")
"""What a cell says of these holds in the analytic tier as well."""


class Place(NamedTuple):
    """Where a number stands: a row, a column, and the seed it is for."""

    row: str
    column: str
    seed: int


class Plan:
    """The cells of an ablation in a tier. Everything is composed, so that a slip is told before anything runs."""

    def __init__(self, name: str, ablation: Ablation, tier: Tier, settings: DictConfig) -> None:
        self.name, self.ablation, self.tier, self.root = name, ablation, tier, Path(settings.cells)
        self.stage = ablation.tiers[tier]
        self.extra, self.asked = [*settings.words], [*settings.evaluate]
        self.command = typed("train", name, tier, settings)
        self.cells: dict[Path, Cell] = {}
        self.known: dict[tuple[str, ...], Cell] = {}
        self.configs: dict[str, DictConfig] = {}
        self.places: dict[Place, Cell] = {}
        self.trained: dict[str, Cell] = {}
        """By row, that of the first column and seed"""
        if self.stage.absent:
            return
        if any(word.startswith("seed=") for word in self.extra):
            raise UserError(f"seed= is said by {name} itself, whose seeds are {self.stage.seeds}")
        for row, column, seed in self._runnable():
            self.places[Place(row, column, seed)] = self._place(row, column, seed)

    def metric(self, column: str) -> str:
        """In this tier, the keys of metrics.json joined by dots."""
        return self.stage.metrics.get(self.published(column), self.published(column))

    def published(self, column: str) -> str:
        """The same, in the paper."""
        return self.ablation.columns[column].metric or self.ablation.metric

    def here(self, words: list[str]) -> list[str]:
        """The words of the paper as this tier says them."""
        said = [self.stage.instead.get(word, word) for word in words]
        return [word for one in said for word in ([one] if isinstance(one, str) else one)]

    def _runnable(self) -> Iterator[Place]:
        for row, spec in self.ablation.rows.items():
            for column in self.ablation.columns if self.tier in spec.tiers else ():
                for seed in self.stage.seeds:
                    yield Place(row, column, seed)

    def _place(self, row: str, column: str, seed: int) -> Cell:
        parts = (self.ablation.rows[row], self.ablation.columns[column])
        name = self._named(f"{row}, {column}", seed)
        train, evaluate, exact = (
            self.here([word for part in parts for word in getattr(part, verb)])
            for verb in ("train", "evaluate", "exact")
        )
        if self.tier == "analytic":
            common = [
                word
                for word in (*train, *evaluate)
                if re.split("[.=]", word)[0] in EXACT and "{" not in word
            ]
            return self._cell(
                name,
                "evaluate",
                ["model=exact", *self.stage.evaluate, *common, *exact, *self.asked],
            )
        seeds = [f"seed={seed}"] if seed else []
        words = [*self.here(self.stage.train), *train, *seeds, *self.extra]
        trained = self._cell(self._named(f"{row} (training)", seed), "train", words, seed)
        self.trained.setdefault(row, trained)
        words = [*self.stage.evaluate, *evaluate]
        if not words:
            return trained
        if not any(word.startswith("cascade=") for word in words):
            words = [quoted("run", trained.folder), *words]
        return self._cell(name, "evaluate", [*words, *seeds, *self.asked], seed, trained)

    def _named(self, what: str, seed: int) -> str:
        return f"{self.name} {what}" + (f", seed {seed}" if len(self.stage.seeds) > 1 else "")

    def _cell(self, name: str, verb: str, words: list[str], seed: int = 0, *needs: Cell) -> Cell:
        """Raises UserError if `words` are not what the verb takes."""
        others: dict[str, Cell] = {}

        def other(found: re.Match[str]) -> str:
            if found[1] == "train":
                return str(needs[0].folder)
            seeds = [f"seed={seed}"] if seed else []
            own = [*self.stage.runs[found[1]], *seeds, *self.extra]
            others[found[1]] = self._cell(self._named(found[1], seed), "train", own, seed)
            return str(others[found[1]].folder)

        words = [
            word if word in self.extra else re.sub(r"\{(\w+)\}", other, word) for word in words
        ]
        said = (verb, *words)
        if said in self.known:
            return self.known[said]
        exact = "model=exact" in words
        try:
            if verb == "train":
                config = compose("train", overrides=words)
                if OmegaConf.select(config, "logger.wandb") and config.logger.wandb.group is None:
                    words = [*words, quoted("logger.wandb.group", self.name)]
            elif exact:
                config = compose("exact", overrides=words)
            else:
                typed = load.unfold(words)
                load.offer(
                    typed,
                    lambda run: self.configs[run] if run in self.configs else load.config(run),
                )
                config = compose("evaluate", overrides=typed)
        except (HydraException, UserError) as error:
            told = (
                messages.explain(error, "exact" if exact else verb, CONFIGS, words)
                if isinstance(error, HydraException)
                else str(error)
            )
            raise (type(error) if isinstance(error, UserError) else UserError)(
                f"{name}: {told}"
            ) from error
        digits = fingerprint(config, self.root)
        folder = self.root / f"{verb}-{digits}"
        cell = Cell(
            name, verb, tuple(words), folder, digits, work(verb, config), (*needs, *others.values())
        )
        self.configs[str(folder)] = config
        self.known[said] = self.cells.setdefault(folder, cell)
        return self.known[said]


def ablate(settings: DictConfig) -> None:
    """Runs what is not done yet of the ablations that `settings` name. Raises CellsFailed if some of it failed."""
    if settings.tier is None:
        raise UserError("tier=null is not one of analytic, tiny, paper")
    launcher = instantiate(HydraConfig.get().launcher)
    launcher.check()
    found = chosen(settings.ablations, settings.tier)
    if settings.tier == "analytic" and settings.words:
        raise UserError(
            f"{settings.words[0]} is for training, and tier=analytic has none; try tier=tiny"
        )
    cells: dict[Path, Cell] = {}
    for name, ablation in found.items():
        if why := ablation.tiers[settings.tier].absent:
            print(f"  {name} has no tier={settings.tier}: {why}")
        cells |= Plan(name, ablation, settings.tier, settings).cells
    if settings.evaluate and not any(cell.verb == "evaluate" for cell in cells.values()):
        raise UserError(
            f"evaluate.{settings.evaluate[0]} is for evaluations, and this has none: its numbers are those "
            "that training ends with"
        )
    if cells:
        launcher.carry_out([*cells.values()], Path(settings.cells))
        what = settings.ablations if isinstance(settings.ablations, str) else f"[{','.join(found)}]"
        print(f"  next     {typed('report', what, settings.tier, settings)}")


def typed(verb: str, ablation: str, tier: str, settings: DictConfig) -> str:
    """The command with all that `settings` have of the user's."""
    words = [*settings.words, *(f"evaluate.{word}" for word in settings.evaluate)]
    words += [] if settings.cells == "runs/ablations" else [quoted("cells", settings.cells)]
    return f"{program(verb)} {shlex.join([f'ablation={ablation}', f'tier={tier}', *words])}"
