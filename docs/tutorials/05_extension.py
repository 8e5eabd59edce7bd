# %% [markdown]
# # A package of your own
#
# New ideas need new parts: another schedule, another sampler, another network. `ddpm_lab` takes
# them from a package of your own, without a change to its code. You need two things per part:
#
# 1. a Python class or function with the interface of its kind,
# 2. a small YAML file that names it.
#
# This tutorial builds a package with five parts: a schedule, a sampler, a guidance, a network and a
# metric. The finished package is a template in the repository,
# [examples/my_diffusion](https://github.com/ddpm-lab/ddpm-lab/tree/main/examples/my_diffusion).
# Copy it to begin your own. Every definition on this page is in one of its files.

# %%
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ddpm_lab
from ddpm_lab.diffusion.analytic_propagation import propagate
from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import DenoiserLike
from ddpm_lab.diffusion.guidance import ClassifierFreeGuidance
from ddpm_lab.diffusion.process import per_pixel
from ddpm_lab.diffusion.rng import NoiseSampler
from ddpm_lab.diffusion.samplers import Sampler, Step
from ddpm_lab.diffusion.schedules import Schedule
from ddpm_lab.evaluation.metrics import Estimates, FeatureMetric, Number, Results, Rows
from ddpm_lab.networks.layers import ConditionedNetwork, zero_module

# %% [markdown]
# ## A schedule
#
# A schedule is a function that returns a table: $\alpha_t$ and $\sigma_t$ for $t = 0, \dots, T$.
# Index 0 is the data, with $\alpha_0 = 1$ and $\sigma_0 = 0$. The arguments become keys on the
# command line, so their types are stated.
#
# Ours puts the log signal-to-noise ratio $\log(\alpha_t^2 / \sigma_t^2)$ on a line. With
# $\alpha_t^2 + \sigma_t^2 = 1$, the sigmoid of this line is $\alpha_t^2$.


# %% mystnb={"image": {"alt": "alpha_bar against t, of log_snr and cosine"}}
def log_snr(steps: int = 1000, high: float = 7.0, low: float = -7.0) -> Schedule:
    """Return the schedule whose log SNR falls on a line from `high` to `low` (t = 1 to T)."""
    if low >= high:
        raise ValueError(f"low must be below high={high:g} (got {low:g}); try low=-7 high=7")
    line = torch.linspace(high, low, steps, dtype=torch.float64)
    zero, one = line.new_zeros(1), line.new_ones(1)
    # alpha^2 + sigma^2 = 1 and alpha^2 / sigma^2 = exp(line); t = 0 is the data.
    alpha, sigma = line.sigmoid().sqrt(), (-line).sigmoid().sqrt()
    return Schedule(torch.cat([one, alpha]), torch.cat([zero, sigma]))


process = ddpm_lab.ForwardProcess(log_snr())
t = torch.arange(1, 1001)
assert torch.allclose(process.log_snr(t), torch.linspace(7, -7, 1000).double(), atol=1e-5)
torch.testing.assert_close(process.scale(t), torch.ones(1000).double())  # variance preserving

figure, axis = plt.subplots(figsize=(5, 2.8))
for name, schedule in {"log_snr": log_snr(), "cosine": ddpm_lab.schedules.cosine()}.items():
    axis.plot(schedule.alpha**2, label=name)
axis.set(xlabel="t", ylabel="$\\bar\\alpha_t$")
axis.legend()
plt.close(figure)  # shown once, as the last line of the cell
figure

# %% [markdown]
# ## A sampler
#
# A sampler makes one step, from $x_t$ to $x_s$. The base class `Sampler` has the loop, the choice
# of times and the bound on $x_0$. The method `step` receives the estimate $\hat x_0$ at $t$.
#
# DDIM uses this estimate for the whole step. Ours takes half a step, estimates again, and makes the
# whole step with the better estimate. This is the midpoint method: two network calls per step, and
# an error of second order.


# %%
@dataclass(frozen=True, kw_only=True)
class Midpoint(Sampler):
    """DDIM with the x_0 estimate of the midpoint of each step: second order, two network calls."""

    def step(
        self, denoiser: DenoiserLike, step: Step, cond: Condition, noise: NoiseSampler
    ) -> Tensor:
        process, x_t, x0 = denoiser.process, step.x_t, step.estimate.x0
        if not step.last:
            middle = (step.t + step.s) // 2
            x_middle = process.ddim_update(x_t, x0, step.t, middle)
            x0 = self.estimate(denoiser, x_middle, middle, cond).x0
        return process.ddim_update(x_t, x0, step.t, step.s)


# %% [markdown]
# Test a sampler before you train anything. For Gaussian data the denoiser is exact, and `propagate`
# returns the distribution of the samples. All of the error then belongs to the sampler. We compare
# at the same number of network calls:

# %%
exact = ddpm_lab.GaussianDenoiser(
    process,
    ddpm_lab.variances.BetaTilde(),
    torch.zeros(1).double(),
    torch.tensor([[0.25]]).double(),
)


def error_of(sampler):
    """Return the error of the standard deviation; that of the data is 0.5."""
    return abs(propagate(sampler, exact)[1].sqrt().item() - 0.5)


print("calls   DDIM      midpoint")
errors = {}
for calls in (20, 40, 80):
    ddim = ddpm_lab.DDIM(steps=calls, clip=None)
    midpoint = Midpoint(steps=calls // 2, clip=None)
    errors[calls] = error_of(ddim), error_of(midpoint)
    print(f"{calls:5d}   {errors[calls][0]:.6f}  {errors[calls][1]:.6f}")
assert all(midpoint < ddim for ddim, midpoint in errors.values())
assert 1.7 < errors[40][0] / errors[80][0] < 2.4  # first order: half the error
assert 3 < errors[40][1] / errors[80][1] < 5.5  # second order: a quarter

# %% [markdown]
# Twice the calls halve the error of DDIM and quarter that of the midpoint method. The theory says
# the same.
#
# ## A guidance
#
# A guidance is a denoiser around a denoiser. Classifier-free guidance already exists, so ours
# changes one method: the strength $w\,t / T$ fades towards the data. Compare [the tutorial on
# guidance](03_guidance.py).


# %%
class RampGuidance(ClassifierFreeGuidance):
    """Classifier-free guidance of strength w t / T, which fades towards the data."""

    def extrapolate(self, x0: Tensor, baseline: Tensor, t: Tensor) -> Tensor:
        w = self.w * per_pixel(t / self.process.steps, x0)
        return x0 + w * (x0 - baseline)


mixture = ddpm_lab.Mixture(
    torch.tensor([[-0.4], [0.4]]).double(), torch.tensor([0.5, 0.5]).double(), 0.3, torch.arange(2)
)
two_classes = ddpm_lab.MixtureDenoiser(process, ddpm_lab.variances.BetaTilde(), mixture)
x_t, label = torch.zeros(2, 1).double(), Condition(torch.tensor([1, 1]))
ramp, plain = RampGuidance(two_classes, w=4.0), ClassifierFreeGuidance(two_classes, w=2.0)
half = torch.tensor([500, 500])
torch.testing.assert_close(ramp(x_t, half, label).x0, plain(x_t, half, label).x0)

# %% [markdown]
# ## A network
#
# A network receives $x_t$, the time $t$ on a scale of 0 to 1000, and the condition. It returns a
# tensor in the shape of $x_t$. Its arguments have fixed names:
#
# - `shape` comes from the data,
# - `outputs` is 2 if the variance is learned, else 1,
# - `classes` is an input that the network supports. Without this argument, `conditioner=label` is
#   refused.
#
# Everything else is yours. The base class `ConditionedNetwork` embeds the time and the label.


# %%
class PatchNet(ConditionedNetwork):
    """Residual convolutions on patches of 2x2 pixels, (B, C, H, W) -> (B, outputs * C, H, W).

    The data determines `shape` and `classes`, the variance `outputs`. The base class embeds the
    time and the label.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        outputs: int = 1,
        classes: int | None = None,
        channels: int = 96,
        blocks: int = 4,
    ) -> None:
        if shape[1] % 2 or shape[2] % 2:
            raise ValueError(f"shape must be even (got {shape[1]}x{shape[2]})")
        super().__init__(channels, channels, classes)
        self.first = nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(4 * shape[0], channels, 3, padding=1)
        )
        self.position = nn.Parameter(torch.zeros(channels, shape[1] // 2, shape[2] // 2))
        self.blocks = nn.ModuleList([PatchBlock(channels) for _ in range(blocks)])
        last = nn.Conv2d(channels, 4 * outputs * shape[0], 3, padding=1)
        self.last = nn.Sequential(nn.SiLU(), zero_module(last), nn.PixelShuffle(2))

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        x, emb = self.embed(x, t, cond)
        h = self.first(x) + self.position
        for block in self.blocks:
            h = block(h, emb)
        return self.last(h)


class PatchBlock(nn.Module):
    """Two convolutions, scaled and shifted by the embedding."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.emb = nn.Linear(channels, 2 * channels)
        self.norm = nn.GroupNorm(8, channels, affine=False)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = zero_module(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        """(B, channels, H, W), (B, channels) -> (B, channels, H, W)"""
        scale, shift = self.emb(emb)[:, :, None, None].chunk(2, dim=1)
        h1 = F.silu(self.norm(self.first(F.silu(self.norm(h)))) * (1 + scale) + shift)
        return h + self.second(h1)


network = PatchNet((1, 8, 8), classes=10)
output = network(torch.randn(3, 1, 8, 8), torch.tensor([1, 500, 1000]), Condition(torch.arange(3)))
assert output.shape == (3, 1, 8, 8)
print(sum(parameter.numel() for parameter in network.parameters()), "parameters")

# %% [markdown]
# ## A metric
#
# Metrics of samples compare features of samples with features of real images. FID computes the
# features, and all such metrics share them. `numbers` describes the results for tables, and `rows`
# formats them for the terminal.
#
# Coverage (Naeem et al., 2020) is the share of real images that have a sample nearby. It falls if a
# model leaves out a part of the data.


# %%
@dataclass(frozen=True)
class Coverage(FeatureMetric):
    """Coverage (Naeem et al., 2020): the share of real images with a sample nearby.

    Nearby is within the distance to the `neighbors`-th nearest real image.
    """

    numbers = (Number("coverage", "coverage", "higher", "{:.3f}"),)
    neighbors: int = 5

    def compute(self, features: Tensor, reference: Tensor, device: torch.device) -> Estimates:
        real = torch.cdist(reference, reference)
        radius = real.kthvalue(self.neighbors + 1, dim=1).values  # the nearest is itself
        nearest = torch.cdist(reference, features.to(device)).min(dim=1).values
        return {"coverage": ((nearest <= radius).double().mean().item(), None)}

    def rows(self, results: Results) -> Rows:
        remark = f"held-out images {results['real']['coverage']:.3f}"
        return [("coverage", f"{results['coverage']:.3f}", remark)]


torch.manual_seed(0)
real = torch.randn(1000, 4)
real[500:, 0] += 20  # two clusters
cpu = torch.device("cpu")
assert Coverage().compute(real, real, cpu)["coverage"][0] == 1.0
assert abs(Coverage().compute(real[:500], real, cpu)["coverage"][0] - 0.5) < 1e-9

# %% [markdown]
# The data cover themselves, and one of two clusters covers half. The tests of a metric need no
# model.
#
# ## The package
#
# The template has these definitions in a Python package, and a folder of YAML files beside it:

# %%
template = Path(ddpm_lab.__file__).parents[2] / "examples" / "my_diffusion"
configs = template / "configs"
for file in sorted([*template.glob("my_diffusion/*.py"), *template.rglob("*.yaml")]):
    print(file.relative_to(template))

# %% [markdown]
# The folder of a YAML file is the *group*, and its name is the *choice*. The file names the class
# as `_target_` and lists the options:

# %%
for name in ("schedule/log_snr", "model/patch", "metric/coverage"):
    print(f"# configs/{name}.yaml")
    print((configs / f"{name}.yaml").read_text())

# %% [markdown]
# `_partial_: true` means that the framework adds arguments later: the shape of the data for a
# network, the denoiser for a guidance.
#
# Python must be able to import the package. `pip install -e examples/my_diffusion` does this once
# and for all. Here a line of Python does the same for this session:

# %%
sys.path.insert(0, str(template))

config = ddpm_lab.compose(
    "schedule=log_snr",
    "model=patch",
    "sampler=midpoint",
    "guidance=ramp",
    "prediction=v",  # suits a schedule with many noisy steps
    "optimizer.lr=2e-3",
    "trainer.max_steps=400",
    "callbacks.fid.count=300",
    "logger=csv",
    config_dir=configs,
)
assert config.schedule._target_ == "my_diffusion.schedules.log_snr"

# %% [markdown]
# `config_dir` adds the folder to the choices; on the command line it is `--config-dir`. Options of
# your own parts are checked as all others are. A type error names the key, and so does the
# `ValueError` of your function:

# %%
for override in ("schedule.low=20", "schedule.lo=1"):
    try:
        ddpm_lab.train(ddpm_lab.compose("schedule=log_snr", override, config_dir=configs))
    except ddpm_lab.UserError as error:
        print(error)
        assert str(error).startswith("schedule.lo")

# %% [markdown]
# ## Train and load
#
# Loading a run builds its parts from the names in its `config.yaml`. Somebody else's file could
# name any function that Python can import. `load` therefore builds classes of `ddpm_lab` only,
# unless you trust a package:

# %% mystnb={"image": {"alt": "40 sampled digits"}}
run = ddpm_lab.train(config)
try:
    ddpm_lab.load(run)
except ddpm_lab.UserError as error:
    print(error)
    assert "trust=[my_diffusion]" in str(error)

model = ddpm_lab.load(run, "trust=[my_diffusion]", config_dir=configs)
model.sample(40, seed=1)

# %% [markdown]
# Every part is in use now. The metric counts as one of `metrics=[...]`, because its file is in the
# folder:

# %%
results = model.evaluate(["coverage"], ["count=300"])
print(f"coverage {results['coverage']:.3f}, of held-out images {results['real']['coverage']:.3f}")
print(f"FID {results['fid']:.2f}, of noise {results['noise']['fid']:.0f}")
assert results["noise"]["coverage"] < results["coverage"] <= 1
assert results["coverage"] > 0.15 and results["fid"] < results["noise"]["fid"] / 5
protocol = results["protocol"]
assert protocol["sampler"]["name"] == "Midpoint" and protocol["guidance"]["name"] == "RampGuidance"

# %% [markdown]
# The digits are readable, and the metric is honest: this small network, after half a minute, covers
# a part of the data only. The U-Net of [the second tutorial](02_digits.py) is better. With
# `model=auto` in place of `model=patch`, it takes your schedule, sampler, guidance and metric.
#
# The same as commands:
#
# ```
# export PYTHONPATH=examples/my_diffusion
# CONF=examples/my_diffusion/configs
# python train.py --config-dir $CONF schedule=log_snr model=patch sampler=midpoint
# python evaluate.py --config-dir $CONF run=DIR 'metrics=[coverage]' 'trust=[my_diffusion]'
# ```
#
# [Extending](../extending.md) has a smallest example for every kind of part.
