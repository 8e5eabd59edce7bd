"""Averages of a run's weights of any length, from the snapshots that training saved."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ddpm_lab.diffusion.power_averages import Profile, combine, profile
from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.safe_load import load_tensors, reject_links, save_tensors

MAX_ERROR = 0.05
"""Relative L2 error of a profile, above which its length is refused"""
PREFIX = "ema:"
"""Prefix of a length in weights=ema:LENGTH"""


def snapshot_file(run: Path, step: int) -> Path:
    return run / "averages" / f"step-{step:07d}.safetensors"


def write_snapshot(file: Path, states: Mapping[float, Mapping[str, Tensor]]) -> None:
    """Write the state of each average, by the exponent of its profile."""
    file.parent.mkdir(exist_ok=True)
    tensors = {
        f"{gamma!r}/{name}": value.cpu().contiguous()
        for gamma, state in states.items()
        for name, value in state.items()
    }
    save_tensors(tensors, file)


def read_average(run: str | Path, weights: str) -> dict[str, Tensor]:
    """Return the state at the last snapshot of the average that `weights`, "ema:LENGTH", names.

    Coefficients are float64. Raises UserError for a run without snapshots, and for a length that
    they do not reach.
    """
    files = sorted(reject_links(Path(run, "averages")).glob("step-*.safetensors"))
    if not files:
        raise UserError(
            f"weights={weights}: run={run} has no averages of other lengths, which training saves "
            "with callbacks=averages; try weights=ema"
        )
    steps = [int(file.stem.removeprefix("step-")) for file in files]
    last = load_tensors(files[-1])[0]
    gammas = sorted({float(name.partition("/")[0]) for name in last})
    stored = [Profile(step, gamma) for step in steps for gamma in gammas]
    target = _parse_profile(weights, steps[-1])
    if target is None or (fit := combine(stored, target))[1] > MAX_ERROR:
        raise UserError(f"weights={weights}: {_reachable(stored, steps[-1])}")
    sums: dict[str, Tensor] = {}
    weight = dict(zip(stored, fit[0], strict=True))
    for step, file in zip(steps, files, strict=True):
        for key, value in (last if file == files[-1] else load_tensors(file)[0]).items():
            gamma, _, name = key.partition("/")
            if value.is_floating_point():
                term = weight[Profile(step, float(gamma))] * value.double()
                sums[name] = sums[name] + term if name in sums else term
            else:
                sums[name] = value
    return sums


def _parse_profile(weights: str, step: int) -> Profile | None:
    """Return None for a text that is not a length of an average."""
    try:
        return profile(step, float(weights.removeprefix(PREFIX)))
    except ValueError:
        return None


def _reachable(stored: list[Profile], step: int) -> str:
    lengths = [i / 1000 for i in range(5, 281)]
    reached = [each for each in lengths if combine(stored, profile(step, each))[1] <= MAX_ERROR]
    if not reached:
        return "the snapshots are too few; train with more, callbacks.ema.snapshots=16"
    middle = reached[len(reached) // 2]
    return (
        f"the snapshots reach lengths from {reached[0]:g} to {reached[-1]:g}; "
        f"try weights={PREFIX}{middle:g}"
    )
