# %% [markdown]
# # Your own images
#
# This tutorial trains on a folder of images, as you would with your own. It draws the folder first,
# so that it needs no download: colored spots of 16x16 pixels, in one folder per class. Then it
#
# 1. trains a model with classes,
# 2. samples classes by name, and checks them,
# 3. encodes images, decodes them and walks between them,
# 4. exports the model to share it.
#
# ## A folder of images
#
# The name of a folder is the name of its class. All images have one size here. For photos of
# different sizes, add `data.convert=true data.resolution=64`; [Data](../data.md) explains all
# options.

# %%
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

import ddpm_lab

SIZE = 16
COLORS = {"red": (230, 60, 50), "green": (60, 200, 80), "blue": (60, 90, 235)}
random = np.random.default_rng(0)


def draw(color):
    """Return a spot of this color, of random size and position, on a dark background."""
    image = Image.new("RGB", (4 * SIZE, 4 * SIZE), (20, 20, 30))
    radius = random.uniform(14, 22)
    x, y = random.uniform(radius, 4 * SIZE - radius, 2)
    box = (x - radius, y - radius, x + radius, y + radius)
    ImageDraw.Draw(image).ellipse(box, fill=color)
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


for name, color in COLORS.items():
    folder = Path("spots", name)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(150):
        draw(color).save(folder / f"{i:03d}.png")
print({folder.name: len(list(folder.iterdir())) for folder in sorted(Path("spots").iterdir())})

# %% [markdown]
# ## Train
#
# `data=folder` reads the folder. `conditioner=label` gives the class to the network. The two are
# separate, because a model of a folder may also ignore its classes. FID needs a feature extractor,
# which is downloaded for such images, so this example leaves it out: `~callbacks.fid` removes a
# callback.

# %%
config = ddpm_lab.compose(
    "data=folder",
    "data.path=spots",
    "conditioner=label",
    "trainer.max_steps=400",
    "model.channels=16",
    "model.multipliers=[1,2,2]",
    "data.batch_size=32",
    "optimizer.lr=2e-3",
    "~callbacks.fid",
    "logger=csv",
)
run = ddpm_lab.train(config)
model = ddpm_lab.load(run)
print(model, model.class_names)
assert model.shape == (3, SIZE, SIZE) and model.class_names == ["blue", "green", "red"]

# %% [markdown]
# The data of the run come with the model. These are held-out images:

# %% mystnb={"image": {"alt": "20 held-out images: colored spots"}}
held_out = ddpm_lab.Samples(*model.data.test.select(slice(20)))
held_out

# %% [markdown]
# ## Sample classes by name

# %% mystnb={"image": {"alt": "30 sampled spots: red, green, blue in turn"}}
samples = model.sample(30, label=["red", "green", "blue"])
samples


# %% [markdown]
# Are they right? The color of the spot is the channel with the largest mean contrast. Real images
# give the correct answer, and samples should do so as well.


# %%
def color_of(pixels):
    """Return the class number of images (N, 3, H, W)."""
    strongest = pixels.float().flatten(2).quantile(0.95, dim=2).argmax(dim=1)
    return torch.tensor([2, 1, 0])[strongest]  # channels R, G, B are classes 2, 1, 0


accuracy = (color_of(samples.tensor) == samples.labels).double().mean()
print(f"color as requested: {accuracy:.0%} of samples")
assert (color_of(held_out.tensor) == held_out.labels).all()
assert accuracy > 0.9

# %% [markdown]
# ## Encode and decode
#
# With `sampler=ddim sampler.eta=0`, sampling is a deterministic map from noise $x_T$ to an image.
# The map can be run backwards. `encode` returns the noise of an image, and `decode` returns the
# image again. More steps make the pair more exact.

# %% mystnb={"image": {"alt": "Eight images above, encoded and decoded below"}}
images = held_out[:8]
errors = {}
for steps in (10, 40):
    x_T = model.encode(images, sampler="ddim", steps=steps)
    decoded = model.decode(x_T, label=images.labels, sampler="ddim", steps=steps)
    errors[steps] = (decoded.x0 - images.x0).square().mean().sqrt().item() / 2
    print(f"{steps} steps: error {errors[steps]:.3f} of the pixel range")
print(f"mean of the noise {x_T.mean():.2f}, standard deviation {x_T.std():.2f}")
assert errors[40] < errors[10] and errors[40] < 0.1 and 0.6 < x_T.std() < 1.3
ddpm_lab.Samples(torch.cat([images.tensor, decoded.tensor])).grid(columns=8)

# %% [markdown]
# The top row is real, the bottom row is encoded and decoded. The noise of an image keeps its
# content, so a class can be exchanged: decode with another label.

# %% mystnb={"image": {"alt": "The same spots, decoded as red"}}
swapped = model.decode(x_T, label=["red"] * 8, sampler="ddim", steps=40)
share = (color_of(swapped.tensor) == 2).double().mean()
print(f"{share:.0%} are red now")
assert share >= 0.75
swapped

# %% [markdown]
# ## Interpolate
#
# A straight line between two images is a double exposure. A path between their noises passes
# through images. Noise of many dimensions lies near a sphere, so the path follows the sphere.

# %% mystnb={"image": {"alt": "A row of spots from one red spot to another"}}
reds = held_out[held_out.labels == 2]
path = model.interpolate(reds[:1], reds[1:2], frames=9, sampler="ddim", steps=40)
assert len(path) == 9 and (color_of(path.tensor) == 2).double().mean() > 0.8
path

# %% [markdown]
# ## Share
#
# A run contains checkpoints with the state of training. `share` writes only what is needed to
# sample: weights in the format safetensors, and the configuration. Nobody has to trust you: reading
# the folder runs no code from it.

# %%
folder = ddpm_lab.share(run, "spots-model")
size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
print(sorted(file.name for file in folder.iterdir()), f"{size:.1f} MiB")

shared = ddpm_lab.load(folder)
assert torch.equal(shared.sample(4, seed=5).tensor, model.sample(4, seed=5).tensor)
assert {file.suffix for file in folder.iterdir()} == {".json", ".yaml", ".safetensors"}

# %% [markdown]
# To continue training on new images, start from these weights with `init`:
# `ddpm_lab.compose("data=folder", "data.path=OTHER", "init=spots-model")`.
#
# The commands of this page:
#
# ```
# python train.py data=folder data.path=spots conditioner=label
# python sample.py run=DIR 'label=[red,green,blue]' count=30
# python sample.py run=DIR mode=encode sampler=ddim sampler.steps=40
# python sample.py run=DIR mode=interpolate label=red
# python share.py DIR spots-model
# ```
#
# Next: [a package of your own](05_extension.py) adds new parts to the framework.
