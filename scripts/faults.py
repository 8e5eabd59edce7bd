"""Fault injection: kill, starve and corrupt runs, and compare the results with undisturbed runs.

    python scripts/faults.py                         # all kinds, as in docs/reliability.md
    python scripts/faults.py kill term --count 20    # some of them
    python scripts/faults.py chaos --minutes 60

Each trial is a process of its own, forked from this one, which has imported torch once.
"""

import _venv  # noqa: F401 (restarts with .venv where this Python lacks the packages)

import argparse
import csv
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from multiprocessing import util
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

import ddpm_lab.cli.train  # noqa: F401 (imported once, not in each trial)
from ddpm_lab.callbacks import checkpoints
from ddpm_lab.cli import main as commands
from ddpm_lab.cli.share import share
from ddpm_lab.data import shards
from ddpm_lab.data.image_transform import ImageTransform
from ddpm_lab.runs import resume, run_config, run_record, weights
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.utils import safe_load
from ddpm_lab.utils.errors import CorruptFileError, UserError
from ddpm_lab.utils.safe_load import list_checkpoints

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]

SMALL = (
    "trainer.max_steps=60",
    "trainer.val_check_interval=15",
    "logger=csv",
    "model.channels=8",
    "sampler.steps=3",
    "model.multipliers=[1]",
    "data.batch_size=16",
    "callbacks.losses.every=7",
    "callbacks.checkpoints.every=10",
    "~callbacks.progress",
)
OBSERVED = (
    "callbacks.sample_grid.every=10",
    "callbacks.sample_grid.rows=1",
    "callbacks.fid.count=20",
    "callbacks.fid.every=20",
)
TINY = (
    *SMALL,
    "trainer.max_steps=30",
    "trainer.val_check_interval=10",
    "callbacks.checkpoints.every=5",
)
CLASSES = (
    *TINY,
    "extractor=none",
    "conditioner=label",
    "callbacks.sample_grid.every=10",
    "callbacks.sample_grid.rows=1",
)
BARE = (*CLASSES, "conditioner=none")
DEEP = tuple(word for word in TINY if not word.startswith("model.multipliers="))
CODEC = (*DEEP, "system=autoencoder", "callbacks.reconstructions.every=10")
KINDS: dict[str, tuple[str, ...]] = {
    "pixels, with averages, validation, images and FID": (*SMALL, *OBSERVED),
    "latents": (
        *SMALL,
        *OBSERVED,
        "codec=autoencoder",
        "codec.run=AUTOENCODER",
        "sampler.clip=null",
    ),
    "accumulated gradients": (
        *SMALL,
        *OBSERVED,
        "trainer.accumulate_grad_batches=3",
        "trainer.max_steps=30",
        "callbacks.checkpoints.every=5",
    ),
    "streamed from files, 0 to 3 workers": (
        *SMALL,
        *OBSERVED,
        "data=folder",
        "data.path=CLASSES",
        "data.channels=1",
        "data.flip=true",
        "data.in_memory=false",
        "extractor=none",
        "conditioner=label",
    ),
    "classifier": (*TINY, "system=classifier", "timestep_sampler=importance", "schedule.steps=20"),
    "autoencoder": (*CODEC, "model=autoencoder_kl"),
    "autoencoder with an adversary from step 13 on": (
        *CODEC,
        "model=autoencoder_vq",
        "system.adversarial=0.5",
        "system.start=13",
        "trainer.accumulate_grad_batches=2",
    ),
    "super-resolution": (*TINY, "conditioner=low_res", "extractor=none"),
    "text": (*TINY, "conditioner=text", "model=unet_cross", "extractor=none"),
    "importance sampling": (
        *TINY,
        "objective=vlb",
        "variance=learned_range",
        "timestep_sampler=importance",
        "schedule.steps=20",
        "extractor=none",
    ),
    "points": (
        *DEEP,
        "data=toy",
        "data.count=200",
        "sampler.clip=2",
        "callbacks.scatter_plot.every=10",
        "callbacks.scatter_plot.count=20",
        "callbacks.ode_nll.count=20",
    ),
    "flat folder": (*BARE, "data=folder", "data.path=FLAT"),
    "class folders": (*CLASSES, "data=folder", "data.path=CLASSES", "data.channels=1"),
    "folders train and val, gray": (*BARE, "data=folder", "data.path=SPLITS", "data.channels=1"),
    "store": (*CLASSES, "data=store", "data.path=STORE", "data.in_memory=false"),
    "hub, with labels": (*CLASSES, "data=hub", "data.name=LABELS"),
    "hub, without labels": (*BARE, "data=hub", "data.name=PLAIN", "data.split_test=null"),
}
DATA = {
    "FLAT": "",
    "CLASSES": "{label}",
    "SPLITS": "{split}",
    "STORE": "",
    "LABELS": "",
    "PLAIN": "",
}
"""Data sets of 120 images, and the subfolder of each image"""
Fault = Callable[[], Any]


def begin(folder: Path, overrides: Sequence[str], fault: Fault | None = None) -> int:
    """Start training in a new process, which calls `fault` first. Return the process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setpgrp()
        util._run_after_forkers()  # type: ignore[attr-defined]  # for tensors shared with workers
        os.chdir(folder)
        streams = (os.fdopen(i, "w", buffering=1, closefd=False) for i in (1, 2))
        sys.stdout, sys.stderr = streams  # instead of those of pytest
        if fault:
            fault()
        status = commands.run_job("train", [*overrides], folder / "log.txt")
    finally:
        os._exit(status)


def stopped(pid: int, number: int) -> int:
    """Send a process the signal `number`, kill its children, and return its exit status."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
    status = ended(pid)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    return status


def ended(pid: int) -> int:
    """Wait for a process, and return its exit status as in a shell."""
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def result(run: Path) -> dict[str, Any]:
    """Return everything that must not depend on interruptions."""
    content = safe_load.load_checkpoint(list_checkpoints(run / "checkpoints")[0])
    content["callbacks"]["Checkpoints"]["seconds"] = 0
    for key in ("history", "learner", "run_id"):
        content.pop(key)
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    history = [
        {key: value for key, value in row.items() if value and key != "images_per_second"}
        for row in rows
    ]
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["training"]["seconds"] = 0
    assert metrics.pop("run_id") == run_record.read_record(run).id
    images = {file.name: file.read_bytes() for file in (run / "images").glob("*.png")}
    return {"checkpoint": content, "history": history, "metrics": metrics, "images": images}


def differs(a: Any, b: Any, path: str = "") -> list[str]:
    """Return the paths of all differences; tensors must have the same bytes."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same_type = (a.shape, a.dtype) == (b.shape, b.dtype)
        return [] if same_type and a.numpy().tobytes() == b.numpy().tobytes() else [path]
    if isinstance(a, dict) and isinstance(b, dict):
        if {*a} != {*b}:
            return [f"{path}: { ({*a} ^ {*b}) }"]
        pairs = [(key, a[key], b[key]) for key in a]
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = [(i, x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    else:
        return [] if a == b else [f"{path}: {str(a)[:60]} and {str(b)[:60]}"]
    return [place for key, x, y in pairs for place in differs(x, y, f"{path}.{key}")]


class Bench:
    """Undisturbed reference runs, and directories for trials."""

    def __init__(self, root: Path, seed: int = 0) -> None:
        self.root, self.random, self.trials = root, random.Random(seed), count()
        self.references: dict[tuple[str, ...], tuple[Path, float]] = {}

    def new_folder(self) -> Path:
        folder = self.root / f"trial-{next(self.trials):04d}"
        folder.mkdir(parents=True)
        return folder

    def overrides(self, kind: str) -> tuple[str, ...]:
        makers = {"AUTOENCODER": self._autoencoder} | dict.fromkeys(DATA, self._data)
        parts = [word.partition("=") for word in KINDS[kind]]
        return tuple(
            f"{key}={makers[value](value)}" if value in makers else key + equals + value
            for key, equals, value in parts
        )

    def reference(self, overrides: tuple[str, ...]) -> tuple[Path, float]:
        """Return an undisturbed run and its duration in seconds."""
        if overrides not in self.references:
            folder, start = self.new_folder(), time.monotonic()
            status = ended(begin(folder, overrides))
            assert status == 0, log(folder)
            self.references[overrides] = (run_in(folder), time.monotonic() - start)
        return self.references[overrides]

    def difference(self, folder: Path, overrides: tuple[str, ...]) -> str:
        """Return the first differences of the run in `folder` from the reference, or ""."""
        reference, _ = self.reference(overrides)
        return "; ".join(differs(result(reference), result(run_in(folder)))[:3])

    def verdict(
        self,
        folder: Path,
        overrides: tuple[str, ...],
        again: Callable[[], Sequence[str]] | None = None,
    ) -> str:
        """Repeat the command. Return "" if the result is that of the reference, else the error."""
        finished = (folder / "run" / "metrics.json").is_file()  # it ended before the kill
        if not finished:
            status = ended(begin(folder, again() if again else overrides))
            if status:
                return f"exit {status}: {log(folder)[-300:]}"
        difference = self.difference(folder, overrides)
        if not difference:
            shutil.rmtree(folder)
        return difference

    def _autoencoder(self, name: str) -> Path:
        folder = self.root / "autoencoder"
        if not folder.is_dir():
            folder.mkdir()
            overrides = (
                "system=autoencoder",
                "model=autoencoder_kl",
                "callbacks=autoencoder",
                "trainer.max_steps=20",
                "trainer.val_check_interval=10",
                "logger=csv",
                "hydra.run.dir=run",
            )
            assert ended(begin(folder, overrides)) == 0, log(folder)
        return folder / "run"

    def _data(self, name: str) -> Path:
        """Write 120 images in the layout `name` of `DATA`."""
        folder = self.root / name
        if folder.is_dir():
            return folder
        images = [Image.effect_noise((8, 8), 20 + i) for i in range(120)]
        if name == "STORE":
            pixels = torch.stack([pil_to_tensor(image) for image in images])
            parts, names = [(pixels, torch.arange(120) % 3)], ["a", "b", "c"]
            shards.write_store(folder, parts, names, ImageTransform(8, 1), "noise")
        elif name in ("LABELS", "PLAIN"):
            self._tables(folder, images, labelled=name == "LABELS")
        else:
            for i, image in enumerate(images):
                split = "val" if i % 10 == 0 else "train"
                part = folder / DATA[name].format(split=split, label=f"class-{i % 3}")
                part.mkdir(parents=True, exist_ok=True)
                image.convert("RGB" if name == "FLAT" else "L").save(part / f"{i}.png")
        return folder

    def _tables(self, folder: Path, images: Sequence[Image.Image], labelled: bool) -> None:
        import datasets

        folder.mkdir()
        columns = {"image": [image.convert("RGB") for image in images]}
        features = {"image": datasets.Image()}
        if labelled:
            columns["label"] = [i % 3 for i in range(len(images))]
            features["label"] = datasets.ClassLabel(names=["a", "b", "c"])
        table = datasets.Dataset.from_dict(columns, datasets.Features(features))
        for split, rows in {"train": range(100), "test": range(100, 120)}.items():
            if labelled or split == "train":
                table.select(rows).to_parquet(folder / f"{split}.parquet")


def run_in(folder: Path) -> Path:
    """Return the finished run in `folder`."""
    runs = [*folder.glob("runs/*/*"), folder / "run"]
    return next(run for run in runs if (run / "metrics.json").is_file())


def log(folder: Path) -> str:
    return (folder / "log.txt").read_text(errors="replace")


def kept(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`."""
    runs = [*folder.glob("runs/*/*"), folder / "run"]
    return [file for run in runs for file in list_checkpoints(run / "checkpoints")]


def torn_files(folder: Path) -> list[str]:
    return [str(file) for file in kept(folder) if not good(file)]


def kill(bench: Bench, trials: int) -> dict[str, list[str]]:
    """Send SIGKILL at random moments, once or twice, then repeat the command."""
    wrong: dict[str, list[str]] = {}
    for kind in KINDS:
        overrides = bench.overrides(kind)

        def again(overrides: tuple[str, ...] = overrides, kind: str = kind) -> list[str]:
            if "workers" not in kind:
                return [*overrides]
            workers = f"data.workers={bench.random.randrange(4)}"
            return [*overrides, workers, "hydra.run.dir=run"]

        _, seconds = bench.reference(overrides)
        wrong[kind] = []
        for _ in range(-(-trials // len(KINDS))):
            folder = bench.new_folder()
            for _ in range(bench.random.choice((1, 1, 2))):
                pid = begin(folder, again())
                time.sleep(bench.random.uniform(0.1, 0.95) * seconds)
                stopped(pid, signal.SIGKILL)
            torn = torn_files(folder)
            wrong[kind].append(f"torn {torn}" if torn else bench.verdict(folder, overrides, again))
        passed = len(wrong[kind]) - sum(map(bool, wrong[kind]))
        print(f"  {kind}: {passed} of {len(wrong[kind])}", flush=True)
    return wrong


def torn(bench: Bench, trials: int) -> dict[str, list[str]]:
    """Send SIGKILL within a save: while writing, before verification, around the rename."""
    overrides = bench.overrides(next(iter(KINDS)))
    wrong = []
    for _ in range(trials):
        folder, nth = bench.new_folder(), bench.random.randrange(1, 6)
        stage = bench.random.choice(("write", "verify", "rename"))
        share = bench.random.random()

        def fault(nth: int = nth, stage: str = stage, share: float = share) -> None:
            calls, write, rename = count(1), torch.save, Path.replace

            def save(content: Any, file: Path) -> None:
                write(content, file)
                if next(calls) == nth and stage != "rename":
                    if stage == "write":
                        os.truncate(file, int(share * file.stat().st_size))
                    os.kill(os.getpid(), signal.SIGKILL)

            def replace(file: Path, target: Path) -> Path:
                due = str(target).endswith(f"-{10 * nth:06d}.ckpt") and stage == "rename"
                if due and share < 0.5:
                    os.kill(os.getpid(), signal.SIGKILL)
                path = rename(file, target)
                if due:
                    os.kill(os.getpid(), signal.SIGKILL)
                return path

            checkpoints.torch.save = save  # type: ignore[attr-defined]
            Path.replace = replace  # type: ignore[method-assign, assignment]

        status = ended(begin(folder, overrides, fault))
        if status != 137:
            wrong.append(f"exit {status}")
        elif bad := torn_files(folder):
            wrong.append(f"torn {bad}")
        else:
            wrong.append(bench.verdict(folder, overrides))
    return {"kill -9 within a save": wrong}


def good(file: Path) -> bool:
    try:
        return bool(safe_load.load_checkpoint(file))
    except UserError:
        return False


def term(bench: Bench, trials: int) -> dict[str, list[str]]:
    """Send SIGTERM or SIGINT at random moments: exit 143 or 130, checkpoint of the current step."""
    overrides = bench.overrides(next(iter(KINDS)))
    _, seconds = bench.reference(overrides)
    wrong: dict[str, list[str]] = {"SIGTERM": [], "SIGINT": []}
    for i in range(trials):
        name = ("SIGTERM", "SIGTERM", "SIGINT")[i % 3]
        folder = bench.new_folder()
        pid = begin(folder, overrides)
        time.sleep(bench.random.uniform(0.3, 0.9) * seconds)
        status = stopped(pid, signal.Signals[name])
        output, saved = log(folder), kept(folder)
        if status != 128 + signal.Signals[name]:
            wrong[name].append(f"exit {status}: {output[-200:]}")
        elif (
            f"stopped by {name} at step {int(saved[0].stem[5:]) if saved else '?'};" not in output
            and "training" in output
        ):
            wrong[name].append(f"steps were lost: {saved} {output[-200:]}")
        else:
            wrong[name].append(bench.verdict(folder, overrides))
    return wrong


def poison(bench: Bench, trials: int) -> dict[str, list[str]]:
    """Inject non-finite losses at a single step, or at all steps after one: they are never
    saved."""
    overrides = bench.overrides(next(iter(KINDS)))
    wrong = []
    for i in range(trials):
        folder, lasting = bench.new_folder(), i % 2
        steps = {bench.random.randrange(60) for _ in range(3)}
        value = bench.random.choice((float("nan"), float("inf")))

        def fault(steps: set[int] = steps, lasting: int = lasting, value: float = value) -> None:
            own = Diffusion.training_step

            def step(self: Diffusion, batch: Any, index: int) -> Any:
                output = own(self, batch, index)
                if index in steps or (lasting and index > min(steps)):
                    output["loss"] = output["loss"] * value
                return output

            Diffusion.training_step = step  # type: ignore[method-assign]

        status = ended(begin(folder, overrides, fault))
        bad = [str(file) for file in kept(folder) if not finite(file)]
        due = 4 if lasting and min(steps) < 55 else 0
        error = "" if status == due else f"exit {status}: {log(folder)[-200:]}"
        wrong.append(f"poisoned {bad}" if bad else error)
        shutil.rmtree(folder, ignore_errors=not wrong[-1])
    return {"non-finite losses": wrong}


def finite(file: Path) -> bool:
    return not next(safe_load.find_non_finite(safe_load.load_checkpoint(file)), "")


def disk(bench: Bench, trials: int) -> dict[str, list[str]]:
    """Limit the file size, for some saves or permanently, then remove the limit."""
    overrides = bench.overrides(next(iter(KINDS)))
    wrong = []
    for _ in range(trials):
        folder, first = bench.new_folder(), bench.random.randrange(2, 5)
        fails = bench.random.choice((1, 2, 99))

        def fault(first: int = first, fails: int = fails) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            calls, write = count(1), torch.save

            def save(content: Any, file: Path) -> None:
                full = first <= next(calls) < first + fails
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096 if full else -1, -1))
                try:
                    write(content, file)
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))

            checkpoints.torch.save = save  # type: ignore[attr-defined]

        status = ended(begin(folder, overrides, fault))
        bad, files = torn_files(folder), kept(folder)
        due = 3 if fails > 2 else 0
        if status != due or bad or (due and len(files) != min(first - 1, 2)):
            wrong.append(f"exit {status}, checkpoints {files}, {bad}: {log(folder)[-200:]}")
        elif due:
            wrong.append(bench.verdict(folder, overrides))
        else:
            wrong.append(bench.difference(folder, overrides))
    return {"full disk": wrong}


def damage(bench: Bench, trials: int) -> dict[str, list[str]]:
    """Truncate, overwrite or flip a bit of the newest checkpoint: the previous one is used."""
    overrides = bench.overrides(next(iter(KINDS)))
    wrong = []
    for _ in range(trials):
        folder, at = bench.new_folder(), bench.random.randrange(20, 60)

        def fault(at: int = at) -> None:
            own = Diffusion.training_step

            def step(self: Diffusion, batch: Any, index: int) -> Any:
                if index == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return own(self, batch, index)

            Diffusion.training_step = step  # type: ignore[method-assign]

        ended(begin(folder, overrides, fault))
        spoil(kept(folder)[0], bench.random)
        wrong.append(bench.verdict(folder, overrides))
    return {"damaged newest checkpoint": wrong}


def spoil(file: Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    where = chance.randrange(len(content))
    how = chance.choice(("cut", "flip", "zero", "empty"))
    if how == "cut":
        content = content[:where]
    elif how == "flip":
        start = content.find(b"FB") + 64  # within a tensor, not in the padding
        content[chance.randrange(start, len(content) // 2)] ^= 1 << chance.randrange(8)
    elif how == "zero":
        content[where // 2 : where // 2 + 4096] = bytes(4096)
    else:
        content = bytearray()
    file.write_bytes(content)


def corrupt(bench: Bench, trials: int) -> dict[str, list[str]]:
    """Flip a bit of a file, truncate it or corrupt it otherwise.

    Either no number changes, or the corruption is detected and the newest intact file is used.
    """
    run, _ = bench.reference(bench.overrides(next(iter(KINDS))))
    shared = bench.new_folder() / "share"
    share(str(run), shared)
    cache = bench.new_folder() / "cache.safetensors"
    safe_load.save_tensors({"mean": torch.arange(64.0), "covariance": torch.eye(64)}, cache)
    seal = bench.new_folder() / "cache.json"
    safe_load.write_sealed_json({"real": {"fid": 1.25}, "noise": {"fid": 325.0}}, seal)
    config, level = run_config.load_config(str(run)), logging.root.manager.disable
    logging.disable(logging.WARNING)
    wrong: dict[str, list[str]] = {}
    for kind, hurt in DAMAGE.items():
        repeats = trials * (3 if kind == FLIP else 1)
        newest, older = list_checkpoints(run / "checkpoints")
        wrong[f"checkpoint: {kind}"] = [
            _recovers(bench, newest, older, hurt, config) for _ in range(repeats)
        ]
        for what, file, read in (
            (shared.name, shared / "weights.safetensors", safe_load.load_checkpoint),
            ("statistics", cache, safe_load.load_tensors),
            ("sealed JSON", seal, safe_load.read_sealed_json),
        ):
            wrong[f"{what}: {kind}"] = [_noticed(bench, file, hurt, read) for _ in range(repeats)]
    logging.disable(level)
    return wrong


FLIP = "one bit flipped"
DAMAGE: dict[str, Callable[[bytearray, random.Random], Any]] = {
    FLIP: lambda content, chance: content.__setitem__(
        at := chance.randrange(len(content)), content[at] ^ 1 << chance.randrange(8)
    ),
    "cut": lambda content, chance: content.__delitem__(slice(chance.randrange(len(content)), None)),
    "bytes appended": lambda content, chance: content.extend(
        chance.randbytes(chance.choice((1, 22, 70_000)))
    ),
    "zeros, up to 4096": lambda content, chance: content.__setitem__(
        slice(at := chance.randrange(len(content)), at + 4096), bytes(min(4096, len(content) - at))
    ),
    "other content": lambda content, chance: content.__setitem__(
        slice(None),
        chance.choice(
            (
                b"\0" * 1000,
                chance.randbytes(1000),
                b"PK\3\4" + chance.randbytes(100),
                b"version https://git-lfs.github.com/spec/v1\n",
            )
        ),
    ),
}


def _damaged(
    file: Path, hurt: Callable[[bytearray, random.Random], Any], chance: random.Random
) -> bytes:
    content = bytearray(file.read_bytes())
    hurt(content, chance)
    return bytes(content)


def _recovers(bench: Bench, newest: Path, older: Path, hurt: Any, config: Any) -> str:
    """Read a run with a corrupt newest checkpoint like sample.py, then like train.py."""
    folder = bench.new_folder()
    (folder / "checkpoints").mkdir()
    shutil.copy(newest.parents[1] / "config.yaml", folder)
    shutil.copy(older, folder / "checkpoints")
    file = folder / "checkpoints" / newest.name
    file.write_bytes(_damaged(newest, hurt, bench.random))
    try:
        content, source = weights.read_weights(folder)
        wrong = differs(safe_load.load_checkpoint(newest if source == file else older), content)
        if resume.newest_checkpoint(folder, config) != source or file.exists() != (source == file):
            wrong.append("train.py uses another file")
        if source != file and not file.with_name(f"{file.name}.damaged").is_file():
            wrong.append("it is not renamed")
    except Exception as error:
        wrong = [f"{type(error).__name__}: {error}"]
    if not wrong:
        shutil.rmtree(folder)
    return "; ".join(wrong[:3])


def _noticed(bench: Bench, file: Path, hurt: Any, read: Callable[[Path], Any]) -> str:
    """Return "" if a corrupt copy of `file` is refused or has the same content."""
    copy = bench.new_folder() / file.name
    copy.write_bytes(_damaged(file, hurt, bench.random))
    try:
        wrong = differs(read(file), read(copy))
    except CorruptFileError:
        wrong = []
    except Exception as error:
        wrong = [f"{type(error).__name__}: {error}"]
    if not wrong:
        shutil.rmtree(copy.parent)
    return "; ".join(wrong[:3])


def ranks(bench: Bench, trials: int) -> dict[str, list[str]]:
    """Send SIGKILL to two processes that train together (gloo), then repeat the command."""
    overrides = [
        *bench.overrides(next(iter(KINDS))),
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.precision=32-true",
        "trainer.devices=2",
        "trainer.max_steps=60",
    ]
    command = [sys.executable, str(ROOT / "train.py"), *overrides]

    def launch(folder: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdout=(folder / "log.txt").open("w"),
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )

    reference, start = bench.new_folder(), time.monotonic()
    assert launch(reference).wait() == 0, log(reference)
    seconds = time.monotonic() - start
    wrong = []
    for _ in range(trials):
        folder = bench.new_folder()
        process = launch(folder)
        time.sleep(bench.random.uniform(0.4, 0.95) * seconds)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if launch(folder).wait():
            wrong.append(log(folder))
        else:
            pair = result(run_in(reference)), result(run_in(folder))
            wrong.append("; ".join(differs(*pair)[:3]))
        print(f"  {len(wrong)}: {wrong[-1] or 'identical'}", flush=True)
    return {"kill -9, two processes": wrong}


def chaos(bench: Bench, trials: int, minutes: float = 60) -> dict[str, list[str]]:
    """Kill one long run, fill its disk and corrupt its newest checkpoint, repeatedly."""
    overrides = (
        *OBSERVED,
        "trainer.val_check_interval=50",
        "logger=csv",
        "model.channels=16",
        "sampler.steps=5",
        "trainer.max_steps=200",
        "callbacks.checkpoints.every=25",
        "~callbacks.progress",
    )
    _, seconds = bench.reference(overrides)
    steps = int(200 * 60 * minutes / 3 / seconds)
    overrides = (*overrides, f"trainer.max_steps={steps}")
    _, seconds = bench.reference(overrides)
    folder, counts = bench.new_folder(), {"killed": 0, "full": 0, "damaged": 0}
    end = time.monotonic() + 60 * minutes
    print(f"undisturbed: {steps} steps in {seconds:.0f} s", flush=True)
    while time.monotonic() < end:
        full = bench.random.random() < 0.25

        def fault() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))

        pid = begin(folder, overrides, fault if full else None)
        time.sleep(bench.random.uniform(5, 40))
        number = bench.random.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
        status = stopped(pid, number)
        counts["full"] += full
        counts["killed"] += status in (137, 143)
        if status == 0:
            break
        if len(kept(folder)) > 1 and bench.random.random() < 0.25:
            spoil(kept(folder)[0], bench.random)
            counts["damaged"] += 1
        print(f"  {counts}, {[file.stem for file in kept(folder)][:1]} of {steps}", flush=True)
    wrong = bench.verdict(folder, overrides) if status else bench.difference(folder, overrides)
    return {f"chaos, {steps} steps, {counts}": [wrong]}


TRIALS: dict[str, tuple[Callable[..., dict[str, list[str]]], int]] = {
    "kill": (kill, 68),
    "torn": (torn, 200),
    "term": (term, 45),
    "poison": (poison, 50),
    "disk": (disk, 20),
    "damage": (damage, 20),
    "corrupt": (corrupt, 100),
    "ranks": (ranks, 20),
    "chaos": (chaos, 1),
}


def run_trials(name: str, arguments: argparse.Namespace) -> bool:
    """Run the trials of a kind and print their outcomes. Return whether all passed."""
    trial, usual = TRIALS[name]
    options = {"minutes": arguments.minutes} if name == "chaos" else {}
    root, start = Path(tempfile.mkdtemp(prefix=f"faults-{name}-")), time.monotonic()
    bench = Bench(root, arguments.seed)
    passed = True
    for fault, wrong in trial(bench, arguments.count or usual, **options).items():
        bad = [error for error in wrong if error]
        passed &= not bad
        counts = f"{len(wrong) - len(bad)} of {len(wrong)}"
        print(f"{name:<8} {fault:<60} {counts}", *bad[:5], sep="\n    ", flush=True)
    if passed:
        shutil.rmtree(root)
    print(f"         {time.monotonic() - start:.0f} s", flush=True)
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(TRIALS))
    parser.add_argument("--count", type=int, help="trials of each kind")
    parser.add_argument("--minutes", type=float, default=60, help="duration of chaos")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if unknown := {*arguments.kinds} - {*TRIALS}:
        parser.error(f"{', '.join(unknown)}: choose from {', '.join(TRIALS)}")
    for variable in ("DDPM_LAB_CACHE", "XDG_STATE_HOME"):
        os.environ.setdefault(variable, tempfile.mkdtemp())
    outcomes = [run_trials(name, arguments) for name in arguments.kinds or TRIALS]
    sys.exit(not all(outcomes))


if __name__ == "__main__":
    main()
