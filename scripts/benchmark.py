"""Benchmark training and sampling: python scripts/benchmark.py [SECTION ...] [KEY=VALUE ...]

step        a training step under the Trainer with default callbacks, compared with bare loops of
            the same network, peers' loops of the same architecture, and the peak matrix and
            convolution rates of the machine
options     a bare step without each optimization, and with torch.compile
profile     the operations of a bare step
sampling    overhead of samplers over the network calls, with peers; images per second
guidance    a classifier-free guided estimate compared with one call of twice the batch and two
            calls
start       seconds from the shell to imports, to the end of the first step, and of one sample
evaluation  samples per second of FID, and the share of the network calls
quality     FID against seconds of training, with peers; in an hour

The default is all sections but quality; benchmark_scale.py measures scaling. Keys are those of
`train.py`. Candidates alternate in one process, A B C, C B A, because machines are noisy. Reported
are medians, the median over rounds of the ratio within a round, and the ratio of the fastest
visits. Peers are measured if they are installed (pip install -e '.[peers]'). Results are also saved
in benchmark.json.
"""

import _venv  # noqa: F401 (restarts with .venv where this Python lacks the packages)

import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

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
from ddpm_lab.sampling.pipeline import SamplingPipeline
from ddpm_lab.systems.base import DataModule
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.utils.shell import quiet_libraries

ROUNDS, VISIT = 7, 0.6
"""Visits to each candidate, and their approximate length in seconds"""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Call = Callable[[], object]
Row = dict[str, float]


def clock() -> float:
    """Return the time in seconds after all work of the device is done.

    On one CPU thread it is CPU time, which other processes hardly lengthen.
    """
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def seconds(call: Call, calls: int = 1) -> float:
    """Return the mean duration of a call."""
    start = clock()
    for _ in range(calls):
        call()
    return (clock() - start) / calls


def calls_per_visit(call: Call) -> int:
    """Warm up `call`, and return the number of calls in `VISIT` seconds."""
    call()
    return max(1, round(VISIT / min(seconds(call), seconds(call))))


class Visits:
    """Durations of a call of each candidate by visit; the first candidate is the baseline."""

    def __init__(self, candidates: dict[str, Call]) -> None:
        self.candidates = candidates
        self.calls = {name: calls_per_visit(call) for name, call in candidates.items()}
        self.seconds: dict[str, list[float]] = {name: [] for name in candidates}

    def round(self) -> None:
        names = [*self.candidates]
        for name in names if len(self.seconds[names[0]]) % 2 else names[::-1]:
            self.seconds[name].append(seconds(self.candidates[name], self.calls[name]))

    def rows(self) -> dict[str, Row]:
        baseline = next(iter(self.seconds.values()))

        def row(times: list[float]) -> Row:
            ratios = [a / b for a, b in zip(baseline, times, strict=True)]
            return {
                "ms": 1e3 * statistics.median(times),
                "speed": statistics.median(ratios),
                "fastest": min(baseline) / min(times),
            }

        return {name: row(times) for name, times in self.seconds.items()}


def compare(candidates: dict[str, Call], rounds: int = ROUNDS) -> dict[str, Row]:
    visits = Visits(candidates)
    for _ in range(rounds):
        visits.round()
    return visits.rows()


def gflop(call: Call) -> float:
    """Return the GFLOP of matrix products and convolutions; a multiply-add counts 2."""
    # The counter does not support the fused attention of a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def training_step(
    loss: Callable[[], Tensor],
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Call,
    cast: AbstractContextManager[Any],
) -> Call:
    """Return a step of a bare loop."""

    def step() -> None:
        with cast:
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average()

    return step


def cast(precision: Any) -> AbstractContextManager[Any]:
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16-mixed")


def build_parts(overrides: list[str]) -> tuple[Data, Diffusion, DictConfig]:
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
    """Return a training step without the Trainer; `together` averages all weights in one call."""
    system = copy.deepcopy(system).to(DEVICE)
    system.generator = torch.Generator(DEVICE)
    if compiled:
        system.denoiser.network.compile(mode=compiled)
    weights = [parameter.data for parameter in system.denoiser.parameters()]
    averages = [weight.clone() for weight in weights]
    if batches is None:
        train = data.train.to(DEVICE)
        batches = iter(TrainBatches(train, data.batch_size, flip=False, seed=0))

    def average() -> None:
        if together:
            torch._foreach_lerp_(averages, weights, 0.01)
        else:
            for mean, weight in zip(averages, weights, strict=True):
                mean.lerp_(weight, 0.01)

    return training_step(
        lambda: system.training_step(next(batches), 0)["loss"],
        system,
        system.optimizer(system.parameters()),
        average,
        cast(precision),
    )


class Peer(NamedTuple):
    """A training of another library."""

    step: Call
    averaged: Callable[[], nn.Module]
    """Returns a network with the averaged weights"""
    betas: Tensor
    prediction: str
    """eps or v"""


def image_batches(data: Data, batch_size: int) -> Iterator[list[Tensor]]:
    """Yield batches from a DataLoader, as in the scripts of peers."""
    batch = next(iter(TrainBatches(data.train, data.train.size, flip=False, seed=0)))
    images = TensorDataset(batch["x0"], batch["label"])
    while True:
        yield from DataLoader(images, batch_size, shuffle=True, drop_last=True)


def diffusers_unet(config: DictConfig, data: Data) -> nn.Module:
    """Return diffusers' U-Net with the architecture of `config.model`."""
    from diffusers import UNet2DModel

    model = config.model
    levels = len(model.multipliers)
    sides = [data.shape[1] // 2**i for i in range(levels)]
    attention = [side in (model.attention or [sides[-1]]) for side in sides]
    width = model.channels * model.multipliers[-1]
    return UNet2DModel(
        sample_size=data.shape[1],
        in_channels=data.shape[0],
        out_channels=data.shape[0],
        layers_per_block=model.blocks,
        block_out_channels=[model.channels * m for m in model.multipliers],
        down_block_types=["AttnDownBlock2D" if level else "DownBlock2D" for level in attention],
        up_block_types=["AttnUpBlock2D" if level else "UpBlock2D" for level in attention[::-1]],
        norm_num_groups=min(32, model.channels // 4),
        num_class_embeds=data.classes,
        dropout=model.dropout,
        attention_head_dim=model.head_channels or width // model.heads,
        resnet_time_scale_shift="scale_shift" if model.scale_shift else "default",
    ).to(DEVICE)


def diffusers(config: DictConfig, data: Data, precision: Any, batch_size: int) -> Peer:
    """Return the training of diffusers' examples/unconditional_image_generation, with EMA."""
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    network, scheduler, batches = (
        diffusers_unet(config, data),
        DDPMScheduler(1000),
        image_batches(data, batch_size),
    )
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
        x_t = scheduler.add_noise(x0, eps, t)
        return F.mse_loss(network(x_t, t, class_labels=labels).sample.float(), eps)

    def average() -> None:
        rates.step()
        ema.step(network.parameters())

    def averaged() -> nn.Module:
        other = copy.deepcopy(network)
        ema.copy_to(other.parameters())
        return other

    step = training_step(loss, network, optimizer, average, cast(precision))
    return Peer(step, averaged, scheduler.betas, "eps")


def lucidrains(config: DictConfig, data: Data, precision: Any, batch_size: int) -> Peer:
    """Return the training of denoising_diffusion_pytorch.Trainer.

    Its network has another kind of attention, and fewer FLOPs.
    """
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    network = Unet(
        config.model.channels, dim_mults=tuple(config.model.multipliers), channels=data.shape[0]
    )
    module = GaussianDiffusion(network, image_size=data.shape[1], timesteps=1000).to(DEVICE)
    ema = EMA(module, beta=0.995, update_every=10).to(DEVICE)
    batches = image_batches(data, batch_size)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4, betas=(0.9, 0.99))
    step = training_step(
        lambda: module(next(batches)[0].to(DEVICE) / 2 + 0.5),
        module,
        optimizer,
        ema.update,
        cast(precision),
    )
    return Peer(step, lambda: copy.deepcopy(ema.ema_model.model), module.betas, "v")


def peers(
    config: DictConfig, data: Data, precision: Any = "32-true", batch_size: int | None = None
) -> dict[str, Peer]:
    """Return the trainings of the installed peers."""
    trainings = {}
    for name, peer in {"diffusers": diffusers, "denoising-diffusion-pytorch": lucidrains}.items():
        with suppress(ImportError):
            trainings[name] = peer(config, data, precision, batch_size or data.batch_size)
    return trainings


def peak_calls(precision: Any) -> dict[str, tuple[Call, float]]:
    """Return a large matrix product and a large convolution, with their GFLOP."""
    cpu = DEVICE.type == "cpu"
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    size = 1024 if cpu else 8192
    a, b = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
    images, width, side = (8, 128, 32) if cpu else (256, 256, 32)
    layout = torch.channels_last
    convolution = nn.Conv2d(width, width, 3, padding=1).to(DEVICE, dtype, memory_format=layout)
    x = torch.randn(images, width, side, side, device=DEVICE, dtype=dtype).to(memory_format=layout)

    def convolve() -> Tensor:
        with torch.no_grad():
            return convolution(x)

    calls: dict[str, Call] = {"matrix": lambda: a @ b, "convolution": convolve}
    return {name: (call, gflop(call)) for name, call in calls.items()}


class Interleave(L.Callback):
    """Time the Trainer by visits, and alternate them with rounds of the other candidates."""

    def __init__(self, others: Visits, calls: int) -> None:
        self.others, self.calls, self.seconds = others, calls, []

    def on_train_start(self, *args: Any) -> None:
        self.start = clock()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step % self.calls:
            return
        if trainer.global_step > self.calls:  # the first visit warms up
            self.seconds.append((clock() - self.start) / self.calls)
            self.others.round()
        self.start = clock()


def step_candidates(
    overrides: list[str], config: DictConfig, data: Data, system: Diffusion
) -> dict[str, Call]:
    """Return steps of bare loops: ours and those of installed peers."""
    precision = config.trainer.precision
    candidates = {"bare loop": bare(system, data, precision, config.compile)}
    if config.compile:
        candidates["bare loop, eager"] = bare(system, data, precision)
    if "channels_last" in config.model:
        word = f"channels_last={str(not config.model.channels_last).lower()}"
        other = build_system(compose("train", [*overrides, f"model.{word}"]), data)
        candidates[f"bare loop, eager, {word}"] = bare(other, data, precision)
    candidates |= {name: peer.step for name, peer in peers(config, data).items()}
    if precision == "bf16-mixed":
        for name, peer in peers(config, data, precision).items():
            candidates[f"{name}, bf16"] = peer.step
    return candidates


def step(overrides: list[str]) -> dict[str, Any]:
    never = [
        f"{key}=1000000000"
        for key in (
            "trainer.val_check_interval",
            "callbacks.sample_grid.every",
            "callbacks.checkpoints.every",
        )
    ]
    with tempfile.TemporaryDirectory() as folder:
        root = f"trainer.default_root_dir={folder}"
        config = compose("train", [root, *never, "~callbacks.fid", *overrides])
        data = build(config, "data")
        system, precision = build_system(config, data), config.trainer.precision
        candidates = step_candidates(overrides, config, data, system)
        work = {name: gflop(call) for name, call in candidates.items() if name != "bare loop"}
        work["bare loop"] = work["Trainer"] = gflop(bare(system, data, precision))
        peaks = peak_calls(precision)
        visits = Visits(candidates | {name: call for name, (call, _) in peaks.items()})
        timer = Interleave(visits, visits.calls["bare loop"])
        config.trainer.max_steps = (ROUNDS + 1) * timer.calls
        callbacks = [*build(config, "callbacks").values(), timer]
        if config.compile:
            from ddpm_lab.callbacks.torch_compile import TorchCompile

            callbacks.append(TorchCompile(config.compile))
        loggers = [*build(config, "logger").values()]
        trainer = build(config, "trainer", callbacks=callbacks, logger=loggers)
        trainer.fit(system, DataModule(data))
        finish()
    visits.seconds = {"Trainer": timer.seconds, **visits.seconds}
    rows = visits.rows()
    rates = {name: peaks[name][1] / rows.pop(name)["ms"] for name in peaks}  # TFLOP/s
    for name, row in rows.items():
        row |= {"images/s": 1e3 * data.batch_size / row["ms"], "GFLOP": work[name]}
        row |= {f"of {peak}": work[name] / row["ms"] / rate for peak, rate in rates.items()}
    overhead = {
        name: 1e3 * statistics.median(a - b for a, b in zip(timer.seconds, times, strict=True))
        for name, times in visits.seconds.items()
        if name.startswith("bare")
    }
    return {"rows": rows, "TFLOP/s": rates, "Trainer adds, ms": overhead}


def options(overrides: list[str]) -> dict[str, Any]:
    """Compare a bare step with steps without each optimization and, with `compile=`, compiled."""
    data, system, config = build_parts(overrides)
    precision = config.trainer.precision
    candidates = {"default": bare(system, data, precision)}
    layout = ["model.channels_last=false"] if "channels_last" in config.model else []
    for word in (*layout, "optimizer.fused=false"):
        candidates[word] = bare(build_parts([*overrides, word])[1], data, precision)
    candidates["EMA weight by weight"] = bare(system, data, precision, together=False)
    loader = (
        {"x0": x0.to(DEVICE), "label": label.to(DEVICE)}
        for x0, label in image_batches(data, data.batch_size)
    )
    candidates["batches from a DataLoader"] = bare(system, data, precision, batches=loader)
    extra = {}
    if config.compile:
        name = f"compile={config.compile}"
        candidates[name] = bare(system, data, precision, config.compile)
        extra["first compiled step, s"] = seconds(candidates[name])
    return {"rows": compare(candidates), **extra}


def profile(overrides: list[str]) -> dict[str, Any]:
    """Profile a bare step by operation (by kernel on a GPU), down to 1 % of the total."""
    data, system, config = build_parts(overrides)
    call, count = bare(system, data, config.trainer.precision, config.compile), 5
    for _ in range(3):
        call()
    with torch.profiler.profile() as profiler:
        wall = seconds(call, count) * 1e3
    device = getattr(torch.autograd.DeviceType, DEVICE.type.upper())
    attribute = f"self_{'device' if DEVICE.type == 'cuda' else 'cpu'}_time_total"
    times = {
        event.key: getattr(event, attribute) / count / 1e3
        for event in profiler.key_averages()
        if event.device_type == device and not event.is_user_annotation
    }
    total = sum(times.values())
    largest = {
        name[:60]: ms
        for name, ms in sorted(times.items(), key=lambda item: -item[1])
        if ms > total / 100
    }
    largest["all others"] = total - sum(largest.values())
    return {
        "rows": {name: {"ms": ms, "share": ms / total} for name, ms in largest.items()},
        "ms": wall,
    }


class IdentityNetwork(nn.Module):
    """A network that takes no time."""

    calls = 0

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        self.calls += 1
        return x


@torch.inference_mode()
def sampling(overrides: list[str]) -> dict[str, Any]:
    """Measure the overhead of samplers for 16 small images, and images per second of DDIM."""
    data, system, config = build_parts(overrides)
    system.eval().to(DEVICE)
    network = IdentityNetwork()
    denoiser = Denoiser(network, system.process, Eps(), BetaTilde(), shape=data.shape).to(DEVICE)
    x, steps = torch.randn(16, *data.shape, device=DEVICE), 20
    methods: dict[str, samplers.Sampler] = {
        "ddim": samplers.DDIM(steps=steps),
        "ddim, eta=1": samplers.DDIM(steps=steps, eta=1.0),
        "ddpm": samplers.DDPM(steps=steps),
        "heun": ode_solvers.Heun(steps=steps),
        "dpm_solver": ode_solvers.DPMSolver(steps=steps),
        "langevin": langevin.Langevin(steps=steps, corrections=1),
    }
    calls: dict[str, Call] = {name: lambda s=s: s(denoiser, x) for name, s in methods.items()}
    with suppress(ImportError):
        calls |= diffusers_loops(network, x, steps)
    overhead = {}
    for name, row in compare(calls).items():
        network.calls = 0
        calls[name]()
        per_step = {"us a step": 1e3 * row["ms"] / steps, "calls a step": network.calls / steps}
        overhead[name] = per_step
    results: dict[str, Any] = {"rows": overhead}
    with suppress(ImportError):
        results["images"] = {"rows": images(config, data, system, x, steps)}
    return results


def diffusers_loops(network: nn.Module, x: Tensor, steps: int) -> dict[str, Call]:
    """Return sampling loops over diffusers' schedulers."""
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

    def sample(scheduler: Any) -> None:
        y = x
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            y = scheduler.step(network(y, t, Condition()), t, y).prev_sample

    schedulers = {
        "ddim": DDIMScheduler(),
        "ddpm": DDPMScheduler(),
        "dpm_solver": DPMSolverMultistepScheduler(),
    }
    return {
        f"diffusers {name}": lambda scheduler=scheduler: sample(scheduler)
        for name, scheduler in schedulers.items()
    }


class DiffusersNetwork(nn.Module):
    """Adapter of a diffusers network to our interface."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.network(x, t, class_labels=torch.zeros_like(t).long()).sample


def images(
    config: DictConfig, data: Data, system: Diffusion, x: Tensor, steps: int
) -> dict[str, Row]:
    """Compare a diffusers network under its pipeline, under our sampler, and our own network."""
    from diffusers import DDIMPipeline, DDIMScheduler

    network = diffusers_unet(config, data).eval()
    forward = network.forward
    network.forward = lambda x, t, **kwargs: forward(
        x, t, class_labels=torch.zeros(len(x), dtype=torch.long, device=DEVICE)
    )
    pipeline = DDIMPipeline(network, DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    adapter = DiffusersNetwork(network)
    denoiser = Denoiser(adapter, system.process, Eps(), BetaTilde(), shape=data.shape).to(DEVICE)
    own = copy.copy(system.pipeline)
    no_guidance = build(compose("train", ["guidance=none"]), "guidance")
    own.set_sampler(samplers.DDIM(steps=steps), no_guidance)
    other = own.with_denoiser(denoiser)

    def sample(pipeline: SamplingPipeline) -> None:
        deque(pipeline.sample(len(x), conditions=own.make_conditions(len(x))), maxlen=0)

    rows = compare(
        {
            "diffusers' pipeline": lambda: pipeline(
                batch_size=len(x), num_inference_steps=steps, output_type="np"
            ),
            "ours, diffusers' network": lambda: sample(other),
            "ours": lambda: sample(own),
        }
    )
    return {name: row | {"images/s": 1e3 * len(x) / row["ms"]} for name, row in rows.items()}


@torch.inference_mode()
def guidance(overrides: list[str]) -> dict[str, Any]:
    """Compare a guided estimate with one call of twice the batch and with two calls."""
    data, system, config = build_parts(["guidance=classifier_free", *overrides])
    system.eval().to(DEVICE)
    size = config.data.batch_size
    x, t = torch.randn(size, *data.shape, device=DEVICE), torch.full((size,), 500, device=DEVICE)
    pipeline = system.pipeline
    cond = pipeline.condition(pipeline.make_conditions(size))
    twice = torch.cat([x, x]), torch.cat([t, t]), cond.cat(cond.null())
    guided = ClassifierFreeGuidance(system.denoiser, **pipeline.guidance.keywords | {"w": 1.0})
    return {
        "rows": compare(
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
    """Measure seconds from the shell and CPU seconds, the medians of three."""
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
            "sample.py count=1": [
                *(sys.executable, "sample.py", f"run={folder}/run", f"out={folder}/samples"),
                *("weights=raw", "count=1"),
            ],
        }
        with suppress(ImportError):
            import diffusers as _  # noqa: F401

            commands["import of diffusers' U-Net"] = [
                sys.executable,
                "-c",
                "from diffusers import UNet2DModel",
            ]

        def run(command: list[str]) -> Row:
            before = os.times()
            subprocess.run(command, check=True, capture_output=True)
            wall, user, system = (os.times()[i] - before[i] for i in (4, 2, 3))
            return {"seconds": wall, "CPU seconds": user + system}

        run([*first, "logger=csv", f"hydra.run.dir={folder}/run"])
        rounds = [{name: run(command) for name, command in commands.items()} for _ in range(3)]
    return {
        "rows": {
            name: {
                key: statistics.median(times[name][key] for times in rounds)
                for key in ("seconds", "CPU seconds")
            }
            for name in commands
        }
    }


@torch.inference_mode()
def evaluation(overrides: list[str]) -> dict[str, Any]:
    """Measure samples per second of FID of 1,000 samples, and of the network calls alone."""
    from ddpm_lab.evaluation.sample_quality import SampleQuality
    from ddpm_lab.sampling.cascade import Cascade

    data, system, config = build_parts([*overrides, "sampler.steps=25"])
    system.eval().to(DEVICE)
    extractor = build(config, "extractor")().to(DEVICE)
    count, size = 1000, 250
    pipeline = system.pipeline
    x, t = torch.randn(size, *data.shape, device=DEVICE), torch.full((size,), 500, device=DEVICE)
    cond = pipeline.condition(pipeline.make_conditions(size))
    quality = SampleQuality(lambda: extractor, count=count, batch_size=size)

    def measure() -> None:
        quality.compute(Cascade([pipeline]), data, "raw")

    def calls() -> None:
        for _ in range(25 * count // size):
            system.denoiser.network(x, t, cond)

    rows = compare({"FID": measure, "network alone": calls}, rounds=5)
    return {
        "rows": {name: row | {"samples/s": 1e3 * count / row["ms"]} for name, row in rows.items()}
    }


def quality(overrides: list[str]) -> dict[str, Any]:
    """Measure the time to quality; see _quality."""
    import _quality

    return _quality.measure(overrides)


SECTIONS = {
    "step": step,
    "options": options,
    "profile": profile,
    "sampling": sampling,
    "guidance": guidance,
    "start": start,
    "evaluation": evaluation,
    "quality": quality,
}


def table(rows: dict[str, Row]) -> str:
    names = [*{name: None for row in rows.values() for name in row}]
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{name:>16}" for name in names)]
    for name, row in rows.items():
        numbers = [f"{row[key]:16.4g}" if key in row else " " * 16 for key in names]
        lines.append(f"{name:<{width}}" + "".join(numbers))
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
    sections = [word for word in sys.argv[1:] if "=" not in word] or [*SECTIONS][:-1]
    if unknown := [name for name in sections if name not in SECTIONS]:
        sys.exit(f"error: section {unknown[0]} is not one of {', '.join(SECTIONS)}")
    results: dict[str, Any] = {"machine": machine(), "overrides": overrides}
    print(json.dumps(results["machine"]))
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for name in sections:
            results[name] = SECTIONS[name](overrides)
            print(f"\n{name}\n{table(results[name]['rows'])}")
            for key, value in results[name].items():
                if isinstance(value, dict) and "rows" in value:
                    print(f"\n{key}\n{table(value['rows'])}")
                elif key != "rows":
                    print(f"{key}: {json.dumps(value)}")
            Path("benchmark.json").write_text(json.dumps(results, indent=2) + "\n")
    print("\nsaved in benchmark.json")


if __name__ == "__main__":
    main()
