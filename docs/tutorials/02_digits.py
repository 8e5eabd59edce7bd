# %% [markdown]
# # Digits: train a model and look inside
#
# [The first tutorial](01_from_scratch.py) built diffusion from its equations. This one trains a
# model of images with the framework, in half a minute. Then it opens the model: its trajectory from
# noise to an image, the effect of averaged weights, the bits per dimension, and the number of
# steps.
#
# ## Configurations
#
# A model has many parts: a schedule, a network, an objective, a sampler and more. In `ddpm_lab`
# each part is a *choice* in a *group*, and each option is a *value*. You name only what differs
# from the default:
#
# - `schedule=linear` selects another choice of the group `schedule`,
# - `trainer.max_steps=250` sets a value.
#
# The library [Hydra](https://hydra.cc) puts all of them together into one configuration.
# `ddpm_lab.compose` returns it. The same words work on the command line: `python train.py
# schedule=linear trainer.max_steps=250`.

# %%
import json

import matplotlib.pyplot as plt
import torch

import ddpm_lab

config = ddpm_lab.compose(
    "trainer.max_steps=250",  # the default is 800 steps
    "model.channels=24",  # a smaller network than the default
    "callbacks.fid.count=250",  # samples for the FID at the end
    "lr_schedule=constant",  # the average replaces the decay of the learning rate
    "logger=csv",  # no W&B
)
print("schedule :", config.schedule)
print("sampler  :", config.sampler)
assert config.schedule._target_ == "ddpm_lab.diffusion.schedules.cosine"

# %% [markdown]
# A configuration is a tree of names and numbers. `_target_` names the function or class to call,
# and the other keys are its arguments. A word that does not exist is an error, with a hint:

# %%
try:
    ddpm_lab.compose("schedule=cosin")
except ddpm_lab.UserError as error:
    print(error)
    assert "did you mean cosine?" in str(error)

# %% [markdown]
# ## Train
#
# `train` writes a *run directory* and returns its path. The directory has the configuration, the
# checkpoints, the losses, sample grids and the metrics. The data are 1,437 handwritten digits of
# 8x8 pixels, which come with scikit-learn.

# %%
run = ddpm_lab.train(config)
print(sorted(file.name for file in run.iterdir()))
metrics = json.loads((run / "metrics.json").read_text())
print(f"FID {metrics['fid']:.2f}, of real held-out images {metrics['real']['fid']:.2f}")
assert metrics["real"]["fid"] < metrics["fid"] < metrics["noise"]["fid"] / 10

# %% [markdown]
# FID compares samples with training images, in the features of a small classifier. Lower is better.
# Two numbers help to read it: real held-out images have the best FID that one can expect, and
# random pixels have a FID of hundreds.
#
# ## Sample
#
# `load` returns a model. `sample` takes a class by number or name. The result is a `Samples`
# object, and a notebook shows it as a picture.

# %% mystnb={"image": {"alt": "50 sampled digits, 0 to 9 in turn"}}
model = ddpm_lab.load(run)
print(model, model.class_names)
samples = model.sample(50, seed=1)  # all classes in turn
again = model.sample(3, seed=1)
assert (samples.tensor[:3].int() - again.tensor.int()).abs().max() <= 1  # sample i of a seed
samples

# %% mystnb={"image": {"alt": "Ten sampled sevens"}}
sevens = model.sample(10, label="seven", seed=2)
assert sevens.labels.tolist() == [7] * 10
sevens

# %% [markdown]
# ## The trajectory
#
# Sampling begins with noise $x_T$. At each step the network sees $x_t$ and the class, and estimates
# the clean image $\hat x_0$. The sampler then moves to a slightly less noisy $x_s$. `trajectory`
# yields every step. The top row below is $x_t$, and the bottom row is the estimate $\hat x_0$ at
# the same time.

# %% mystnb={"image": {"alt": "x_t above, estimates of x_0 below, from noise to a 3"}}
steps = list(model.trajectory(1, label=3, seed=0, steps=25))
times = [t for t, _, _ in steps]
print("times:", times)
x_t = torch.cat([x for _, x, _ in steps])
x_0 = torch.cat([estimate for _, _, estimate in steps])
assert times[0] == 1000 and times[-1] == 0 and len(times) == 26

rows = torch.cat([x_t[::3], x_0[::3]])
ddpm_lab.Samples.from_x0(rows).grid(columns=len(rows) // 2)

# %% [markdown]
# The first estimate is meaningless: $x_T$ has no information about an image, and the error of the
# network is amplified. Then the estimate is a blurred average of all threes, and becomes sharper.
# The large strokes appear first, at high noise. The last steps change only details. Numbers say the
# same: the distance of the estimate to the final image shrinks.

# %% mystnb={"image": {"alt": "Distance of the estimate to the final image against t"}}
many = list(model.trajectory(100, seed=0, steps=25))
final = many[-1][1]
distance = [(estimate - final).square().mean().sqrt().item() for _, _, estimate in many]
assert distance[0] > 2 * distance[12] > 4 * distance[23]

figure, axis = plt.subplots(figsize=(5, 2.8))
axis.plot([t for t, _, _ in many], distance, marker="o", markersize=3)
axis.set(xlabel="t", ylabel="distance of the estimate\nto the final image", xlim=(1000, 0))
plt.close(figure)  # shown once, as the last line of the cell
figure

# %% [markdown]
# ## Averaged weights
#
# The weights of a network jump around during training. Their exponential moving average (EMA) is
# smoother: $\bar w \leftarrow d\,\bar w + (1 - d)\,w$ after each step. Models are sampled with the
# average. `weights=raw` loads the last weights instead. The same seed gives the same noise, so the
# images below correspond.

# %% mystnb={"image": {"alt": "Ten digits of the average, and of the last weights below"}}
raw = ddpm_lab.load(run, "weights=raw")
difference = sum(
    (a - b).norm().item()
    for a, b in zip(model.denoiser.parameters(), raw.denoiser.parameters(), strict=True)
)
print(f"distance of the weights: {difference:.2f}")
assert difference > 0

pair = torch.cat([model.sample(10, seed=3).tensor, raw.sample(10, seed=3).tensor])
ddpm_lab.Samples(pair)  # above: average, below: last weights

# %%
fid = {}
for name, one in {"ema": model, "raw": raw}.items():
    fid[name] = one.evaluate(["fid"], ["count=250"])["fid"]
print(fid)
assert fid["ema"] == metrics["fid"]  # the number that training computed
assert fid["ema"] < fid["raw"]

# %% [markdown]
# ## Bits per dimension
#
# A diffusion model has a likelihood, too. The variational bound (Ho et al., 2020, eq. 5) says how
# many bits the model needs to store an image, per pixel:
#
# $$-\log_2 p(x_0) \le L_T + \sum_{t > 1} L_{t-1} + L_0.$$
#
# A pixel is stored as a byte, so a model that knows nothing needs 8 bits. `bits_per_dim` returns
# the bound for each image. The full chain has 1,000 steps. Here 100 steps are enough, with the
# optimal variance of each step (`variance=analytic`, Bao et al., 2022).

# %%
chain = ["nll.steps=100", "variance=analytic"]
images = model.data.test.select(slice(30))
bits = model.bits_per_dim(ddpm_lab.Samples(*images), chain)
noise = torch.randint(0, 256, (30, 1, 8, 8), dtype=torch.uint8)
noise = ddpm_lab.Samples(noise, images.labels)
bits_of_noise = model.bits_per_dim(noise, chain)
print(f"held-out digits: {bits.mean():.2f} bits/dim")
print(f"random pixels:   {bits_of_noise.mean():.2f} bits/dim, of 8 bits in a byte")
assert bits.mean() < 8 < bits_of_noise.min()

# %% [markdown]
# Digits are cheap and random pixels are expensive. No model can store random bytes in fewer than 8
# bits on average, and the bound confirms it.
#
# ## Steps and quality
#
# More steps cost more time. With how few can we do? DDIM with $\eta = 0$ is deterministic and needs
# few steps:

# %% mystnb={"image": {"alt": "FID against the number of sampling steps"}}
counts, fids = [2, 5, 10, 25], []
for steps in counts:
    overrides = ["count=250", "sampler=ddim", f"sampler.steps={steps}"]
    fids.append(model.evaluate(["fid"], overrides)["fid"])
    print(f"{steps:3d} steps: FID {fids[-1]:.2f}")
assert fids[0] > fids[1] > fids[-1]

figure, axis = plt.subplots(figsize=(5, 2.8))
axis.plot(counts, fids, marker="o")
axis.axhline(metrics["real"]["fid"], color="#d55e00", label="held-out images")
axis.set(xlabel="sampling steps", ylabel="FID", yscale="log")
axis.legend()
plt.close(figure)
figure

# %% [markdown]
# A few steps go a long way, and then the curve is flat: the rest is the error of the network. The
# default sampler adds fresh noise at each step (`sampler=ancestral`). This corrects some errors of
# the network, so its FID with 25 steps, at the top of the page, is better.
#
# Every call above also exists as a command. It prints the same numbers:
#
# ```
# python train.py trainer.max_steps=250 model.channels=24 callbacks.fid.count=250 \
#     lr_schedule=constant logger=csv
# python sample.py run=DIR label=seven count=10 seed=2
# python evaluate.py -m run=DIR count=250 sampler=ddim sampler.steps=2,5,10,25
# python evaluate.py run=DIR 'metrics=[nll]' nll.steps=100 nll.count=30 variance=analytic
# ```
#
# Next: [guidance](03_guidance.py) makes samples fit their class better, at a price.
