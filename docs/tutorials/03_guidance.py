# %% [markdown]
# # Guidance: quality against variety
#
# A conditional model samples a class $y$. Classifier-free guidance (Ho & Salimans, 2022) makes
# samples fit their class better, and less varied. This tutorial shows why, first with exact
# formulas and then on digits:
#
# 1. what guidance computes,
# 2. its exact distribution in one dimension,
# 3. strength against class accuracy, precision and recall on digits,
# 4. guidance in an interval of times.
#
# ## 1. Two estimates
#
# The model is trained with labels, and some labels are dropped. It can therefore estimate $x_0$
# with the class and without it. Guidance moves the estimate away from the one without:
#
# $$\hat x_0 = x_0(x_t, y) + w\,\bigl(x_0(x_t, y) - x_0(x_t)\bigr).$$
#
# $w = 0$ is the plain conditional model. Two Gaussian classes on a line are enough to study this,
# because their denoiser is a formula:

# %%
import matplotlib.pyplot as plt
import torch

import ddpm_lab
from ddpm_lab import ClassifierFreeGuidance, Condition

MEAN, STD = 0.4, 0.3
mixture = ddpm_lab.Mixture(
    means=torch.tensor([[-MEAN], [MEAN]], dtype=torch.float64),
    weights=torch.tensor([0.5, 0.5], dtype=torch.float64),
    std=STD,
    labels=torch.tensor([0, 1]),
)
process = ddpm_lab.ForwardProcess(ddpm_lab.schedules.linear(1000))
exact = ddpm_lab.MixtureDenoiser(process, ddpm_lab.variances.BetaTilde(), mixture)

# %% [markdown]
# In terms of the score, guidance follows the class and, $w$ times, a classifier (Bayes' rule):
#
# $$\nabla \log q(x_t \mid y) + w\, \nabla \log p(y \mid x_t).$$
#
# No classifier is trained. The difference of the two estimates contains it. Here is the proof by
# numbers:

# %%
w = 2.0
x_t = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None].requires_grad_()
t = torch.full((9,), 400)
label = Condition(torch.ones(9, dtype=torch.int64))

alpha, sigma = process.alpha_sigma(t)
variance = ((alpha * STD) ** 2 + sigma**2)[:, None]
means = alpha[:, None] * torch.tensor([-MEAN, MEAN], dtype=torch.float64)
log_density = -((x_t - means) ** 2) / (2 * variance)  # of each class, up to a constant
log_classifier = log_density.log_softmax(dim=1)[:, 1]
target = log_density[:, 1] + w * log_classifier
(score,) = torch.autograd.grad(target.sum(), x_t)

with torch.no_grad():
    guided = ClassifierFreeGuidance(exact, w=w)(x_t, t, label)
    guided_score = process.score(x_t, guided.x0, t)
print("largest difference of the scores:", (guided_score - score).abs().max().item())
torch.testing.assert_close(guided_score, score, rtol=1e-9, atol=1e-9)

# %% [markdown]
# ## 2. The exact distribution
#
# DDIM is deterministic. In one dimension it maps the quantiles of the noise to the quantiles of the
# samples. A grid of quantiles through the sampler gives the distribution of guided samples, without
# random numbers.
#
# One may expect that guided samples have the density $p(x \mid y)\, p(y \mid x)^w$, normalized.
# This is the density whose score is above at $t = 0$. We compute it on a grid and compare.

# %%
share = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
noise = torch.distributions.Normal(0.0, 1.0).icdf(share)[:, None]
label = Condition(torch.ones(2000, dtype=torch.int64))
sampler = ddpm_lab.DDIM(steps=200, clip=None)


@torch.no_grad()
def guided_samples(w, interval=None):
    guided = ClassifierFreeGuidance(exact, w=w, interval=interval)
    return sampler(guided, noise, label)[:, 0]


grid = torch.linspace(-2.5, 2.5, 5001, dtype=torch.float64)


def tilted_density(w):
    """Return p(x | y) p(y | x)^w on the grid, normalized."""
    logs = -((grid[:, None] - torch.tensor([-MEAN, MEAN], dtype=torch.float64)) ** 2) / (2 * STD**2)
    density = (logs[:, 1] + w * logs.log_softmax(dim=1)[:, 1]).exp()
    return density / torch.trapezoid(density, grid)


results = {w: guided_samples(w) for w in (0.0, 1.0, 2.0, 4.0)}
print("  w   mean    std     mean of the tilted density")
tilted_means = {}
for w, x in results.items():
    tilted_means[w] = torch.trapezoid(grid * tilted_density(w), grid).item()
    print(f"{w:3g}   {x.mean():.4f}  {x.std():.4f}  {tilted_means[w]:.4f}")

assert abs(results[0.0].mean() - MEAN) < 0.005 and abs(results[0.0].std() - STD) < 0.01
assert abs(tilted_means[0.0] - MEAN) < 1e-6
averages = [x.mean().item() for x in results.values()]
spreads = [x.std().item() for x in results.values()]
assert averages == sorted(averages) and spreads == sorted(spreads, reverse=True)
assert all(results[w].mean() > tilted_means[w] + 0.02 for w in (1.0, 2.0, 4.0))

# %% mystnb={"image": {"alt": "Histograms of samples and tilted density, w = 0, 1, 2, 4"}}
figure, axes = plt.subplots(1, 4, figsize=(12, 2.6), sharey=True)
for axis, (w, x) in zip(axes, results.items(), strict=True):
    axis.hist(x, bins=60, range=(-1, 2.5), density=True, color="#56b4e9", label="samples")
    axis.plot(grid, tilted_density(w), color="#d55e00", label="tilted density")
    axis.set(title=f"w = {w:g}", xlim=(-1, 2.5))
axes[0].legend(fontsize=8)
plt.close(figure)  # shown once, as the last line of the cell
figure

# %% [markdown]
# Two lessons:
#
# - Guidance moves samples away from the other class and makes them less varied.
# - Guided samples do *not* have the tilted density. They go further. The noised tilted density is
#   not the tilted noised density, so the scores at $t > 0$ belong to another process.
#
# ## 3. Digits
#
# Now a trained model, small and fast. The configuration drops a tenth of the labels
# (`conditioner.dropout`), as the method requires.

# %%
config = ddpm_lab.compose(
    "trainer.max_steps=250", "model.channels=24", "logger=csv", "~callbacks.fid"
)
assert config.conditioner.dropout == 0.1
model = ddpm_lab.load(ddpm_lab.train(config))

# %% [markdown]
# `guidance=` is the strength $w$. Each row below has the same noise, and $w$ grows from top to
# bottom.

# %% mystnb={"image": {"alt": "Digits 0 to 9 in one row each for w = 0, 1 and 4"}}
strengths = [0.0, 1.0, 4.0]
rows = [model.sample(10, seed=4, guidance=w).tensor for w in strengths]
ddpm_lab.Samples(torch.cat(rows))

# %% [markdown]
# Three numbers show the trade-off. A small classifier, which comes with the package, recognizes the
# digits.
#
# - *Class accuracy*: the share of samples recognized as the requested class.
# - *Precision*: the share of samples that look like real digits.
# - *Recall*: the share of real digits that look like samples.

# %%
table = {}
for w in strengths:
    table[w] = model.evaluate(["prc"], ["count=300", f"guidance.w={w}"])
    numbers = {key: table[w][key] for key in ("class_accuracy", "precision", "recall", "fid")}
    print(f"w = {w:g}:", {key: round(value, 3) for key, value in numbers.items()})

accuracy = [table[w]["class_accuracy"] for w in strengths]
recall = [table[w]["recall"] for w in strengths]
assert accuracy[0] < accuracy[1] and accuracy[1] > 0.97
assert recall[0] > recall[1] > recall[2]

# %% mystnb={"image": {"alt": "Class accuracy, precision and recall against w"}}
figure, axis = plt.subplots(figsize=(5, 2.8))
for key in ("class_accuracy", "precision", "recall"):
    axis.plot(strengths, [table[w][key] for w in strengths], marker="o", label=key)
axis.set(xlabel="w", ylim=(0, 1.05))
axis.legend()
plt.close(figure)
figure

# %% [markdown]
# Accuracy rises quickly and recall falls. Strong guidance draws the same perfect digit again and
# again.
#
# ## 4. Guidance in an interval
#
# The class decides the large shapes, at medium noise. Near $t = T$ guidance mostly removes variety,
# and near the data it changes little (Kynkäänniemi et al., 2024). `guidance.interval=[low,high]`
# guides at those times only. On the two Gaussian classes the effect is exact:

# %%
w = 2.0
full, middle = guided_samples(w), guided_samples(w, interval=[1, 500])
off = guided_samples(0.0)
for name, x in {"off": off, "interval": middle, "full": full}.items():
    print(f"{name:9s} mean {x.mean():.4f}, std {x.std():.4f}")
assert off.mean() < middle.mean() < full.mean()
torch.testing.assert_close(guided_samples(w, interval=[1, 1000]), full)

# %%
interval = model.evaluate(["prc"], ["count=300", "guidance.w=1", "guidance.interval=[100,600]"])
for name, result in {"w = 1": table[1.0], "w = 1 in [100, 600]": interval}.items():
    print(f"{name:20s} recall {result['recall']:.3f}, accuracy {result['class_accuracy']:.3f}")
assert interval["recall"] > table[1.0]["recall"]

# %% [markdown]
# The interval keeps more of the variety, and most of the accuracy.
#
# The same as commands:
#
# ```
# python evaluate.py run=DIR sweep=guidance.w 'values=[0,1,4]' count=300
# python sample.py run=DIR guidance.w=1 'guidance.interval=[100,600]'
# ```
#
# Next: [your own images](04_own_images.py).
