"""onnxruntime-web, which runs a network in a browser: two files of an npm package."""

import hashlib
import shutil
import subprocess
import tarfile
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
    if not _intact(folder):
        _download(folder)
    return {name: (folder / name).read_bytes() for name in SHA256}


def _intact(folder: Path) -> bool:
    return all((folder / name).is_file() and _is(folder / name, SHA256[name]) for name in SHA256)


def _is(file: Path, digest: str) -> bool:
    return hashlib.sha256(file.read_bytes()).hexdigest() == digest


def _download(folder: Path) -> None:
    """Write the files of the package to `folder`."""
    other = f"or copy {' and '.join(SHA256)} of {PACKAGE} (folder dist) to {folder}"
    if shutil.which("npm") is None:
        raise ResourceError(
            f"{PACKAGE} is downloaded by npm, which is not installed; install Node.js, {other}"
        )
    with TemporaryDirectory() as scratch:
        command = ["npm", "pack", PACKAGE, "--silent", "--pack-destination", scratch]
        result = subprocess.run(command, capture_output=True, text=True)
        archives = [*Path(scratch).glob("*.tgz")]
        if result.returncode or not archives:
            reason = " ".join(result.stderr.split())[-160:] or f"status {result.returncode}"
            raise ResourceError(f"npm could not download {PACKAGE} ({reason}); try again, {other}")
        with tarfile.open(archives[0]) as archive:
            folder.mkdir(parents=True, exist_ok=True)
            for name, digest in SHA256.items():
                member = archive.extractfile(f"package/dist/{name}")
                content = member.read() if member else b""
                if hashlib.sha256(content).hexdigest() != digest:
                    raise ResourceError(f"{PACKAGE}: {name} has another digest than expected")
                with atomic_write(folder / name) as part:
                    part.write_bytes(content)
