"""onnxruntime-web, which runs a network in a browser: two files of an npm package."""

import hashlib
import shutil
import subprocess
import tarfile
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from ddpm_lab.evaluation.cache import cache_dir
from ddpm_lab.utils.atomic_io import atomic_write
from ddpm_lab.utils.errors import ResourceError

PACKAGE = "onnxruntime-web@1.30.0"
SHA256 = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": (
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"
    ),
}
"""Digests of the files, by name; others are rejected"""


def runtime_files() -> dict[str, bytes]:
    """Return the files by name, from the cache or downloaded by npm.

    Raises ResourceError if they cannot be had.
    """
    folder = cache_dir() / PACKAGE
    with suppress(OSError):
        files = {name: (folder / name).read_bytes() for name in SHA256}
        if all(map(_is_intact, files, files.values())):
            return files
    files = _download(folder)
    with suppress(OSError):  # a cache that cannot be written is not an error
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with atomic_write(folder / name) as part:
                part.write_bytes(content)
    return files


def _is_intact(name: str, content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() == SHA256[name]


def _download(folder: Path) -> dict[str, bytes]:
    """Return the files of the package. `folder` is the cache, for messages."""
    other = f"or copy {' and '.join(SHA256)} of {PACKAGE} (folder dist) to {folder}"
    if shutil.which("npm") is None:
        raise ResourceError(
            f"{PACKAGE} is downloaded by npm, which is not installed; install Node.js, {other}"
        )
    print(f"  download {PACKAGE}, once", flush=True)
    with TemporaryDirectory() as scratch:
        command = ["npm", "pack", PACKAGE, "--loglevel=error", "--pack-destination", scratch]
        result = subprocess.run(command, capture_output=True, text=True)
        archives = [*Path(scratch).glob("*.tgz")]
        if result.returncode or not archives:
            reason = " ".join(result.stderr.split())[:160] or f"status {result.returncode}"
            raise ResourceError(f"npm could not download {PACKAGE} ({reason}); try again, {other}")
        with tarfile.open(archives[0]) as archive:
            members = {name: archive.extractfile(f"package/dist/{name}") for name in SHA256}
            files = {name: member.read() if member else b"" for name, member in members.items()}
    for name, content in files.items():
        if not _is_intact(name, content):
            raise ResourceError(f"{PACKAGE}: {name} has another digest than expected")
    return files
