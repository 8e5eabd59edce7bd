"""What the verbs say on the terminal."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddpm_lab.errors import UserError


def quiet() -> None:
    """Keeps Lightning's advertisements, and warnings about what is meant, from the terminal."""
    for noisy in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\.|torchmetrics\.|pydantic\.")


def output(folder: str) -> Path:
    """`folder`, made if it was not there; before any work, so that nothing is computed in vain."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={folder} cannot be made a folder ({error.strerror})") from error
    return Path(folder)


def table(rows: Sequence[tuple[str, str, str]]) -> str:
    """Three columns: what, how much, and a remark."""
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    lines = [f"  {what:<{widths[0]}}  {value:>{widths[1]}}  {remark}".rstrip() for what, value, remark in rows]
    rule = "  " + "─" * max(len(line) - 2 for line in lines)
    return "\n".join([rule, *lines, rule])


def quality_rows(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What `evaluation.quality.assess` found, with what it must be compared with."""
    real, noise, protocol = result["real"], result["noise"], result["protocol"]
    steps = protocol["sampler"]["steps"] or protocol["T"]
    others = f"held-out pictures {real['fid']:.3g}, noise {noise['fid']:.3g} (features: {protocol['extractor']})"
    rows = [("FID", f"{result['fid']:.3g}", others)]
    if "recognised" in result:
        rows.append(("recognised", f"{100 * result['recognised']:.1f} %",
                     f"held-out pictures {100 * real['recognised']:.1f} %"))  # fmt: skip
    guided = ", ".join(f"{key}={value}" for key, value in protocol["guidance"].items() if key != "name" and value)
    how = f"{protocol['sampler']['name']}, {steps} steps, {protocol['weights']} weights" + (
        f", {guided}" if guided else ""
    )
    return [*rows, ("samples", f"{protocol['count']}", how)]
