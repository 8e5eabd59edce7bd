"""Folders that training may use: those of runs, and new ones."""

from pathlib import Path

from ddpm_lab.errors import UserError, shown

HARMLESS = {".err", ".log", ".out", ".txt"}
"""Suffixes of files that a new run may find in its folder, such as the output of a job"""


def resumable(home: Path) -> None:
    """Raises UserError where `home` is not a folder that training can go on in."""
    from ddpm_lab.callbacks.checkpoints import ordered

    if ordered(home / "checkpoints") or (home / "command.txt").is_file():
        return
    if _shared(home):
        raise UserError(
            f"resume={home} holds weights without the state of the optimizer, which training needs to go "
            f"on; init={home}, beside the words that trained it, starts a new run from them"
        )
    raise UserError(f"resume={home} holds no checkpoints; try a folder that train.py named")


def vacant(folder: Path) -> None:
    """Raises UserError where `folder` holds files and is not that of a training run."""
    if (
        not folder.is_dir()
        or (folder / "command.txt").is_file()
        or any((folder / "checkpoints").glob("step-*.ckpt"))
    ):
        return
    others = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.name[0] != "." and entry.suffix not in HARMLESS
    )
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        hint = f", and init={folder} to start from its weights" if _shared(folder) else ""
        raise UserError(
            f"hydra.run.dir={folder} is not the folder of a training run and holds "
            f"{', '.join(map(shown, others[:3]))}{more}; try a new folder{hint}"
        )


def _shared(folder: Path) -> bool:
    return (folder / "weights.safetensors").is_file()
