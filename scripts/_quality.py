"""The time to quality, python scripts/benchmark.py quality [KEY=VALUE ...].

Trains on the same cores, and measures FID of 1,000 samples by 25 steps of DDIM:

ours                          complete runs of train.py of 50, 100, 200, 400, ... steps, with all
                              callbacks but those that sample; KEY=VALUE are their overrides
diffusers                     the recipe of its examples/unconditional_image_generation with the
                              architecture of our default network, and labels
denoising-diffusion-pytorch   the recipe of its Trainer, with its Unet of our widths

Peers are one training each, whose averaged weights are evaluated after 20, 40, 80, ... seconds of
wall time. The time of evaluations does not count. The images of all are the digits, without flips.
"""

import json
import math
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import benchmark
from hydra import compose
from torch import Tensor, nn

import ddpm_lab
from ddpm_lab.config.instantiate import build
from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import Denoiser
from ddpm_lab.diffusion.predictions import Eps, V
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.samplers import DDIM
from ddpm_lab.diffusion.schedules import from_betas
from ddpm_lab.evaluation.sample_quality import SampleQuality
from ddpm_lab.reports.figures import save_panels
from ddpm_lab.reports.table import Line, Panel
from ddpm_lab.runs.run_dir import RunDir
from ddpm_lab.sampling.cascade import Cascade
from ddpm_lab.sampling.pipeline import SamplingPipeline

FIRST_STEPS, FIRST_SECONDS = 50, 20
LIMIT = 640
"""Longest training, in seconds"""
FACTORS = (2, 1.5)
"""Multiples of the FID of held-out images whose first time is reported"""
Points = list[tuple[float, float]]
"""Seconds of training, and FID"""


class PeerNetwork(nn.Module):
    """Adapter of a peer's network, whose times are 0..T - 1, to our interface."""

    def __init__(self, network: nn.Module, labeled: bool) -> None:
        super().__init__()
        self.network, self.labeled = network.eval(), labeled

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        if self.labeled:
            return self.network(x, t.long() - 1, class_labels=cond.label).sample
        return self.network(x, t.long() - 1)


class Quality:
    """FID of 1,000 samples by 25 steps of DDIM."""

    def __init__(self) -> None:
        self.data, self.system, self.config = benchmark.build_parts([])
        self.guidance = build(compose("train", ["guidance=none"]), "guidance")
        extractor = build(self.config, "extractor")()
        self.metric = SampleQuality(lambda: extractor, count=1000)
        self.floor = 0.0
        """FID of held-out images"""

    def fid(self, pipeline: SamplingPipeline) -> float:
        """Return FID; set `floor`."""
        pipeline.set_sampler(DDIM(steps=25), self.guidance)
        results = self.metric.compute(Cascade([pipeline]), self.data, "ema")
        self.floor = results["real"]["fid"]
        return results["fid"]

    def peer_fid(self, peer: benchmark.Peer) -> float:
        """Return FID of the averaged weights of a peer."""
        own, labeled = self.system.pipeline, peer.prediction == "eps"
        network = PeerNetwork(peer.averaged(), labeled)
        denoiser = Denoiser(
            network,
            ForwardProcess(from_betas(peer.betas.double().cpu())),
            Eps() if peer.prediction == "eps" else V(),
            conditioner=own.denoiser.conditioner if labeled else None,
            shape=self.data.shape,
        )
        return self.fid(own.with_denoiser(denoiser.to(benchmark.DEVICE)))


def measure_ours(quality: Quality, overrides: list[str]) -> Points:
    """Return the points of complete runs of doubling length."""
    points: Points = []
    steps = FIRST_STEPS
    while not points or points[-1][0] < LIMIT / 2:
        words = [f"trainer.max_steps={steps}", "~callbacks.fid", "~callbacks.sample_grid"]
        with tempfile.TemporaryDirectory() as folder:
            run = ddpm_lab.train(
                ddpm_lab.compose(*words, "logger=csv", f"hydra.run.dir={folder}/run", *overrides)
            )
            seconds = json.loads(Path(run, "metrics.json").read_text())["training"]["seconds"]
            points.append((seconds, quality.fid(RunDir(str(run)).pipeline)))
        print(f"ours, {steps} steps: {points[-1][0]:.1f} s, FID {points[-1][1]:.3g}", flush=True)
        if points[-1][1] < 0.75 * quality.floor:
            break
        steps *= 2
    return points


def measure_peer(quality: Quality, name: str, peer: benchmark.Peer) -> Points:
    """Return the points of one training after doubling times."""
    points: Points = []
    seconds, end = 0.0, float(FIRST_SECONDS)
    while end <= LIMIT:
        while seconds < end:
            start = time.perf_counter()
            peer.step()
            seconds += time.perf_counter() - start
        points.append((seconds, quality.peer_fid(peer)))
        print(f"{name}: {seconds:.1f} s, FID {points[-1][1]:.3g}", flush=True)
        if points[-1][1] < quality.floor:
            break
        end *= 2
    return points


def first_time(points: Points, fid: float) -> float:
    """Return the first time at which FID is at most `fid`, interpolated in log FID, or infinity."""
    for (start, high), (end, low) in pairwise([(0.0, math.inf), *points]):
        if low <= fid:
            share = 1.0 if math.isinf(high) else math.log(high / fid) / math.log(high / low)
            return start + share * (end - start)
    return math.inf


def measure(overrides: list[str]) -> dict[str, Any]:
    """Return times to multiples of the FID of held-out images; save a plot."""
    quality = Quality()
    points = {"ours": measure_ours(quality, overrides)}
    for name, peer in benchmark.peers(quality.config, quality.data, batch_size=16).items():
        points[name] = measure_peer(quality, name, peer)
    columns = {f"s to {factor:g} x floor": factor * quality.floor for factor in FACTORS}
    rows = {
        name: {column: first_time(line, fid) for column, fid in columns.items()}
        for name, line in points.items()
    }
    lines = {
        name: Line([end for end, _ in line], [fid for _, fid in line])
        for name, line in points.items()
    }
    end = max(seconds for line in points.values() for seconds, _ in line)
    lines["held-out images"] = Line([1, end], [quality.floor] * 2)
    panel = Panel("time to quality", "seconds of training", "FID", lines, log_x=True, log_y=True)
    image = save_panels([panel], Path("benchmark_quality.png"))
    return {"rows": rows, "points": points, "floor": quality.floor, "plot": str(image)}
