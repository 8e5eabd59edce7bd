"""Schema of the files in configs/ablation."""

from typing import Any, Literal, get_args

from omegaconf import OmegaConf
from pydantic import BaseModel, ValidationError

from ddpm_lab.config.messages import suggest
from ddpm_lab.config.overrides import CONFIGS
from ddpm_lab.utils.errors import UserError

Tier = Literal["analytic", "tiny", "paper", "published"]
TIERS: tuple[Tier, ...] = get_args(Tier)


class Overrides(BaseModel, extra="forbid"):
    """Overrides of a row or a column, by verb."""

    train: list[str] = []
    evaluate: list[str] = []
    exact: list[str] = []
    """Additional overrides of evaluate.py in the analytic tier"""


class Row(Overrides):
    """A row of a table."""

    paper: list[int | float | str | None] = []
    """Published numbers, one per column; "~" precedes a number quoted from memory"""
    tiers: list[Tier] = [*TIERS]
    """Tiers that can run the row"""


class Column(Overrides):
    """A column of a table: a metric, a setting, or both."""

    metric: str | None = None
    """Dotted key of metrics.json; null: the metric of the table"""


class TierSpec(BaseModel, extra="forbid"):
    """Settings of a tier."""

    skip_reason: str = ""
    """Reason why the tier does not exist"""
    note: str = ""
    seeds: list[int] = [0]
    train: list[str] = []
    evaluate: list[str] = []
    """Default overrides; if a row and its column add none, the metrics of training are used"""
    rows: list[str] | None = None
    """Rows that the tier can run, of those with the tier; null: all"""
    weights: str | None = None
    """Published weights, a source of import.py, which replace training"""
    runs: dict[str, list[str]] = {}
    """Training overrides of auxiliary models; "{name}" in an override is the run directory"""
    substitutions: dict[str, str] = {}
    """Overrides of rows and columns to replace, each by overrides separated by spaces"""
    metrics: dict[str, str] = {}
    """Metrics of columns to replace"""
    protocol: dict[str, str] = {}
    """Entries to add to the protocol in metrics.json"""


class OrderClaim(BaseModel, extra="forbid"):
    """A claim: numbers increase in `order`, each at least by a factor of `ratio`.

    With a ratio below 1, numbers may also decrease by that factor: [a, b, a] is about equal.

    With several seeds, each difference must exceed two standard errors.

    `order` lists rows, compared in each of `columns`, or columns, compared in each of `rows`.
    """

    text: str
    order: list[str]
    rows: list[str] | None = None
    columns: list[str] | None = None
    ratio: float = 1.0
    omitted: dict[Tier, str] = {}
    """Tiers that cannot test the claim, and the reason"""
    reasons: dict[Tier, str] = {}
    """Explanation by tier, for a claim that failed or is not resolved"""


class Plot(BaseModel, extra="forbid"):
    """A plot of a table.

    - `columns`: one line per row; x is the number at the end of a column's overrides.
    - `rows`: one line per column; x is the number at the end of a row's name.
    - `bars`: one bar per row.
    - `curve`: one line per row, from a list in metrics.json.
    """

    kind: Literal["columns", "rows", "bars", "curve"]
    title: str
    x: str = ""
    y: str = ""
    column: str | None = None
    """`bars`, `curve`: the column; null: the first. `rows`: prefix of the columns' names"""
    path: str = ""
    """`curve`: dotted key of the list, whose items have `x_key` and `y_key`"""
    x_key: str = ""
    y_key: str = ""
    log_x: bool = False
    log_y: bool = False


class Ablation(BaseModel, extra="forbid"):
    """A table or figure of a paper."""

    title: str
    source: str
    row_header: str
    metric: str = "fid"
    protocol: dict[str, str]
    """Protocol of the paper's numbers, under the keys of metrics.json"""
    rows: dict[str, Row]
    columns: dict[str, Column]
    tiers: dict[Tier, TierSpec]
    """Without `published`: no weights of the models were published"""
    claims: list[OrderClaim] = []
    plots: list[Plot] = []

    def tier(self, tier: Tier) -> TierSpec:
        """Return the settings of a tier."""
        reason = "weights of its models were not published in a format of import.py"
        return self.tiers.get(tier, TierSpec(skip_reason=reason))


def names() -> list[str]:
    """List the available ablations."""
    return sorted(file.stem for file in (CONFIGS / "ablation").glob("*.yaml"))


def select_tiers(ablation: Any, tier: str | None) -> dict[str, Ablation]:
    """Load the ablations that `ablation=` selects. Raises UserError for an unknown name or tier."""
    available = names()
    if OmegaConf.is_list(ablation):
        selection = [str(name) for name in ablation]
    else:
        selection = available if ablation == "all" else [str(ablation)]
    choices = f"choices: {', '.join(available)}, all"
    for name in selection:
        if name not in available:
            hint = suggest(name, available)
            raise UserError(f"ablation={name} is not a choice{hint}; {choices}")
    if not selection:
        raise UserError(f"ablation=[] selects nothing; {choices}")
    if tier not in (None, *TIERS):
        raise UserError(f"tier={tier} is not one of {', '.join(TIERS)}{suggest(str(tier), TIERS)}")
    return {name: load_ablation(name) for name in selection}


def load_ablation(name: str) -> Ablation:
    """Load configs/ablation/NAME.yaml. Raises UserError if it violates the schema."""
    content = OmegaConf.to_container(OmegaConf.load(CONFIGS / "ablation" / f"{name}.yaml"))
    try:
        return Ablation.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(
            f"configs/ablation/{name}.yaml: {key}: {first['msg']} (got {first['input']})"
        ) from error
