"""Checksums, and readers of files that may come from someone else, which execute nothing.

They raise CorruptFileError if a file is damaged or not a file of ddpm-lab,
and UnsafeFileError if it requests something that is not allowed.
"""

import hashlib
import json
import os
import pickle
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Len

from ddpm_lab.utils.atomic_io import atomic_write, write_text
from ddpm_lab.utils.errors import CorruptFileError, UnsafeFileError
from ddpm_lab.utils.ranges import Count, Positive
from ddpm_lab.utils.shell import script_command

if TYPE_CHECKING:
    from torch import Tensor

SPEC: dict[str, Any] = {
    "shape": Annotated[list[Count], Len(1, 3)],
    "classes": Count | None,
    "bin_width": Positive | None,
    "captions": list[Annotated[list[str], Len(1)]] | None,
}
"""Types of the fields of `diffusion.conditioning.DataSpec` in a checkpoint"""


def sha256_of_text(text: str) -> str:
    """Return the SHA-256 of `text` in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_of_file(file: Path) -> str:
    """Return the SHA-256 of the content of `file`, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_tensors(tensors: Mapping[str, "Tensor"], header: str = "") -> str:
    """Return the SHA-256 of `header` and of names, dtypes, shapes and values in any order."""
    import torch

    digest = hashlib.sha256(header.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        # A copy: the storage of a tensor with a NumPy view cannot be resized, as FSDP2 does.
        copy = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        digest.update(copy.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def reject_links(path: str | Path) -> Path:
    """Return `path`. Raises UnsafeFileError if it is a link, which may point anywhere."""
    if Path(path).is_symlink():
        target = Path(path).readlink()
        raise UnsafeFileError(
            f"{path} is a link to {target}; if you trust it, pass the target instead"
        )
    return Path(path)


def reject_links_in_run(run: Path) -> Path:
    """Return `run`. Raises UnsafeFileError for links and special files that training would use."""
    folders = [folder for folder in (run, run / "checkpoints", run / "images") if folder.is_dir()]
    for entry in (entry for folder in folders for entry in os.scandir(folder)):
        if not reject_links(entry.path).is_dir() and not entry.is_file():
            raise UnsafeFileError(f"{entry.path} is not a regular file; remove it")
    reject_links(run / "wandb" / "id.txt")
    return run


def regular_file(path: str | Path) -> Path:
    """Return `path`. Raises UnsafeFileError for links and special files, OSError if missing."""
    # Opening a FIFO would block forever.
    if not stat.S_ISREG(reject_links(path).lstat().st_mode):
        raise UnsafeFileError(f"{path} is not a regular file; remove it")
    return Path(path)


def read_json(file: Path) -> dict[str, Any]:
    """Return the content of a JSON file; {} if it is missing or damaged. Raises UnsafeFileError."""
    try:
        content = json.loads(regular_file(file).read_bytes())
    except UnsafeFileError:
        raise
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def write_sealed_json(content: dict[str, Any], file: Path) -> None:
    """Write a JSON file with a checksum, for `read_sealed_json`, atomically."""
    checksum = sha256_of_text(json.dumps(content, sort_keys=True))
    write_text(file, json.dumps({"sha256": checksum, "content": content}))


def read_sealed_json(file: Path) -> dict[str, Any]:
    """Read a file of `write_sealed_json`. Raises CorruptFileError, UnsafeFileError, OSError."""
    try:
        sealed = json.loads(regular_file(file).read_bytes())
        content, checksum = sealed["content"], sealed["sha256"]
        if checksum == sha256_of_text(json.dumps(content, sort_keys=True)):
            return content
    except UnsafeFileError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFileError(f"{file} is truncated or damaged") from error
    raise CorruptFileError(f"{file} is damaged: its checksum does not match")


@contextmanager
def read_npz(file: Path) -> Iterator[Mapping[str, Any]]:
    """Open an .npz file. Raises UnsafeFileError for objects, and errors of numpy and zipfile."""
    import numpy as np

    # Raises BadZipFile for a single array and for a pickle.
    with zipfile.ZipFile(regular_file(file)):
        pass
    try:
        with np.load(file, allow_pickle=False) as arrays:
            yield arrays
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise UnsafeFileError(f"{file} has arrays of objects, not of numbers") from error
        raise


def save_tensors(
    tensors: Mapping[str, "Tensor"], file: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a .safetensors file with a checksum, for `load_tensors`, atomically."""
    from safetensors.torch import save_file

    metadata = metadata or {}
    checksum = _checksum(tensors, metadata)
    with atomic_write(file) as partial:
        save_file(dict(tensors), partial, {**metadata, "sha256": checksum})


def load_tensors(file: Path) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """Return tensors and metadata of `save_tensors`. Raises CorruptFileError, UnsafeFileError."""
    from safetensors import SafetensorError, safe_open

    regular_file(file)
    try:
        with safe_open(file, "pt") as stream:
            tensors = {name: stream.get_tensor(name) for name in sorted(stream.keys())}
            metadata = dict(stream.metadata() or {})
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CorruptFileError(f"{file} is truncated, or does not match its header") from error
    if metadata.pop("sha256", None) != _checksum(tensors, metadata):
        raise CorruptFileError(f"{file} is damaged: its checksum does not match")
    _check_finite(tensors, file)
    return tensors, metadata


def _checksum(tensors: Mapping[str, "Tensor"], metadata: dict[str, str]) -> str:
    return sha256_of_tensors(tensors, json.dumps(metadata, sort_keys=True))


def load_checkpoint(file: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint, or of a .safetensors file of `cli/share.py`.

    Its keys are "state_dict", "hyper_parameters" (the fields of `DataSpec`), "global_step",
    "callbacks" and others.
    Raises CorruptFileError, UnsafeFileError, and OSError if the file is missing.
    """
    file = Path(file)
    content = _load_shared(file) if file.suffix == ".safetensors" else _unpickle(regular_file(file))
    match content:
        case {
            "state_dict": dict(),
            "hyper_parameters": dict(spec),
            "global_step": int(),
            "callbacks": dict(),
        }:
            _check_spec(spec, file)
        case _:
            raise CorruptFileError(f"{file} is not a checkpoint of ddpm-lab")
    _check_finite(content, file)
    return content


def _unpickle(file: Path) -> Any:
    """Return the content of a zip of tensors and a pickle of plain types."""
    import torch

    with file.open("rb") as stream:
        if stream.read(64).startswith(b"version https://git-lfs"):
            raise CorruptFileError(f"{file} is a pointer of Git LFS; try: git lfs pull")
    try:
        with zipfile.ZipFile(file) as archive:  # torch.load does not verify checksums
            if part := archive.testzip():
                raise CorruptFileError(f"{file} is damaged: {part} does not match its checksum")
        return torch.load(file, map_location="cpu", weights_only=True)
    except (CorruptFileError, MemoryError, PermissionError):
        raise
    except pickle.UnpicklingError as error:
        raise UnsafeFileError(f"{file} contains more than tensors and plain types") from error
    except Exception as error:  # damaged archives and pickles raise almost any type
        if "allocate memory" in str(error):
            raise
        damage = f"it is not a checkpoint, or is damaged ({type(error).__name__})"
        raise CorruptFileError(f"{file} cannot be read: {damage}") from error


def _load_shared(file: Path) -> Any:
    """Return the content of a file of `cli/share.py` in the form of a checkpoint."""
    state, metadata = load_tensors(file)
    try:
        content = json.loads(metadata["ddpm_lab"])
        average = select_prefix(state, "denoiser.")
        return {
            **content,
            "state_dict": {**state, **content["extra"]},
            "callbacks": {"EMA": {"average": average}} if content["weights"] == "ema" else {},
        }
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise CorruptFileError(f"{file} was not written by {script_command('share')}") from error


def select_prefix(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the entries of `state` whose names begin with `prefix`, without it."""
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


def check_shapes(
    network: Callable[..., Any], weights: Mapping[str, Any], prefix: str
) -> Callable[..., Any]:
    """Return the constructor `network`, which first builds a network on the meta device.

    Raises CorruptFileError, before memory is allocated, unless the parameters have the names and
    shapes of `weights`, whose keys begin with `prefix`.
    """

    @wraps(network)
    def checked(*args: Any, **kwargs: Any) -> Any:
        import torch
        from torch.overrides import TorchFunctionMode

        class SkipInit(TorchFunctionMode):
            """Skip torch.nn.init, which on the meta device imports torch._dynamo (1 s)."""

            def __torch_function__(
                self, func: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                skipped = getattr(func, "__module__", None) == "torch.nn.init"
                return None if skipped else func(*args, **(kwargs or {}))

        with torch.device("meta"), SkipInit():
            parameters = dict(network(*args, **kwargs).named_parameters())
        for name, parameter in parameters.items():
            shape = getattr(weights.get(prefix + name), "shape", None)
            if shape != parameter.shape:
                shapes = f"{shape and tuple(shape)} instead of {tuple(parameter.shape)}"
                raise CorruptFileError(
                    "the weights do not fit the model that config.yaml describes: "
                    f"{prefix}{name} has shape {shapes}"
                )
        return network(*args, **kwargs)

    return checked


def _check_spec(spec: dict[str, Any], file: Path) -> None:
    """Raise UnsafeFileError unless `spec` has the fields of a valid DataSpec."""
    from pydantic import ConfigDict, TypeAdapter

    config = ConfigDict(strict=True, allow_inf_nan=False)
    try:
        for name, annotation in SPEC.items():
            TypeAdapter(annotation, config=config).validate_python(spec[name])
        captions = spec["captions"]
        valid = spec.keys() == SPEC.keys() and (not captions or len(captions) == spec["classes"])
    except (KeyError, ValueError):
        valid = False
    if not valid:
        fields = ", ".join(SPEC)
        raise UnsafeFileError(f"{file}: hyper_parameters must be the valid {fields} of a data set")


def _check_finite(content: Any, file: Path) -> None:
    if path := next(find_non_finite(content), None):
        raise CorruptFileError(f"{file} has non-finite weights: {path}")


def find_non_finite(content: Any, path: str = "") -> Iterator[str]:
    """Yield the paths in `content` of non-finite tensors."""
    import torch

    match content:
        case torch.Tensor():
            if content.is_floating_point() and not content.isfinite().all():
                yield path
        case Mapping():
            for key, value in content.items():
                yield from find_non_finite(value, f"{path}.{key}".lstrip("."))
        case Sequence() if not isinstance(content, str | bytes):
            for i, value in enumerate(content):
                yield from find_non_finite(value, f"{path}.{i}")


BEST = "best.ckpt"
"""Name of the checkpoint with the best value of a metric"""


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, latest step first, by name, without the best one."""
    files = [file for file in folder.glob("step-*.ckpt") if file.stem[5:].isdecimal()]
    return sorted(files, key=checkpoint_step, reverse=True)


def checkpoint_step(file: Path) -> int:
    """Return the step in the name of a checkpoint."""
    return int(file.stem[5:])
