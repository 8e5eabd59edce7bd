# %% [markdown]
# # Diffusion from scratch
#
# A diffusion model turns noise into data in small steps. This tutorial builds one from its
# equations. You need PyTorch and a little probability. There are no images yet: on Gaussian data,
# every quantity has a formula. Each result below is compared with its formula, so you can see that
# the method works before you train anything.
#
# The parts are those of `ddpm_lab`. They are plain PyTorch objects.
#
# 1. The forward process adds noise.
# 2. The posterior goes back one step, if the data point is known.
# 3. The denoiser estimates the data point.
# 4. DDPM and DDIM put these together and sample.
# 5. A network learns the denoiser from data.

# %%
import math
from itertools import pairwise

import matplotlib.pyplot as plt
import torch

import ddpm_lab
from ddpm_lab.diffusion.analytic_propagation import propagate

# %% [markdown]
# ## 1. The forward process
#
# Start from a data point $x_0$. Each step shrinks it a little and adds a little noise:
#
# $$q(x_t \mid x_{t-1}) = N(\sqrt{1 - \beta_t}\, x_{t-1},\ \beta_t).$$
#
# After $T = 1000$ steps almost nothing is left of the data. The numbers $\beta_t$ are the *noise
# schedule*. Here they rise on a line from 0.0001 to 0.02, as in the DDPM paper (Ho et al., 2020).

# %%
torch.manual_seed(0)
T = 1000
betas = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)

data_mean, data_std = 0.3, 0.5
x = data_mean + data_std * torch.randn(20_000, dtype=torch.float64)

simulated = [x]
for beta in betas:
    x = (1 - beta).sqrt() * x + beta.sqrt() * torch.randn_like(x)
    simulated.append(x)

# %% [markdown]
# A sum of Gaussian variables is Gaussian. The thousand steps therefore collapse into one (eq. 4 of
# the paper):
#
# $$q(x_t \mid x_0) = N(\alpha_t x_0,\ \sigma_t^2), \qquad
# \alpha_t^2 = \bar\alpha_t = \prod_{i \le t} (1 - \beta_i), \qquad \sigma_t^2 = 1 - \bar\alpha_t.$$
#
# `ForwardProcess` holds the table of $\alpha_t$ and $\sigma_t$. Index 0 is the data, index $T$ is
# noise.

# %%
process = ddpm_lab.ForwardProcess(ddpm_lab.schedules.linear(T))
t = torch.arange(T + 1)
alpha, sigma = process.alpha_sigma(t)

alpha_bar = torch.cumprod(1 - betas, dim=0)
assert torch.allclose(alpha[1:] ** 2, alpha_bar, rtol=1e-12, atol=0)
assert torch.allclose(sigma**2, 1 - alpha**2, rtol=0, atol=1e-12)

exact_mean = alpha * data_mean
exact_std = (alpha**2 * data_std**2 + sigma**2).sqrt()
for step in (100, 300, 1000):
    mean, std = simulated[step].mean(), simulated[step].std()
    print(f"t = {step:4d}: mean {mean:+.3f} (exact {exact_mean[step]:+.3f}),", end=" ")
    print(f"std {std:.3f} (exact {exact_std[step]:.3f})")
    assert abs(mean - exact_mean[step]) < 0.03 and abs(std - exact_std[step]) < 0.02

# %% mystnb={"image": {"alt": "Histograms of x_t and the formula at t = 0, 100, 300, 1000"}}
figure, axes = plt.subplots(1, 4, figsize=(10, 2.4), sharey=True)
grid = torch.linspace(-3.5, 3.5, 200)
for axis, step in zip(axes, (0, 100, 300, 1000), strict=True):
    normal = torch.distributions.Normal(exact_mean[step], exact_std[step])
    axis.plot(grid, normal.log_prob(grid).exp(), color="#d55e00")
    axis.hist(simulated[step], bins=60, range=(-3.5, 3.5), density=True, color="#56b4e9", zorder=0)
    axis.set(title=f"t = {step}", xlabel="$x_t$")
axes[0].set_ylabel("density")
axes[-1].legend(["formula", "simulated"], fontsize=8)
plt.close(figure)  # shown once, as the last line of the cell
figure

# %% [markdown]
# The bars are simulated points, the lines are the formula. At $t = T$ the data are gone, and $x_T$
# is standard normal.
#
# ## 2. One step back
#
# Sampling runs the process backwards. If $x_0$ were known, Bayes' rule would give the step back. A
# product of two Gaussian densities is Gaussian, with precisions that add up:
#
# $$q(x_{t-1} \mid x_t, x_0) \propto q(x_t \mid x_{t-1})\, q(x_{t-1} \mid x_0).$$

# %%
t, s = torch.tensor(300), torch.tensor(299)
x_t, x_0 = 0.7, 0.4

beta = betas[t - 1]
precision = (1 - beta) / beta + 1 / sigma[s] ** 2
variance = 1 / precision
mean = variance * ((1 - beta).sqrt() / beta * x_t + alpha[s] / sigma[s] ** 2 * x_0)

library_mean = process.posterior_mean(
    torch.tensor([[x_0]], dtype=torch.float64), torch.tensor([[x_t]], dtype=torch.float64), t, s
)
print(f"by hand: mean {mean:.6f}, variance {variance:.6f}")
print(f"library: mean {library_mean.item():.6f}, variance {process.beta_tilde(t, s):.6f}")
assert torch.allclose(library_mean, mean, rtol=1e-10)
assert torch.allclose(process.beta_tilde(t, s), variance, rtol=1e-10)

# %% [markdown]
# The variance is the paper's $\tilde\beta_t$ (eq. 7). The library takes any pair of times $s < t$,
# so steps can be longer than one.
#
# ## 3. The denoiser
#
# In sampling, $x_0$ is not known. The model replaces it by its estimate from the noisy point,
# $E[x_0 \mid x_t]$. A network will learn this function later. For Gaussian data it is a formula.
# Start from the prior mean and correct it by a share of the surprise:
#
# $$E[x_0 \mid x_t] = m + \frac{\alpha_t s^2}{\alpha_t^2 s^2 + \sigma_t^2}\,(x_t - \alpha_t m),
# \qquad x_0 \sim N(m, s^2).$$


# %%
def denoise(x_t, t):
    gain = alpha[t] * data_std**2 / (alpha[t] ** 2 * data_std**2 + sigma[t] ** 2)
    return data_mean + gain * (x_t - alpha[t] * data_mean)


exact = ddpm_lab.GaussianDenoiser(
    process,
    ddpm_lab.variances.BetaTilde(),
    mean=torch.tensor([data_mean], dtype=torch.float64),
    covariance=torch.tensor([[data_std**2]], dtype=torch.float64),
)
points = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
times = torch.full((9,), 300)
assert torch.allclose(exact(points, times).x0, denoise(points, 300), rtol=1e-10)

# %% [markdown]
# An estimate is better than every other function of $x_t$ if its mean squared error is smaller.
# Compare the errors on the simulated points:

# %%
x_0, x_t = simulated[0], simulated[300]
error = (denoise(x_t, 300) - x_0).square().mean()
naive = (x_t / alpha[300] - x_0).square().mean()
least = (sigma[300] * data_std) ** 2 / exact_std[300] ** 2
print(f"squared error: {error:.4f}, the least possible {least:.4f}, of x_t / alpha_t {naive:.4f}")
assert abs(error / least - 1) < 0.05 and naive > 1.5 * error

# %% [markdown]
# ## 4. Sampling
#
# DDPM starts from noise. In each step it estimates $x_0$ and draws from the posterior at this
# estimate:


# %%
def sample_ddpm(count):
    x = torch.randn(count, dtype=torch.float64)
    for t in range(T, 0, -1):
        x_0 = denoise(x, t)
        now, previous = torch.tensor(t), torch.tensor(t - 1)
        mean = process.posterior_mean(x_0, x, now, previous)
        x = mean + process.beta_tilde(now, previous).sqrt() * torch.randn(count).double()
    return x


samples = sample_ddpm(20_000)
print(f"mean {samples.mean():.3f} (data {data_mean}), std {samples.std():.3f} (data {data_std})")
assert abs(samples.mean() - data_mean) < 0.015 and abs(samples.std() - data_std) < 0.015

# %% [markdown]
# These ten lines are the whole method. The sampler of the library runs the same loop, on tensors of
# any shape and with any denoiser. `clip=None` switches off the bound on $x_0$, which is meant for
# pixels.
#
# DDIM (Song et al., 2021) takes longer steps. It moves along the line from $x_t$ to the estimate,
# without new noise:
#
# $$x_s = \alpha_s\, \hat x_0 + \sigma_s\, \hat\epsilon, \qquad
# \hat\epsilon = \frac{x_t - \alpha_t \hat x_0}{\sigma_t}.$$
#
# How wrong are few steps? With the exact denoiser, each step is a linear map of $x_t$. The
# distribution of the samples is then known *without sampling*: `propagate` returns its mean and
# covariance. We use data with mean 0 and standard deviation 0.5, as in the table of
# [exact denoisers](../exact.md).

# %%
centered = ddpm_lab.GaussianDenoiser(
    process,
    ddpm_lab.variances.BetaTilde(),
    mean=torch.zeros(1, dtype=torch.float64),
    covariance=torch.tensor([[0.25]], dtype=torch.float64),
)


def ddim_std(steps):
    """Multiply the factors of all DDIM steps."""
    times = ddpm_lab.DDIM(steps=steps).timesteps(process)
    std = 1.0
    for t, s in pairwise(times):
        gain = alpha[t] * 0.25 / (alpha[t] ** 2 * 0.25 + sigma[t] ** 2)
        std *= alpha[s] * gain + sigma[s] * (1 - alpha[t] * gain) / sigma[t]
    return float(std)


print("steps   by hand   propagate   20,000 samples")
exact_stds, sampled_stds = {}, {}
for steps in (10, 20, 50, 100):
    sampler = ddpm_lab.DDIM(steps=steps, clip=None)
    _, covariance = propagate(sampler, centered)
    exact_stds[steps] = covariance.sqrt().item()
    sampled_stds[steps] = sampler.sample(centered, (20_000, 1), seed=0).std().item()
    print(f"{steps:5d}   {ddim_std(steps):.4f}", end="    ")
    print(f"{exact_stds[steps]:.4f}      {sampled_stds[steps]:.4f}")
    assert abs(ddim_std(steps) - exact_stds[steps]) < 1e-9
    # The standard error of a standard deviation is std / sqrt(2 n).
    assert abs(sampled_stds[steps] - exact_stds[steps]) < 3 * exact_stds[steps] / math.sqrt(40_000)

known = {10: 0.3616, 20: 0.4305, 50: 0.4719, 100: 0.4858}
assert all(abs(exact_stds[steps] - value) < 5e-5 for steps, value in known.items())

# %% [markdown]
# Ten steps lose a quarter of the standard deviation, a hundred steps lose three percent. No
# training can repair this loss, because this denoiser is perfect. The error belongs to the sampler.
#
# Samplers of second order use two estimates per step. Heun's method runs the denoiser twice, in all
# steps but the first and the last: $2K - 2$ times in $K$ steps. DPM-Solver++ remembers the estimate
# of the previous step. A fair comparison gives each sampler the same number of calls, here 20. The
# *spacing* of the times matters, too. `uniform` has equal steps. `quadratic` has small steps near
# the data and longer ones at high noise:

# %%
samplers = {
    "DDIM": (ddpm_lab.DDIM, 20),
    "DDPM": (ddpm_lab.DDPM, 20),
    "DPM-Solver++": (ddpm_lab.DPMSolver, 20),
    "Heun": (ddpm_lab.Heun, 11),
}
print("error of the standard deviation, 20 calls   uniform  quadratic")
errors = {}
for name, (kind, steps) in samplers.items():
    for spacing in ("uniform", "quadratic"):
        sampler = kind(steps=steps, clip=None, spacing=spacing)
        errors[name, spacing] = propagate(sampler, centered)[1].sqrt().item() - 0.5
    print(f"{name:42s} {errors[name, 'uniform']:+8.4f}   {errors[name, 'quadratic']:+8.4f}")
assert abs(errors["DDPM", "uniform"] + 0.1120) < 5e-5
assert abs(errors["DPM-Solver++", "quadratic"] - 0.0096) < 5e-5
first = max(abs(errors[name, "quadratic"]) for name in ("DDIM", "DDPM"))
second = max(abs(errors[name, "quadratic"]) for name in ("DPM-Solver++", "Heun"))
assert second < abs(errors["DDIM", "quadratic"]) < first

# %% [markdown]
# DDIM and DDPM make the samples too narrow, and the samplers of second order too wide. With small
# steps near the data, the second order is better. DPM-Solver++ extrapolates, so equal steps harm
# it: they are too long near the data, where the estimate changes fastest.

# %% [markdown]
# ## More than one Gaussian
#
# Real data have many modes. For a mixture of Gaussians the denoiser is still a formula. It averages
# the estimates of the components, weighted by the probability that $x_t$ came from each. Eight
# components on a circle:

# %% mystnb={"image": {"alt": "2,000 points from noise at t = 200 to eight clusters at t = 0"}}
angle = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
centers = 0.7 * torch.stack([angle.cos(), angle.sin()], dim=1)
mixture = ddpm_lab.Mixture(
    centers, torch.full((8,), 1 / 8, dtype=torch.float64), std=0.05, labels=None
)
process = ddpm_lab.ForwardProcess(ddpm_lab.schedules.cosine(200))
exact = ddpm_lab.MixtureDenoiser(process, ddpm_lab.variances.BetaTilde(), mixture)

sampler = ddpm_lab.DDPM()
torch.manual_seed(1)
x_T = sampler.prior(process, torch.randn(2000, 2))
snapshots = {200: x_T}
with torch.no_grad():
    snapshots |= {t: x for t, x in sampler.trajectory(exact, x_T) if t in (100, 40, 10, 0)}

figure, axes = plt.subplots(1, 5, figsize=(12, 2.6))
for axis, (t, x) in zip(axes, snapshots.items(), strict=True):
    axis.scatter(*x.T, s=1, color="#0072b2")
    axis.set(title=f"t = {t}", xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xticks=(), yticks=())
plt.close(figure)
figure


# %%
def nearest(x):
    """Return the distance to the nearest center and its number."""
    return torch.cdist(x.double(), centers).min(dim=1)


distance, component = nearest(snapshots[0])
shares = torch.bincount(component, minlength=8) / len(component)
rms = (distance.square().mean() / 2).sqrt()
print("share of each component:", [f"{share:.3f}" for share in shares.tolist()])
one_component = ddpm_lab.GaussianDenoiser(
    process,
    ddpm_lab.variances.BetaTilde(),
    mean=torch.zeros(2, dtype=torch.float64),
    covariance=0.05**2 * torch.eye(2, dtype=torch.float64),
)
_, covariance = propagate(ddpm_lab.DDPM(clip=None), one_component)
predicted = covariance[0, 0].sqrt()
print(f"standard deviation around the centers: {rms:.4f}, predicted {predicted:.4f} (data 0.05)")
assert (shares - 1 / 8).abs().max() < 0.03 and abs(rms / predicted - 1) < 0.05

# %% [markdown]
# All eight components have their share. Their spread is a little too small. This is the error of
# 200 steps again, and `propagate` predicts it from a single component.

# %% [markdown]
# ## 5. Learn the denoiser
#
# For real data there is no formula, but there are examples. A noisy point is
# $x_t = \alpha_t x_0 + \sigma_t \epsilon$, at a random time. The network predicts the noise
# $\epsilon$ in it, and the loss is the mean squared error (algorithm 1 of the paper). $\epsilon$
# and $x_0$ determine each other, so the estimate of $x_0$ comes with it.
#
# - `Denoiser` wraps a network and converts its output.
# - `denoiser.loss(x0)` draws times and noise and returns the loss.
# - `EMAModel` averages the weights, which removes the noise of the last training steps.

# %%
torch.manual_seed(2)
generator = torch.Generator().manual_seed(0)
data = mixture.sample(8000, generator)[0].float()

denoiser = ddpm_lab.Denoiser(ddpm_lab.MLP((2,), channels=96), process)
ema = ddpm_lab.EMAModel(denoiser, decay=0.995)
STEPS = 2000
optimizer = torch.optim.AdamW(denoiser.parameters(), lr=3e-3)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
losses = []
for _ in range(STEPS):
    batch = data[torch.randint(len(data), (512,))]
    optimizer.zero_grad()
    loss = denoiser.loss(batch)
    loss.backward()
    optimizer.step()
    scheduler.step()
    ema.update()
    losses.append(loss.item())

# %% [markdown]
# What is a good loss? Predicting $\epsilon$ without any error is impossible: many pairs of data and
# noise lead to the same $x_t$. The exact denoiser makes the least possible error, and we can
# compute it:

# %% mystnb={"image": {"alt": "The training loss falls to that of the exact denoiser"}}
with torch.no_grad():
    fresh = mixture.sample(50_000, generator)[0].float()
    t = torch.randint(1, process.steps + 1, (50_000,), generator=generator)
    eps = torch.randn(fresh.shape, generator=generator)
    x_t = process.diffuse(fresh, eps, t)
    error = {
        name: (process.eps(x_t, model(x_t, t).x0, t) - eps).square().mean().item()
        for name, model in {"exact": exact, "raw": denoiser, "ema": ema.average}.items()
    }
print({name: round(value, 4) for name, value in error.items()}, "on new points")
assert error["exact"] < error["ema"] < 1.1 * error["exact"]

smooth = torch.tensor(losses).view(-1, 50).mean(dim=1)
figure, axis = plt.subplots(figsize=(5, 2.8))
axis.plot(torch.arange(len(smooth)) * 50, smooth, label="training loss")
axis.axhline(error["exact"], color="#d55e00", label="exact denoiser")
axis.set(xlabel="step", ylabel="loss", ylim=(0, None))
axis.legend()
plt.close(figure)
figure

# %% [markdown]
# The loss ends just above the least possible one. A loss far from zero can therefore be a perfect
# result.
#
# `sampler.sample` draws the starting noise from a seed and runs the chain. Sample $i$ of a seed is
# always the same, whatever the size of the batch.

# %% mystnb={"image": {"alt": "Samples of the trained network: eight clusters"}}
samples = ddpm_lab.DDPM().sample(ema.average, (2000, 2), seed=0)
torch.testing.assert_close(ddpm_lab.DDPM().sample(ema.average, (5, 2), seed=0), samples[:5])

distance, component = nearest(samples)
shares = torch.bincount(component, minlength=8) / len(component)
on_data = (distance < 4 * 0.05).double().mean()
print("share of each component:", [f"{share:.3f}" for share in shares.tolist()])
print(f"within 4 standard deviations of a center: {on_data:.1%} (data 99.97 %)")
assert on_data > 0.97 and (shares - 1 / 8).abs().max() < 0.05
ddpm_lab.Samples(samples, component)

# %% [markdown]
# The network never saw the formula, only 8,000 points. Its samples cover all eight components in
# the right shares.
#
# Things to try:
#
# - Replace DDPM by `ddpm_lab.DDIM(steps=10)` and look at the shares and the spread.
# - Replace the schedule by `ddpm_lab.schedules.linear(200)`.
# - Train with another target: `ddpm_lab.Denoiser(network, process, ddpm_lab.predictions.V())`.
#
# Next: [the same on images of digits](02_digits.py), with training, checkpoints and metrics from
# the framework.
