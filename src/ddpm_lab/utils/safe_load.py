"""Files that come from elsewhere. Each is looked at before anything in it is used, and nothing in it is ever run.

Raised are `Damaged`, where a file is not whole or none of ours, and `Unsafe`, where it asks for what no file may.
"""

import hashlib
import json
import os
import pickle
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager
from functools import wraps
from math import isfinite
from pathlib import Path
from typing import Any

from ddpm_lab.utils.atomic_io import atomic_write, write_text
from ddpm_lab.utils.errors import CorruptFileError, UnsafeFileError, escape_control

SPEC = ("shape", "classes", "bin_width", "captions")
"""The fields of `conditioners.Spec`"""


def reject_links(path: str | Path) -> Path:
    """`path`. Raises Unsafe if it is a link: what that leads to can be changed by whoever made it."""
    if Path(path).is_symlink():
        raise UnsafeFileError(
            f"{escape_control(path)} is a link to {escape_control(os.readlink(Path(path)))}; name that, if it is what you mean"
        )
    return Path(path)


def reject_links_in_run(run: Path) -> Path:
    """The folder `run`, if there is one. Raises Unsafe for links and the like in it that would be written through."""
    folders = [run, run / "checkpoints", run / "images", run / "wandb" / "id.txt"]
    for entry in (entry for folder in folders if folder.is_dir() for entry in os.scandir(folder)):
        if not reject_links(entry.path).is_dir() and not entry.is_file():
            raise UnsafeFileError(f"{escape_control(entry.path)} is no regular file; remove it")
    reject_links(folders[-1])
    return run


def regular_file(path: str | Path) -> Path:
    """`path`, a regular file. Raises Unsafe, and OSError where there is none."""
    if not stat.S_ISREG(
        reject_links(path).lstat().st_mode
    ):  # such as a FIFO, which would be waited for
        raise UnsafeFileError(f"{escape_control(path)} is no regular file; remove it")
    return Path(path)


def read_json(file: Path) -> dict[str, Any]:
    """What a JSON file says; {} where there is none, or it was cut short. Raises Unsafe."""
    try:
        found = json.loads(regular_file(file).read_bytes())
    except UnsafeFileError:
        raise
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_sealed_json(content: dict[str, Any], file: Path) -> None:
    """Write a JSON file that `sealed` reads: whole or not at all, with a checksum."""
    text = json.dumps(content, sort_keys=True)
    write_text(
        file, json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "content": content})
    )


def read_sealed_json(file: Path) -> dict[str, Any]:
    """The content of a file that `seal` wrote. Raises Damaged, Unsafe, and OSError where there is none."""
    try:
        whole = json.loads(regular_file(file).read_bytes())
        text = json.dumps(whole["content"], sort_keys=True)
        if hashlib.sha256(text.encode()).hexdigest() == whole["sha256"]:
            return whole["content"]
    except (UnsafeFileError, OSError):
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFileError(f"{escape_control(file)} is cut short or damaged") from error
    raise CorruptFileError(f"{escape_control(file)} is damaged: its checksum is another")


@contextmanager
def read_npz(file: Path) -> Iterator[Mapping[str, Any]]:
    """Open an .npz. Raises Unsafe when an array of objects is read, and what numpy and zipfile raise."""
    import numpy as np

    with zipfile.ZipFile(
        regular_file(file)
    ):  # raises BadZipFile for a single array and for a pickle
        pass
    try:
        with np.load(file, allow_pickle=False) as found:
            yield found
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise UnsafeFileError(
                f"{escape_control(file)} holds objects, and only arrays of numbers are loaded"
            ) from error
        raise


def save_tensors(
    load_tensors: dict[str, Any], file: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a .safetensors that `tensors` reads: whole or not at all, with a checksum of everything in it."""
    from safetensors.torch import save_file

    metadata = metadata or {}
    with atomic_write(file) as partial:
        save_file(load_tensors, partial, {**metadata, "sha256": _digest(load_tensors, metadata)})


def load_tensors(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors and metadata of a file that `save_tensors` wrote. Raises Damaged and Unsafe."""
    from safetensors import SafetensorError, safe_open

    regular_file(file)
    try:
        with safe_open(file, "pt") as stream:
            found = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (it is no dict)
            metadata = dict(stream.metadata() or {})
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CorruptFileError(
            f"{escape_control(file)} is cut short, or not what its header says"
        ) from error
    if metadata.pop("sha256", None) != _digest(found, metadata):
        raise CorruptFileError(
            f"{escape_control(file)} is damaged, or was not written by ddpm-lab: its checksum is another"
        )
    _check_finite(found, file)
    return found, metadata


def _digest(load_tensors: dict[str, Any], metadata: dict[str, str]) -> str:
    import torch

    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, value in sorted(load_tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def load_checkpoint(file: str | Path) -> dict[str, Any]:
    """What a checkpoint holds, "state_dict", "hyper_parameters" (the fields of `Spec`), "global_step" and "callbacks"
    at least; of a .safetensors that scripts/share.py wrote, the same. Raises Damaged, Unsafe, and OSError where there
    is no file.
    """
    file = Path(file)
    content = _shared(file) if file.suffix == ".safetensors" else _unpickled(regular_file(file))
    wanted = {"state_dict": dict, "hyper_parameters": dict, "global_step": int, "callbacks": dict}
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), kind) for key, kind in wanted.items()
    ):
        raise CorruptFileError(
            f"{escape_control(file)} is no checkpoint of ddpm-lab, which holds {', '.join(wanted)}"
        )
    if not _is_spec(content["hyper_parameters"]):
        raise UnsafeFileError(
            f"{escape_control(file)}: hyper_parameters must be {', '.join(SPEC)} of some data, and nothing else"
        )
    _check_finite(content, file)
    return content


def _unpickled(file: Path) -> Any:
    """What a zip of a pickle and tensors holds. Raises Damaged and Unsafe."""
    import torch

    with file.open("rb") as stream:
        head = stream.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise CorruptFileError(
            f"{escape_control(file)} is a pointer of Git LFS, not the file that it stands for; try: git lfs pull"
        )
    if not head.startswith(b"PK\x03\x04"):
        raise CorruptFileError(
            f"{escape_control(file)} is {'not a checkpoint, or is damaged at its start' if head else 'empty'}"
        )
    try:
        with zipfile.ZipFile(file) as archive:  # torch.load does not verify checksums
            if bad := archive.testzip():
                raise CorruptFileError(
                    f"{escape_control(file)} is damaged: {escape_control(bad)} does not match its checksum"
                )
        return torch.load(file, map_location="cpu", weights_only=True)
    except (CorruptFileError, MemoryError, PermissionError):
        raise
    except pickle.UnpicklingError as error:
        raise UnsafeFileError(
            f"{escape_control(file)} asks for more than tensors and numbers, and is not loaded"
        ) from error
    except (
        Exception
    ) as error:  # broken archives and pickles make their readers raise nearly anything
        if "allocate memory" in str(error):
            raise
        raise CorruptFileError(
            f"{escape_control(file)} cannot be read: it is cut short or damaged ({type(error).__name__})"
        ) from error


def _shared(file: Path) -> Any:
    """What scripts/share.py wrote, as a checkpoint holds it. Raises Damaged and Unsafe."""
    state, said = load_tensors(file)
    try:
        content = json.loads(said["ddpm_lab"])
        average = {
            name.removeprefix("denoiser."): value
            for name, value in state.items()
            if name.startswith("denoiser.")
        }
        return {
            **content,
            "state_dict": {**state, **content["extra"]},
            "callbacks": {"EMA": {"average": average}} if content["weights"] == "ema" else {},
        }
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise CorruptFileError(
            f"{escape_control(file)} is not what scripts/share.py writes"
        ) from error


def default_plot_style() -> None:
    """Undo what a `matplotlibrc` in the current directory, which may be a run of someone else, says."""
    if not Path("matplotlibrc").exists():
        return
    import matplotlib

    with chdir(Path(__file__).parent):
        matplotlib.rcParams.update(matplotlib.rc_params())
    matplotlib.use("agg")


def fitting(network: Callable[..., Any], weights: Mapping[str, Any]) -> Callable[..., Any]:
    """`network`, which raises Damaged before it takes memory where its parameters are more than there are `weights`."""

    @wraps(network)
    def built(*args: Any, **kwargs: Any) -> Any:
        import torch

        with torch.device("meta"):
            parameters = sum(
                parameter.numel() for parameter in network(*args, **kwargs).parameters()
            )
        held = sum(value.numel() for value in weights.values() if isinstance(value, torch.Tensor))
        if parameters > held:
            raise CorruptFileError(
                f"the weights do not fit the model that config.yaml describes: it has "
                f"{parameters} parameters, and the checkpoint holds {held} numbers"
            )
        return network(*args, **kwargs)

    return built


def _is_spec(said: dict[str, Any]) -> bool:
    """Whether these are the fields of `Spec`, of data that there may be: what builds a system gets them as they are."""
    if {*said} != {*SPEC}:
        return False
    shape, classes, width, captions = (said[name] for name in SPEC)
    return (
        isinstance(shape, list)
        and 1 <= len(shape) <= 3
        and all(type(side) is int and side > 0 for side in shape)
        and (classes is None or (type(classes) is int and classes > 0))
        and (width is None or (type(width) is float and isfinite(width) and width > 0))
        and (
            not captions
            or (
                isinstance(captions, list)
                and len(captions) == classes
                and all(
                    isinstance(texts, list)
                    and texts
                    and all(isinstance(text, str) for text in texts)
                    for texts in captions
                )
            )
        )
    )


def _check_finite(content: Any, file: Path) -> None:
    """Raises Damaged for a tensor whose numbers are not finite; lone ones may be, such as a best score where there is
    none yet.
    """
    import torch

    left, seen = [content], set()
    while left:
        one = left.pop()
        if isinstance(one, torch.Tensor):
            if (
                one.dim()
                and one.is_floating_point()
                and not one.sum().isfinite()
                and not one.isfinite().all()
            ):
                raise CorruptFileError(
                    f"{escape_control(file)} has weights that are not finite numbers"
                )
        elif isinstance(one, dict | list | tuple) and id(one) not in seen:
            seen.add(id(one))
            left += one.values() if isinstance(one, dict) else one
