"""Kills, starves, fills and corrupts real runs, and says how often they came to the same end as calm ones.

    python scripts/faults.py                         # each kind as often as docs/reliability.md has it
    python scripts/faults.py kill term --count 20    # some of them
    python scripts/faults.py chaos --minutes 60

Each trial is a process of its own, forked from this one, which has imported torch once.
"""

# ruff: noqa: B023 (a fault is forked away before the loop goes on)
import _venv  # noqa: F401 (restarts with .venv where this Python lacks the packages)

import argparse
import csv
import json
import logging
import os
import random
import resource
import runpy
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

from ddpm_lab.callbacks import checkpoints
from ddpm_lab.callbacks.checkpoints import list_checkpoints
from ddpm_lab.cli import main as commands
from ddpm_lab.cli import train as imported  # noqa: F401 (not in each trial)
from ddpm_lab.data import shards
from ddpm_lab.data.image_transform import ImageTransform
from ddpm_lab.runs import resume, run_config, run_record, weights
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.utils import safe_load
from ddpm_lab.utils.errors import CorruptFileError, UserError

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]
share = runpy.run_path(str(ROOT / "scripts" / "share.py"))["share"]

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
LOOKS = (
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
    "pixels, with averages, validation, images and FID": (*SMALL, *LOOKS),
    "latents": (*SMALL, *LOOKS, "codec=autoencoder", "codec.run=AUTOENCODER", "sampler.clip=null"),
    "accumulated gradients": (
        *SMALL,
        *LOOKS,
        "trainer.accumulate_grad_batches=3",
        "trainer.max_steps=30",
        "callbacks.checkpoints.every=5",
    ),
    "streamed from files, 0 to 3 workers": (
        *SMALL,
        *LOOKS,
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
    "autoencoder whose adversary begins at step 13": (
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
    "folders train and val, grey": (*BARE, "data=folder", "data.path=SPLITS", "data.channels=1"),
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
"""Data that is made of 120 images, and where in a folder each of them lies"""
Fault = Callable[[], Any]


def begin(folder: Path, overrides: Sequence[str], fault: Fault | None = None) -> int:
    """Trains in a process of its own, to which `fault` happens first; its number."""
    number = os.fork()
    if number:
        return number
    status = 1
    try:
        os.setpgrp()
        util._run_after_forkers()  # type: ignore[attr-defined]  # of what shares tensors with workers
        os.chdir(folder)
        sys.stdout, sys.stderr = (
            os.fdopen(i, "w", buffering=1, closefd=False) for i in (1, 2)
        )  # not those of pytest
        if fault:
            fault()
        status = commands.run_job("train", [*overrides], folder / "log.txt")
    finally:
        os._exit(status)


def stopped(number: int, by: int) -> int:
    """The exit status of a process that gets a signal; its children get a deadly one."""
    with suppress(ProcessLookupError):
        os.kill(number, by)
    status = ended(number)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(number, signal.SIGKILL)
    return status


def ended(number: int) -> int:
    """The exit status of a process, as a shell has it."""
    _, status = os.waitpid(number, 0)
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def result(run: Path) -> dict[str, Any]:
    """What must be the same in the end."""
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
    """Where; tensors must have the same bytes."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = (
            a.shape == b.shape and a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()
        )
        return [] if same else [path]
    if isinstance(a, dict) and isinstance(b, dict):
        if {*a} != {*b}:
            return [f"{path}: { ({*a} ^ {*b}) }"]
        return [where for key in a for where in differs(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [
            where
            for i, (x, y) in enumerate(zip(a, b, strict=True))
            for where in differs(x, y, f"{path}.{i}")
        ]
    return [] if a == b else [f"{path}: {str(a)[:60]} and {str(b)[:60]}"]


class Bench:
    """Calm runs to compare with, and room for trials."""

    def __init__(self, root: Path, seed: int = 0) -> None:
        self.root, self.random, self.trials = root, random.Random(seed), count()
        self.calm: dict[tuple[str, ...], tuple[Path, float]] = {}

    def room(self) -> Path:
        folder = self.root / f"trial-{next(self.trials):04d}"
        folder.mkdir(parents=True)
        return folder

    def overrides(self, kind: str) -> tuple[str, ...]:
        places = {"AUTOENCODER": self._autoencoder} | dict.fromkeys(DATA, self._data)
        parts = [word.partition("=") for word in KINDS[kind]]
        return tuple(
            f"{key}={places[value](value)}" if value in places else key + equals + value
            for key, equals, value in parts
        )

    def reference(self, overrides: tuple[str, ...]) -> tuple[Path, float]:
        """The run that nothing happened to, and how many seconds it took."""
        if overrides not in self.calm:
            folder, started = self.room(), time.monotonic()
            status = ended(begin(folder, overrides))
            assert status == 0, log(folder)
            self.calm[overrides] = (run_in(folder), time.monotonic() - started)
        return self.calm[overrides]

    def verdict(
        self,
        folder: Path,
        overrides: tuple[str, ...],
        again: Callable[[], Sequence[str]] | None = None,
    ) -> str:
        """Gives the command again. "" if it comes to the end of the calm run, or how it does not."""
        if not (
            folder / "run" / "metrics.json"
        ).is_file():  # or it came to its end before it could be killed
            status = ended(begin(folder, again() if again else overrides))
            if status:
                return f"exit {status}: {log(folder)[-300:]}"
        wrong = "; ".join(differs(result(self.reference(overrides)[0]), result(run_in(folder)))[:3])
        if not wrong:
            shutil.rmtree(folder)
        return wrong

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
        """120 images, as `name` of `DATA` has them."""
        folder = self.root / name
        if folder.is_dir():
            return folder
        images = [Image.effect_noise((8, 8), 20 + i) for i in range(120)]
        if name == "STORE":
            pixels = torch.stack([pil_to_tensor(image) for image in images])
            shards.write_store(
                folder,
                [(pixels, torch.arange(120) % 3)],
                ["a", "b", "c"],
                ImageTransform(8, 1),
                "noise",
            )
        elif name in ("LABELS", "PLAIN"):
            self._tables(folder, images, labelled=name == "LABELS")
        else:
            for i, image in enumerate(images):
                part = folder / DATA[name].format(
                    split="val" if i % 10 == 0 else "train", label=f"class-{i % 3}"
                )
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
    """The one that came to its end."""
    places = [*folder.glob("runs/*/*"), folder / "run"]
    return next(run for run in places if (run / "metrics.json").is_file())


def log(folder: Path) -> str:
    return (folder / "log.txt").read_text(errors="replace")


def kept(folder: Path) -> list[Path]:
    return [
        file
        for run in [*folder.glob("runs/*/*"), folder / "run"]
        for file in list_checkpoints(run / "checkpoints")
    ]


def kill(bench: Bench, trials: int) -> dict[str, list[str]]:
    """kill -9 at any moment, once or twice, then the same command again."""
    wrong: dict[str, list[str]] = {}
    for kind in KINDS:
        overrides = bench.overrides(kind)
        moved = ("data.workers", "hydra.run.dir=run") if "workers" in kind else ()

        def again(
            overrides: tuple[str, ...] = overrides, moved: tuple[str, ...] = moved
        ) -> list[str]:
            return [
                *overrides,
                *(
                    f"{word}={bench.random.randrange(4)}" if word == "data.workers" else word
                    for word in moved
                ),
            ]

        _, seconds = bench.reference(overrides)
        wrong[kind] = []
        for _ in range(-(-trials // len(KINDS))):
            folder = bench.room()
            for _ in range(bench.random.choice((1, 1, 2))):
                number = begin(folder, again())
                time.sleep(bench.random.uniform(0.1, 0.95) * seconds)
                stopped(number, signal.SIGKILL)
            torn = [str(file) for file in kept(folder) if not good(file)]
            wrong[kind].append(f"torn {torn}" if torn else bench.verdict(folder, overrides, again))
        print(
            f"  {kind}: {len(wrong[kind]) - sum(map(bool, wrong[kind]))} of {len(wrong[kind])}",
            flush=True,
        )
    return wrong


def torn(bench: Bench, trials: int) -> dict[str, list[str]]:
    """kill -9 within a save: while it is written, before it is looked at, before and after it gets its name."""
    overrides = bench.overrides(next(iter(KINDS)))
    wrong = []
    for _ in range(trials):
        folder, nth, where = (
            bench.room(),
            bench.random.randrange(1, 6),
            bench.random.choice(("write", "look", "name")),
        )
        share = bench.random.random()

        def fault(nth: int = nth, where: str = where, share: float = share) -> None:
            calls, write, rename = count(1), torch.save, Path.replace

            def save(content: Any, file: Path) -> None:
                write(content, file)
                if next(calls) == nth and where != "name":
                    if where == "write":
                        os.truncate(file, int(share * file.stat().st_size))
                    os.kill(os.getpid(), signal.SIGKILL)

            def replace(file: Path, target: Path) -> Path:
                named = str(target).endswith(f"-{10 * nth:06d}.ckpt") and where == "name"
                if named and share < 0.5:
                    os.kill(os.getpid(), signal.SIGKILL)
                found = rename(file, target)
                if named:
                    os.kill(os.getpid(), signal.SIGKILL)
                return found

            checkpoints.torch.save = save  # type: ignore[attr-defined]
            Path.replace = replace  # type: ignore[method-assign, assignment]

        status = ended(begin(folder, overrides, fault))
        bad = [str(file) for file in kept(folder) if not good(file)]
        wrong.append(
            f"exit {status}"
            if status != 137
            else f"torn {bad}"
            if bad
            else bench.verdict(folder, overrides)
        )
    return {"kill -9 within a save": wrong}


def good(file: Path) -> bool:
    try:
        return bool(safe_load.load_checkpoint(file))
    except UserError:
        return False


def term(bench: Bench, trials: int) -> dict[str, list[str]]:
    """SIGTERM or SIGINT at any moment: saved at the step that was reached, whatever it was doing, exit 143 or 130."""
    overrides = bench.overrides(next(iter(KINDS)))
    _, seconds = bench.reference(overrides)
    wrong: dict[str, list[str]] = {"SIGTERM": [], "SIGINT": []}
    for i in range(trials):
        name = ("SIGTERM", "SIGTERM", "SIGINT")[i % 3]
        folder = bench.room()
        number = begin(folder, overrides)
        time.sleep(bench.random.uniform(0.3, 0.9) * seconds)
        status = stopped(number, signal.Signals[name])
        told, saved = log(folder), kept(folder)
        if status != 128 + signal.Signals[name]:
            wrong[name].append(f"exit {status}: {told[-200:]}")
        elif (
            f"stopped by {name} at step {int(saved[0].stem[5:]) if saved else '?'};" not in told
            and "training" in told
        ):
            wrong[name].append(f"something was lost: {saved} {told[-200:]}")
        else:
            wrong[name].append(bench.verdict(folder, overrides))
    return wrong


def poison(bench: Bench, trials: int) -> dict[str, list[str]]:
    """Losses that are not finite, now and then or from some step on: nothing of it is ever saved."""
    overrides = bench.overrides(next(iter(KINDS)))
    wrong = []
    for i in range(trials):
        folder, lasting = bench.room(), i % 2
        steps = {bench.random.randrange(60) for _ in range(3)}
        value = bench.random.choice((float("nan"), float("inf")))

        def fault(steps: set[int] = steps, lasting: int = lasting, value: float = value) -> None:
            own = Diffusion.training_step

            def step(self: Diffusion, batch: Any, index: int) -> Any:
                found = own(self, batch, index)
                if index in steps or (lasting and index > min(steps)):
                    found["loss"] = found["loss"] * value
                return found

            Diffusion.training_step = step  # type: ignore[method-assign]

        status = ended(begin(folder, overrides, fault))
        bad = [str(file) for file in kept(folder) if not finite(file)]
        due = 4 if lasting and min(steps) < 55 else 0
        wrong.append(
            f"poisoned {bad}"
            if bad
            else ""
            if status == due
            else f"exit {status}: {log(folder)[-200:]}"
        )
        shutil.rmtree(folder, ignore_errors=not wrong[-1])
    return {"losses that are not finite": wrong}


def finite(file: Path) -> bool:
    return not next(checkpoints.find_non_finite(safe_load.load_checkpoint(file)), "")


def disk(bench: Bench, trials: int) -> dict[str, list[str]]:
    """A disk that takes no large file any more, for some saves or for good, then has room again."""
    overrides = bench.overrides(next(iter(KINDS)))
    wrong = []
    for _ in range(trials):
        folder, first = bench.room(), bench.random.randrange(2, 5)
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
        bad = [str(file) for file in kept(folder) if not good(file)]
        due = 3 if fails > 2 else 0
        if status != due or bad or (due and len(kept(folder)) != min(first - 1, 2)):
            wrong.append(f"exit {status}, kept {kept(folder)}, {bad}: {log(folder)[-200:]}")
        elif due:
            wrong.append(bench.verdict(folder, overrides))
        else:
            wrong.append(
                "; ".join(
                    differs(result(bench.reference(overrides)[0]), result(run_in(folder)))[:3]
                )
            )
    return {"full disk": wrong}


def damage(bench: Bench, trials: int) -> dict[str, list[str]]:
    """The newest checkpoint is cut, overwritten or has a bit flipped: the one before it is taken."""
    overrides = bench.overrides(next(iter(KINDS)))
    wrong = []
    for _ in range(trials):
        folder, at = bench.room(), bench.random.randrange(20, 60)

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
        start = content.find(b"FB") + 64  # in what a tensor holds, not in what fills the gaps
        content[chance.randrange(start, len(content) // 2)] ^= 1 << chance.randrange(8)
    elif how == "zero":
        content[where // 2 : where // 2 + 4096] = bytes(4096)
    else:
        content = bytearray()
    file.write_bytes(content)


def corrupt(bench: Bench, trials: int) -> dict[str, list[str]]:
    """One bit of a file is flipped, or it is cut, anywhere, or damaged in other ways: either every number is the same,
    or it is noticed, and the newest whole file is taken.
    """
    run, _ = bench.reference(bench.overrides(next(iter(KINDS))))
    shared = bench.room() / "share"
    share(str(run), shared)
    kept = bench.room() / "cache.safetensors"
    safe_load.save_tensors({"mean": torch.arange(64.0), "covariance": torch.eye(64)}, kept)
    seal = bench.room() / "cache.json"
    safe_load.write_sealed_json({"real": {"fid": 1.25}, "noise": {"fid": 325.0}}, seal)
    config, logging_was = run_config.load_config(str(run)), logging.root.manager.disable
    logging.disable(logging.WARNING)
    wrong: dict[str, list[str]] = {}
    for kind, hurt in DAMAGE.items():
        many = trials * (3 if kind == FLIP else 1)
        newest, older = list_checkpoints(run / "checkpoints")
        wrong[f"checkpoint: {kind}"] = [
            _recovers(bench, newest, older, hurt, config) for _ in range(many)
        ]
        for what, file, read in (
            (shared.name, shared / "weights.safetensors", safe_load.load_checkpoint),
            ("statistics", kept, safe_load.load_tensors),
            ("sealed JSON", seal, safe_load.read_sealed_json),
        ):
            wrong[f"{what}: {kind}"] = [_noticed(bench, file, hurt, read) for _ in range(many)]
    logging.disable(logging_was)
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
    """Reads a run with a damaged newest checkpoint as sample.py, evaluate.py and share.py do, then as train.py does."""
    folder = bench.room()
    (folder / "checkpoints").mkdir()
    shutil.copy(newest.parents[1] / "config.yaml", folder)
    shutil.copy(older, folder / "checkpoints")
    file = folder / "checkpoints" / newest.name
    file.write_bytes(_damaged(newest, hurt, bench.random))
    try:
        content, taken = weights.read_weights(folder)
        wrong = differs(safe_load.load_checkpoint(newest if taken == file else older), content)
        if resume.newest_checkpoint(folder, config) != taken or file.exists() != (taken == file):
            wrong.append("train.py takes another file")
        if taken != file and not file.with_name(f"{file.name}.damaged").is_file():
            wrong.append("it is not set aside")
    except Exception as error:
        wrong = [f"{type(error).__name__}: {error}"]
    if not wrong:
        shutil.rmtree(folder)
    return "; ".join(wrong[:3])


def _noticed(bench: Bench, file: Path, hurt: Any, read: Callable[[Path], Any]) -> str:
    """ "" if a damaged copy of `file` is refused as damaged, or says the same."""
    copy = bench.room() / file.name
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
    """kill -9 of two processes that train together (gloo), then the same command again."""
    overrides = [
        *bench.overrides(next(iter(KINDS))),
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.precision=32-true",
        "trainer.devices=2",
        "trainer.max_steps=60",
    ]
    command = [sys.executable, str(ROOT / "train.py"), *overrides]

    def launched(folder: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdout=(folder / "log.txt").open("w"),
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )

    calm, started = bench.room(), time.monotonic()
    assert launched(calm).wait() == 0, log(calm)
    seconds = time.monotonic() - started
    wrong = []
    for _ in range(trials):
        folder = bench.room()
        process = launched(folder)
        time.sleep(bench.random.uniform(0.4, 0.95) * seconds)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        status = launched(folder).wait()
        found = (
            "; ".join(differs(result(run_in(calm)), result(run_in(folder)))[:3])
            if status == 0
            else log(folder)
        )
        wrong.append(found)
        print(f"  {len(wrong)}: {found or 'the same'}", flush=True)
    return {"kill -9, two processes": wrong}


def chaos(bench: Bench, trials: int, minutes: float = 60) -> dict[str, list[str]]:
    """One long run that is killed, starved of disk and robbed of its newest checkpoint, over and over."""
    overrides = (
        *LOOKS,
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
    overrides = (
        *(
            f"trainer.max_steps={steps}" if word.startswith("trainer.max") else word
            for word in overrides
        ),
    )
    _, seconds = bench.reference(overrides)
    folder, until, happened = (
        bench.room(),
        time.monotonic() + 60 * minutes,
        {"killed": 0, "full": 0, "damaged": 0},
    )
    print(f"calm: {steps} steps in {seconds:.0f} s", flush=True)
    while time.monotonic() < until:
        full = bench.random.random() < 0.25

        def fault() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))

        number = begin(folder, overrides, fault if full else None)
        time.sleep(bench.random.uniform(5, 40))
        status = stopped(
            number, bench.random.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
        )
        happened["full"] += full
        happened["killed"] += status in (137, 143)
        if status == 0:
            break
        if len(kept(folder)) > 1 and bench.random.random() < 0.25:
            spoil(kept(folder)[0], bench.random)
            happened["damaged"] += 1
        print(f"  {happened}, {[file.stem for file in kept(folder)][:1]} of {steps}", flush=True)
    return {
        f"chaos, {steps} steps, {happened}": [
            bench.verdict(folder, overrides)
            if status
            else "; ".join(
                differs(result(bench.reference(overrides)[0]), result(run_in(folder)))[:3]
            )
        ]
    }


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(TRIALS))
    parser.add_argument("--count", type=int, help="trials of each kind")
    parser.add_argument("--minutes", type=float, default=60, help="of chaos")
    parser.add_argument("--seed", type=int, default=0)
    conditions = parser.parse_args()
    if unknown := {*conditions.kinds} - {*TRIALS}:
        parser.error(f"{', '.join(unknown)}: there is {', '.join(TRIALS)}")
    for variable in ("DDPM_LAB_CACHE", "XDG_STATE_HOME"):
        os.environ.setdefault(variable, tempfile.mkdtemp())
    failed = False
    for name in conditions.kinds or TRIALS:
        trial, usual = TRIALS[name]
        options = {"minutes": conditions.minutes} if name == "chaos" else {}
        root, started = Path(tempfile.mkdtemp(prefix=f"faults-{name}-")), time.monotonic()
        for what, wrong in trial(
            Bench(root, conditions.seed), conditions.count or usual, **options
        ).items():
            bad = [word for word in wrong if word]
            failed |= bool(bad)
            print(
                f"{name:<8} {what:<60} {len(wrong) - len(bad)} of {len(wrong)}",
                *bad[:5],
                sep="\n    ",
                flush=True,
            )
        print(
            f"         {time.monotonic() - started:.0f} s",
            "" if failed else shutil.rmtree(root) or "",
            flush=True,
        )
    sys.exit(failed)


if __name__ == "__main__":
    main()
