"""Files that come from elsewhere. Each is looked at before anything in it is used, and nothing in it is ever run.

Raised are `Damaged`, where a file is not whole or none of ours, and `Unsafe`, where it asks for what no file may.
"""

import json
import os
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite, prod
from pathlib import Path
from typing import Any

from ddpm_lab.errors import Damaged, Unsafe, shown
from ddpm_lab.pickled import unpickled

LARGEST = 2**38
"""Bytes of a checkpoint"""
UNPACKED = 100, 2**30
"""What is in an archive may take so many times its size, or so many bytes"""
SPEC = ("shape", "classes", "bin_width", "captions")
"""The fields of `conditioners.Spec`"""
FREE, LEAST = 2**29, 2**15
"""Bytes that a system may take besides its weights; and what a tensor counts for at least"""


def unlinked(path: str | Path) -> Path:
    """`path`. Raises Unsafe if it is a link: what that leads to can be changed by whoever made it."""
    if Path(path).is_symlink():
        raise Unsafe(f"{shown(path)} is a link to {shown(os.readlink(Path(path)))}; name that, if it is what you mean")
    return Path(path)


def plain(run: Path) -> Path:
    """The folder `run`, if there is one. Raises Unsafe for links and the like in it that would be written through."""
    folders = [run, run / "checkpoints", run / "pictures", run / "wandb" / "id.txt"]
    for entry in (entry for folder in folders if folder.is_dir() for entry in os.scandir(folder)):
        if not unlinked(entry.path).is_dir() and not entry.is_file():
            raise Unsafe(f"{shown(entry.path)} is no regular file; remove it")
    unlinked(folders[-1])
    return run


def regular(path: str | Path, most: int = UNPACKED[1]) -> Path:
    """`path`, a regular file of at most `most` bytes. Raises Unsafe, and OSError where there is none."""
    about = unlinked(path).lstat()
    if not stat.S_ISREG(about.st_mode):  # such as a FIFO, which would be waited for
        raise Unsafe(f"{shown(path)} is no regular file; remove it")
    if about.st_size > most:
        raise Unsafe(f"{shown(path)} has {about.st_size} bytes, and {most} is the most for a file of its kind")
    if about.st_size > UNPACKED[1] and about.st_blocks * 512 * UNPACKED[0] < about.st_size:
        raise Unsafe(f"{shown(path)} has {about.st_size} bytes, which are holes and not on the disk")
    return Path(path)


def document(file: Path) -> dict[str, Any]:
    """What a JSON file says; {} where there is none, or it was cut short. Raises Unsafe."""
    try:
        found = json.loads(regular(file).read_bytes())
    except Unsafe:
        raise
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def arrays(file: Path) -> Any:
    """The open .npz. Raises Unsafe where an array is not of numbers, or not as large as it says; and what numpy and
    zipfile raise.
    """
    import numpy as np

    with zipfile.ZipFile(regular(file, LARGEST)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > max(UNPACKED[0] * file.stat().st_size, UNPACKED[1]):
            raise Unsafe(f"{shown(file)} would unpack to over {UNPACKED[0]} times its size")
        for entry in archive.infolist():
            with archive.open(entry) as stream:
                old = np.lib.format.read_magic(stream) == (1, 0)
                read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
                shape, _, kind = read(stream)
                size = prod(shape) * kind.itemsize + stream.tell()
                if kind.hasobject or min(shape, default=0) < 0 or size != entry.file_size:
                    raise Unsafe(f"{shown(file)}: {shown(entry.filename)} is no array of numbers, or not as large as "
                                 "it says")  # fmt: skip
    return np.load(file, allow_pickle=False)


def tensors(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What is in a .safetensors, and what it says of itself. Raises Damaged and Unsafe."""
    from safetensors import SafetensorError, safe_open

    regular(file, LARGEST)
    try:
        with safe_open(file, "pt") as stream:
            found = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (it is no dict)
            said = stream.metadata() or {}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise Damaged(f"{shown(file)} is cut short, or not what its header says") from error
    _sound(found, file)
    return found, said


def checkpoint(file: str | Path) -> dict[str, Any]:
    """What a checkpoint holds, "state_dict", "hyper_parameters" (the fields of `Spec`), "global_step" and "callbacks"
    at least; of a .safetensors that scripts/share.py wrote, the same. Raises Damaged, Unsafe, and OSError where there
    is no file.
    """
    file = Path(file)
    content = _shared(file) if file.suffix == ".safetensors" else unpickled(regular(file, LARGEST))
    wanted = {"state_dict": dict, "hyper_parameters": dict, "global_step": int, "callbacks": dict}
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in wanted.items()):
        raise Damaged(f"{shown(file)} is no checkpoint of ddpm-lab, which holds {', '.join(wanted)}")
    if not _is_spec(content["hyper_parameters"]):
        raise Unsafe(f"{shown(file)}: hyper_parameters must be {', '.join(SPEC)} of some data, and nothing else")
    _sound(content, file)
    return content


@contextmanager
def budget(weights: int) -> Iterator[None]:
    """Inside, what is built may take `weights` bytes and `FREE` more, and what is in a budget of its own is free.
    Raises Unsafe before more is taken.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counted(TorchDispatchMode):
        left = weights + FREE

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if any(argument.name == "device" for argument in func._schema.arguments) and not any(
                    isinstance(argument, torch.Tensor) for argument in args):  # fmt: skip
                there = {"device": "meta"} | ({"generator": None} if "generator" in kwargs else {})
                self.left -= max(func(*args, **{**kwargs, **there}).nbytes, LEAST)
                if self.left < 0:
                    raise Unsafe("config.yaml describes a model that is far larger than the weights of the checkpoint")
            return func(*args, **kwargs)

    for outer in _BUDGETS:
        outer.left += weights + FREE
    with Counted() as mode:
        _BUDGETS.append(mode)
        try:
            yield
        finally:
            _BUDGETS.remove(mode)


_BUDGETS: list[Any] = []


def _shared(file: Path) -> Any:
    """What scripts/share.py wrote, as a checkpoint holds it. Raises Damaged and Unsafe."""
    state, said = tensors(file)
    try:
        content = json.loads(said["ddpm_lab"])
        average = {name.removeprefix("denoiser."): value for name, value in state.items()
                   if name.startswith("denoiser.")}  # fmt: skip
        return {**content, "state_dict": {**state, **content["extra"]},
                "callbacks": {"EMA": {"average": average}} if content["weights"] == "ema" else {}}  # fmt: skip
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise Damaged(f"{shown(file)} is not what scripts/share.py writes") from error


def _is_spec(said: dict[str, Any]) -> bool:
    """Whether these are the fields of `Spec`, of data that there may be."""
    if {*said} != {*SPEC}:
        return False
    shape, classes, width, captions = (said[name] for name in SPEC)
    return (
        isinstance(shape, list)
        and 1 <= len(shape) <= 3
        and all(type(side) is int and side > 0 for side in shape)
        and prod(shape) <= 2**24
        and (classes is None or (type(classes) is int and 0 < classes <= 10**6))
        and (width is None or (type(width) is float and isfinite(width) and width > 0))
        and (captions is None or (isinstance(captions, list) and len(captions) == classes
             and all(isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)
                     for texts in captions)))
    )  # fmt: skip


def _sound(content: Any, file: Path) -> None:
    """Raises Unsafe for a tensor that is larger than its memory, and Damaged for one whose numbers are not finite; lone
    ones may be, such as a best score where there is none yet.
    """
    import torch

    left, seen = [content], set()
    while left:
        one = left.pop()
        if isinstance(one, torch.Tensor):
            if one.numel() * one.itemsize > one.untyped_storage().nbytes():
                raise Unsafe(f"{shown(file)} has a tensor of {tuple(one.shape)} with memory for fewer numbers")
            if one.dim() and one.is_floating_point() and not one.sum().isfinite() and not one.isfinite().all():
                raise Damaged(f"{shown(file)} has weights that are not finite numbers")
        elif isinstance(one, dict | list | tuple) and id(one) not in seen:
            seen.add(id(one))
            left += one.values() if isinstance(one, dict) else one
