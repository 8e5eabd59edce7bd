"""How fast it is: python scripts/benchmark.py [SECTION ...] [KEY=VALUE ...]

step        a training step under the Trainer with default callbacks, against bare loops of the same network, peers'
            loops of the same architecture, and the matrix and convolution ceilings of the machine
options     a bare step against the same without what makes it fast, one at a time, or compiled
profile     where a bare step spends its time
sampling    what samplers add to the calls of the network, with peers' beside; images per second
guidance    a classifier-free guided guess against one call with twice the batch, and against two calls
start       seconds from the shell to imports and to the end of a first step
evaluation  samples per second of FID, and the share of the network's calls in it

All of them where none is named; what cost grows with is in benchmark_scale.py. Keys are those of `train.py`. What is
compared runs in one process in turn, A B C, C B A, because machines are noisy: printed are medians, the median over
rounds of the ratio within a round, and the ratio of the fastest visits. Peers are measured where they can be imported
(pip install -e '.[peers]'). Everything is written to benchmark.json as well.
"""

import _venv  # noqa: F401 (restarts with .venv where this Python lacks the packages)

import copy
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from ddpm_lab.callbacks.loggers import finish
from ddpm_lab.config.derived_defaults import build_system
from ddpm_lab.config.instantiate import build
from ddpm_lab.config.overrides import CONFIGS
from ddpm_lab.data.module import Data, TrainBatches
from ddpm_lab.diffusion import langevin, ode_solvers, samplers
from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import Denoiser
from ddpm_lab.diffusion.guidance import ClassifierFreeGuidance
from ddpm_lab.diffusion.predictions import Eps
from ddpm_lab.diffusion.variances import BetaTilde
from ddpm_lab.systems.data_module import DataModule
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.utils.shell import quiet_libraries

ROUNDS, VISIT = 7, 0.6
"""Visits to each candidate, and about how many seconds each lasts"""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Call = Callable[[], object]
Row = dict[str, float]


def clock() -> float:
    """Seconds, when all is done that was asked of the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(call: Call, calls: int = 1) -> float:
    """Of one call, the mean of so many."""
    start = clock()
    for _ in range(calls):
        call()
    return (clock() - start) / calls


def fitting(call: Call) -> int:
    """Warms up; how many calls make a visit."""
    call()
    return max(1, round(VISIT / min(seconds(call), seconds(call))))


class Visits:
    """Seconds of a call of each candidate, visit by visit, the first being what others are compared with."""

    def __init__(self, candidates: dict[str, Call]) -> None:
        self.candidates = candidates
        self.calls = {name: fitting(call) for name, call in candidates.items()}
        self.seconds: dict[str, list[float]] = {name: [] for name in candidates}

    def round(self) -> None:
        names = [*self.candidates]
        for name in names if len(self.seconds[names[0]]) % 2 else names[::-1]:
            self.seconds[name].append(seconds(self.candidates[name], self.calls[name]))

    def rows(self) -> dict[str, Row]:
        first = next(iter(self.seconds.values()))
        return {
            name: {
                "ms": 1e3 * statistics.median(times),
                "speed": statistics.median(
                    one / other for one, other in zip(first, times, strict=True)
                ),
                "fastest": min(first) / min(times),
            }
            for name, times in self.seconds.items()
        }


def compared(candidates: dict[str, Call], rounds: int = ROUNDS) -> dict[str, Row]:
    visits = Visits(candidates)
    for _ in range(rounds):
        visits.round()
    return visits.rows()


def gflop(call: Call) -> float:
    """Matrix products and convolutions in a call, 2 for a multiplication and an addition."""
    # Of the fused attention of a CPU the counter knows nothing
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def training(
    loss: Callable[[], Tensor],
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Call,
    cast: AbstractContextManager[Any],
) -> Call:
    """A step of a bare loop."""

    def step() -> None:
        with cast:
            found = loss()
        found.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average()

    return step


def cast(precision: Any) -> AbstractContextManager[Any]:
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16-mixed")


def made(overrides: list[str]) -> tuple[Data, Diffusion, DictConfig]:
    config = compose("train", overrides)
    data = build(config, "data")
    return data, build_system(config, data), config


def bare(
    system: Diffusion,
    data: Data,
    precision: Any,
    compiled: str | None = None,
    *,
    together: bool = True,
    batches: Iterator[dict[str, Tensor]] | None = None,
) -> Call:
    """Ours without the Trainer; `together`, all weights are averaged in one call."""
    system = copy.deepcopy(system).to(DEVICE)
    system.stream = torch.Generator(DEVICE)
    if compiled:
        system.denoiser.network.compile(mode=compiled)
    weights = [parameter.data for parameter in system.denoiser.parameters()]
    averages = [weight.clone() for weight in weights]
    served = batches or iter(
        TrainBatches(data.train.to(DEVICE), data.batch_size, flip=False, seed=0)
    )

    def average() -> None:
        if together:
            torch._foreach_lerp_(averages, weights, 0.01)
        else:
            for mine, weight in zip(averages, weights, strict=True):
                mine.lerp_(weight, 0.01)

    return training(
        lambda: system.training_step(next(served), 0)["loss"],
        system,
        system.optimizer(system.parameters()),
        average,
        cast(precision),
    )


def image_batches(data: Data) -> Iterator[list[Tensor]]:
    """As peers' scripts serve them."""
    x0, labels = (
        TrainBatches(data.train, data.train.size, flip=False, seed=0).__iter__().__next__()[k]
        for k in ("x0", "label")
    )
    while True:
        yield from DataLoader(
            TensorDataset(x0, labels), data.batch_size, shuffle=True, drop_last=True
        )


def twin(config: DictConfig, data: Data) -> nn.Module:
    """diffusers' U-Net of the architecture of `config.model`."""
    from diffusers import UNet2DModel

    model = config.model
    levels = len(model.multipliers)
    sides = [data.shape[1] // 2**i for i in range(levels)]
    hears = [side in (model.attention or [sides[-1]]) for side in sides]
    return UNet2DModel(
        sample_size=data.shape[1],
        in_channels=data.shape[0],
        out_channels=data.shape[0],
        layers_per_block=model.blocks,
        block_out_channels=[model.channels * m for m in model.multipliers],
        down_block_types=["AttnDownBlock2D" if heard else "DownBlock2D" for heard in hears],
        up_block_types=["AttnUpBlock2D" if heard else "UpBlock2D" for heard in hears[::-1]],
        norm_num_groups=min(32, model.channels // 4),
        num_class_embeds=data.classes,
        dropout=model.dropout,
        attention_head_dim=model.head_channels
        or model.channels * model.multipliers[-1] // model.heads,
        resnet_time_scale_shift="scale_shift" if model.scale_shift else "default",
    ).to(DEVICE)


def diffusers(config: DictConfig, data: Data, precision: Any) -> Call:
    """The loop of its examples/unconditional_image_generation, with EMA."""
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    network, scheduler, batches = twin(config, data), DDPMScheduler(1000), image_batches(data)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
    )
    rates = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=100_000)
    ema = EMAModel(
        network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75
    )
    ema.to(DEVICE)

    def loss() -> Tensor:
        x0, labels = (part.to(DEVICE) for part in next(batches))
        eps = torch.randn_like(x0)
        t = torch.randint(0, 1000, (len(x0),), device=DEVICE).long()
        return F.mse_loss(
            network(scheduler.add_noise(x0, eps, t), t, class_labels=labels).sample.float(), eps
        )

    def average() -> None:
        rates.step()
        ema.step(network.parameters())

    return training(loss, network, optimizer, average, cast(precision))


def lucidrains(config: DictConfig, data: Data, precision: Any) -> Call:
    """The loop of denoising_diffusion_pytorch.Trainer; its network has another kind of attention, and fewer FLOPs."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    network = Unet(
        config.model.channels, dim_mults=tuple(config.model.multipliers), channels=data.shape[0]
    )
    module = GaussianDiffusion(network, image_size=data.shape[1], timesteps=1000).to(DEVICE)
    ema, batches = EMA(module, beta=0.995, update_every=10).to(DEVICE), image_batches(data)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4, betas=(0.9, 0.99))
    return training(
        lambda: module(next(batches)[0].to(DEVICE) / 2 + 0.5),
        module,
        optimizer,
        ema.update,
        cast(precision),
    )


def ceilings(precision: Any) -> dict[str, tuple[Call, float]]:
    """Large products, and their GFLOP."""
    small = DEVICE.type == "cpu"
    kind = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    size = 1024 if small else 8192
    a, b = (torch.randn(size, size, device=DEVICE, dtype=kind) for _ in range(2))
    images, width, side = (8, 128, 32) if small else (256, 256, 32)
    convolution = nn.Conv2d(width, width, 3, padding=1).to(
        DEVICE, kind, memory_format=torch.channels_last
    )
    x = torch.randn(images, width, side, side, device=DEVICE, dtype=kind).to(
        memory_format=torch.channels_last
    )

    def convolve() -> Tensor:
        with torch.no_grad():
            return convolution(x)

    return {
        name: (call, gflop(call))
        for name, call in {"matrix": lambda: a @ b, "convolution": convolve}.items()
    }


class Interleave(L.Callback):
    """Times the Trainer from one visit to the next, and lets others have their turn in between."""

    def __init__(self, others: Visits, calls: int) -> None:
        self.others, self.calls, self.seconds = others, calls, []

    def on_train_start(self, *args: Any) -> None:
        self.since = clock()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step % self.calls == 0:
            if trainer.global_step > self.calls:  # the first visit warms up
                self.seconds.append((clock() - self.since) / self.calls)
                self.others.round()
            self.since = clock()


def step(overrides: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        run_count = (
            "trainer.val_check_interval",
            "callbacks.sample_grid.every",
            "callbacks.checkpoints.every",
        )
        never = [f"{key}=1000000000" for key in run_count]
        config = compose(
            "train",
            [f"trainer.default_root_dir={folder}", *never, "~callbacks.fid", *overrides],
        )
        data = build(config, "data")
        system, precision = build_system(config, data), config.trainer.precision
        narrow = {"bare loop": bare(system, data, precision, config.compile)}
        if config.compile:
            narrow["bare loop, eager"] = bare(system, data, precision)
        if "channels_last" in config.model:
            other = str(not config.model.channels_last).lower()
            turned = build_system(
                compose("train", [*overrides, f"model.channels_last={other}"]), data
            )
            narrow[f"bare loop, eager, channels_last={other}"] = bare(turned, data, precision)
        for name, peer in {
            "diffusers": diffusers,
            "denoising-diffusion-pytorch": lucidrains,
        }.items():
            with suppress(ImportError):
                narrow[name] = peer(config, data, "32-true")
                if precision == "bf16-mixed":
                    narrow[f"{name}, bf16"] = peer(config, data, precision)
        work = {
            name: gflop(bare(system, data, precision) if name == "bare loop" else call)
            for name, call in narrow.items()
        }
        work["Trainer"] = work["bare loop"]
        most = ceilings(precision)
        visits = Visits(narrow | {name: call for name, (call, _) in most.items()})
        calls = visits.calls["bare loop"]
        timer = Interleave(visits, calls)
        config.trainer.max_steps = (ROUNDS + 1) * calls
        callbacks = [*build(config, "callbacks").values(), timer]
        if config.compile:
            from ddpm_lab.callbacks.torch_compile import TorchCompile

            callbacks.append(TorchCompile(config.compile))
        trainer = build(
            config, "trainer", callbacks=callbacks, logger=[*build(config, "logger").values()]
        )
        trainer.fit(system, DataModule(data))
        finish()
    visits.seconds = {"Trainer": timer.seconds, **visits.seconds}
    rows = visits.rows()
    rates = {name: most[name][1] / rows.pop(name)["ms"] for name in most}  # TFLOP/s
    for name, row in rows.items():
        row |= {"images/s": 1e3 * data.batch_size / row["ms"], "GFLOP": work[name]}
        row |= {f"of {ceiling}": work[name] / row["ms"] / rate for ceiling, rate in rates.items()}
    overhead = {
        name: statistics.median(
            a - b for a, b in zip(timer.seconds, visits.seconds[name], strict=True)
        )
        * 1e3
        for name in rows
        if name.startswith("bare")
    }
    return {"rows": rows, "TFLOP/s": rates, "Trainer adds, ms": overhead}


def options(overrides: list[str]) -> dict[str, Any]:
    """A bare step, and the same without what makes it fast; with `compile=`, also what that gains and takes."""
    data, system, config = made(overrides)
    precision, candidates = config.trainer.precision, {}
    candidates["as it is"] = bare(system, data, precision)
    order = ["model.channels_last=false"] if "channels_last" in config.model else []
    for word in (*order, "optimizer.fused=false"):
        candidates[word] = bare(made([*overrides, word])[1], data, precision)
    candidates["EMA of one weight after the other"] = bare(system, data, precision, together=False)
    served = ({"x0": x0.to(DEVICE), "label": label.to(DEVICE)} for x0, label in image_batches(data))
    candidates["batches from a DataLoader"] = bare(system, data, precision, batches=served)
    first = {}
    if config.compile:
        name = f"compile={config.compile}"
        candidates[name] = bare(system, data, precision, config.compile)
        first["first step compiled, s"] = seconds(candidates[name])
    return {"rows": compared(candidates), **first}


def profile(overrides: list[str]) -> dict[str, Any]:
    """Milliseconds of a bare step, operation by operation (on a GPU: kernel by kernel), down to 1 % of their sum."""
    data, system, config = made(overrides)
    call, count = bare(system, data, config.trainer.precision, config.compile), 5
    for _ in range(3):
        call()
    with torch.profiler.profile() as profiler:
        wall = seconds(call, count) / count * 1e3
    on = getattr(torch.autograd.DeviceType, DEVICE.type.upper())
    times = {
        of.key: (of.self_device_time_total if DEVICE.type == "cuda" else of.self_cpu_time_total)
        / count
        / 1e3
        for of in profiler.key_averages()
        if of.device_type == on and not of.is_user_annotation
    }
    total = sum(times.values())
    told = {
        name[:60]: ms
        for name, ms in sorted(times.items(), key=lambda of: -of[1])
        if ms > total / 100
    }
    told["all others"] = total - sum(told.values())
    return {
        "rows": {name: {"ms": ms, "share": ms / total} for name, ms in told.items()},
        "ms of wall clock": wall,
    }


class Nothing(nn.Module):
    """A network that takes no time."""

    calls = 0

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        self.calls += 1
        return x


@torch.inference_mode()
def sampling(overrides: list[str]) -> dict[str, Any]:
    """Microseconds a step beyond the network for 16 small images; and images per second of a network, DDIM."""
    data, system, config = made(overrides)
    system.eval().to(DEVICE)
    nothing = Nothing()
    denoiser = Denoiser(nothing, system.process, Eps(), BetaTilde(), shape=data.shape).to(DEVICE)
    x, steps = torch.randn(16, *data.shape, device=DEVICE), 20
    told: dict[str, samplers.Sampler] = {
        "ddim": samplers.DDIM(steps=steps),
        "ddim, eta=1": samplers.DDIM(steps=steps, eta=1.0),
        "ddpm": samplers.DDPM(steps=steps),
        "heun": ode_solvers.Heun(steps=steps),
        "dpm_solver": ode_solvers.DPMSolver(steps=steps),
        "langevin": langevin.Langevin(steps=steps, corrections=1),
    }
    calls: dict[str, Call] = {name: lambda s=s: s(denoiser, x) for name, s in told.items()}
    with suppress(ImportError):
        calls |= peers_walks(nothing, x, steps)
    added = {}
    for name, row in compared(calls).items():
        nothing.calls = 0
        calls[name]()
        added[name] = {"us a step": 1e3 * row["ms"] / steps, "calls a step": nothing.calls / steps}
    found: dict[str, Any] = {"rows": added}
    with suppress(ImportError):
        found["images"] = {"rows": images(config, data, system, x, steps)}
    return found


def peers_walks(network: nn.Module, x: Tensor, steps: int) -> dict[str, Call]:
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

    def trajectory(scheduler: Any) -> None:
        y = x
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            y = scheduler.step(network(y, t, Condition()), t, y).prev_sample

    kinds = {
        "ddim": DDIMScheduler(),
        "ddpm": DDPMScheduler(),
        "dpm_solver": DPMSolverMultistepScheduler(),
    }
    return {
        f"diffusers {name}": lambda scheduler=scheduler: trajectory(scheduler)
        for name, scheduler in kinds.items()
    }


class Borrowed(nn.Module):
    """A network of diffusers among ours."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.network(x, t, class_labels=torch.zeros_like(t).long()).sample


def images(
    config: DictConfig, data: Data, system: Diffusion, x: Tensor, steps: int
) -> dict[str, Row]:
    """The same network of diffusers under its pipeline and under our sampler; and our own network."""
    from diffusers import DDIMPipeline, DDIMScheduler

    network = twin(config, data).eval()
    forward = network.forward
    network.forward = lambda x, t, **kwargs: forward(
        x, t, class_labels=torch.zeros(len(x), dtype=torch.long, device=DEVICE)
    )
    pipeline = DDIMPipeline(network, DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    borrowed = copy.copy(system)
    denoiser = Denoiser(Borrowed(network), system.process, Eps(), BetaTilde(), shape=data.shape).to(
        DEVICE
    )
    borrowed.set_sampler(
        samplers.DDIM(steps=steps), build(compose("train", ["guidance=none"]), "guidance")
    )
    own = copy.copy(borrowed)
    found = compared(
        {
            "diffusers' pipeline": lambda: pipeline(
                batch_size=len(x), num_inference_steps=steps, output_type="np"
            ),
            "ours, diffusers' network": lambda: [
                *borrowed.sample(denoiser, len(x), conditions=system.make_conditions(len(x)))
            ],
            "ours": lambda: [
                *own.sample(system.denoiser, len(x), conditions=system.make_conditions(len(x)))
            ],
        }
    )
    return {name: row | {"images/s": 1e3 * len(x) / row["ms"]} for name, row in found.items()}


@torch.inference_mode()
def guidance(overrides: list[str]) -> dict[str, Any]:
    data, system, config = made(["guidance=classifier_free", *overrides])
    system.eval().to(DEVICE)
    size = config.data.batch_size
    x, t = torch.randn(size, *data.shape, device=DEVICE), torch.full((size,), 500, device=DEVICE)
    cond = system.condition(system.denoiser, system.make_conditions(size))
    twice = torch.cat([x, x]), torch.cat([t, t]), cond.cat(cond.null())
    guided = ClassifierFreeGuidance(system.denoiser, **system.guidance.keywords | {"w": 1.0})
    return {
        "rows": compared(
            {
                "twice the batch": lambda: system.denoiser(*twice),
                "guided": lambda: guided(x, t, cond),
                "two calls": lambda: (
                    system.denoiser(x, t, cond),
                    system.denoiser(x, t, cond.null()),
                ),
            }
        )
    }


def start(overrides: list[str]) -> dict[str, Any]:
    """Seconds, the median of three."""
    with tempfile.TemporaryDirectory() as folder:
        train = [sys.executable, "train.py"]
        first = [
            *train,
            "trainer.max_steps=1",
            "callbacks=none",
            "resume=null",
            f"hydra.run.dir={folder}/${{now:%f}}",
        ]
        commands = {
            "import torch": [sys.executable, "-c", "import torch"],
            "import lightning": [sys.executable, "-c", "import lightning"],
            "train.py --help": [*train, "--help"],
            "to the end of one step": first,
            "the same, logger=csv": [*first, "logger=csv"],
        }
        with suppress(ImportError):
            import diffusers as _  # noqa: F401

            commands["import of diffusers' U-Net"] = [
                sys.executable,
                "-c",
                "from diffusers import UNet2DModel",
            ]

        def run(command: list[str]) -> float:
            return seconds(lambda: subprocess.run(command, check=True, capture_output=True))

        found = [{name: run(command) for name, command in commands.items()} for _ in range(4)][1:]
    return {
        "rows": {
            name: {"seconds": statistics.median(of[name] for of in found)} for name in commands
        }
    }


@torch.inference_mode()
def evaluation(overrides: list[str]) -> dict[str, Any]:
    """FID of 1,000 samples: per second, and the share of what only the network's calls would take."""
    from ddpm_lab.evaluation.sample_quality import evaluate_samples

    data, system, config = made([*overrides, "sampler.steps=25"])
    system.eval().to(DEVICE)
    extractor = build(config, "extractor")().to(DEVICE)
    count, size = 1000, 250
    conditions = system.make_conditions(size)
    x, t = torch.randn(size, *data.shape, device=DEVICE), torch.full((size,), 500, device=DEVICE)
    cond = system.condition(system.denoiser, conditions)
    how = {"weights": "raw", "split": "train", "seed": 0, "count": count, "batch_size": size}

    def measure() -> None:
        next(evaluate_samples(system, system.denoiser, data, extractor, **how))

    def calls() -> None:
        for _ in range(25 * count // size):
            system.denoiser.network(x, t, cond)

    rows = compared({"FID": measure, "network alone": calls}, rounds=5)
    return {
        "rows": {name: row | {"samples/s": 1e3 * count / row["ms"]} for name, row in rows.items()}
    }


SECTIONS = {
    "step": step,
    "options": options,
    "profile": profile,
    "sampling": sampling,
    "guidance": guidance,
    "start": start,
    "evaluation": evaluation,
}


def table(rows: dict[str, Row]) -> str:
    names = [*{name: None for row in rows.values() for name in row}]
    wide = max(map(len, rows))
    lines = [" " * wide + "".join(f"{name:>16}" for name in names)]
    for name, row in rows.items():
        lines.append(
            f"{name:<{wide}}"
            + "".join(f"{row[key]:16.4g}" if key in row else " " * 16 for key in names)
        )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    versions = {}
    for package in ("torch", "lightning", "diffusers", "denoising-diffusion-pytorch"):
        with suppress(ImportError):
            versions[package] = version(package)
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "none"
    return {
        "cpu": name,
        "threads": torch.get_num_threads(),
        "gpu": device,
        "python": platform.python_version(),
        **versions,
    }


def main() -> None:
    quiet_libraries()
    overrides = [word for word in sys.argv[1:] if "=" in word]
    chosen = [word for word in sys.argv[1:] if "=" not in word] or [*SECTIONS]
    if strange := [name for name in chosen if name not in SECTIONS]:
        sys.exit(f"error: section {strange[0]} is none of {', '.join(SECTIONS)}")
    found: dict[str, Any] = {"machine": machine(), "words": overrides}
    print(json.dumps(found["machine"]))
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for name in chosen:
            found[name] = SECTIONS[name](overrides)
            print(f"\n{name}\n{table(found[name]['rows'])}")
            for key, value in found[name].items():
                if isinstance(value, dict) and "rows" in value:
                    print(f"\n{key}\n{table(value['rows'])}")
                elif key != "rows":
                    print(f"{key}: {json.dumps(value)}")
            Path("benchmark.json").write_text(json.dumps(found, indent=2) + "\n")
    print("\nwritten to benchmark.json")


if __name__ == "__main__":
    main()
