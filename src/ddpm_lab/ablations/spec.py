"""What a file of configs/ablation says."""

from typing import Any, Literal, get_args

from omegaconf import OmegaConf
from pydantic import BaseModel, ValidationError

from ddpm_lab.config.messages import suggest
from ddpm_lab.config.overrides import CONFIGS
from ddpm_lab.utils.errors import UserError

Tier = Literal["analytic", "tiny", "paper"]
TIERS: tuple[Tier, ...] = get_args(Tier)


class Overrides(BaseModel, extra="forbid"):
    """What a part of a table says to the verbs."""

    train: list[str] = []
    evaluate: list[str] = []
    exact: list[str] = []
    """To evaluate.py in the analytic tier only"""


class Row(Overrides):
    """One row of a table; `paper` is what is published, column by column, a number behind "~" from memory."""

    paper: list[int | float | str | None] = []
    tiers: list[Tier] = [*TIERS]
    """Where it can be run"""


class Column(Overrides):
    """One column: of a metric, of a setting, or both."""

    metric: str | None = None
    """Keys of metrics.json, joined by dots; null: that of the table"""


class TierSpec(BaseModel, extra="forbid"):
    """One tier."""

    skip_reason: str = ""
    """Why there is no such tier"""
    note: str = ""
    seeds: list[int] = [0]
    train: list[str] = []
    evaluate: list[str] = []
    """If it, the row and the column have none, numbers are those that training itself ends with"""
    runs: dict[str, list[str]] = {}
    """Other models that cells need, and all the words of their training: {name} in a word is the folder"""
    substitutions: dict[str, str | list[str]] = {}
    """Words of rows and columns, and what takes their places"""
    metrics: dict[str, str] = {}
    protocol: dict[str, str] = {}
    """As in `Ablation`, of what metrics.json does not say"""


class OrderClaim(BaseModel, extra="forbid"):
    """A claim: the numbers of these rows, in each of `columns`, or of these columns, in each of `rows`, rise in this
    order, each at least `ratio` times the one before.
    """

    text: str
    order: list[str]
    rows: list[str] | None = None
    columns: list[str] | None = None
    ratio: float = 1.0
    omitted: dict[Tier, str] = {}
    """Tiers whose numbers cannot show it, and why"""


class Plot(BaseModel, extra="forbid"):
    """`columns`: a line per row over the numbers of the columns' words; `rows`: a line per column over those of the
    rows' names; `bars`: a metric per row; `curve`: lists that metrics.json has.
    """

    kind: Literal["columns", "rows", "bars", "curve"]
    title: str
    x: str = ""
    y: str = ""
    column: str | None = None
    """Of `bars` and `curve`; null: the first. Of `rows`, what the columns' names begin with"""
    path: str = ""
    """Of `curve`: the list in metrics.json, of which `x_key` and `y_key` are drawn"""
    x_key: str = ""
    y_key: str = ""
    log_x: bool = False
    log_y: bool = False


class Ablation(BaseModel, extra="forbid"):
    """A paper's table or figure."""

    title: str
    source: str
    row_header: str
    """What its rows are"""
    metric: str = "fid"
    protocol: dict[str, str]
    """How the paper's numbers were measured, in the words of metrics.json"""
    rows: dict[str, Row]
    columns: dict[str, Column]
    tiers: dict[Tier, TierSpec]
    claims: list[OrderClaim] = []
    plots: list[Plot] = []


def names() -> list[str]:
    return sorted(file.stem for file in (CONFIGS / "ablation").glob("*.yaml"))


def select_tiers(ablation: Any, tier: str | None) -> dict[str, Ablation]:
    """What `ablation=` names. Raises UserError."""
    known = names()
    if OmegaConf.is_list(ablation):
        wanted = [str(name) for name in ablation]
    else:
        wanted = known if ablation == "all" else [str(ablation)]
    for name in wanted:
        if name not in known:
            raise UserError(
                f"ablation={name} is not a choice{suggest(name, known)}; choices: {', '.join(known)}, all"
            )
    if not wanted:
        raise UserError(f"ablation=[] names nothing; choices: {', '.join(known)}, all")
    if tier not in (None, *TIERS):
        raise UserError(f"tier={tier} is not one of {', '.join(TIERS)}{suggest(str(tier), TIERS)}")
    return {name: load_ablation(name) for name in wanted}


def load_ablation(name: str) -> Ablation:
    """Raises UserError if the file is not what it must be."""
    content = OmegaConf.to_container(OmegaConf.load(CONFIGS / "ablation" / f"{name}.yaml"))
    try:
        return Ablation.model_validate(content)
    except ValidationError as error:
        told = error.errors()[0]
        where = ".".join(map(str, told["loc"]))
        raise UserError(
            f"configs/ablation/{name}.yaml: {where}: {told['msg']} (got {told['input']})"
        ) from error
