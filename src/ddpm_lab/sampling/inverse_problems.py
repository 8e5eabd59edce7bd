"""Guidances by images in files: inpainting, DPS and PiGDM."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_lab.data.image_folder import read_images
from ddpm_lab.data.image_io import open_image
from ddpm_lab.diffusion.denoiser import DenoiserLike
from ddpm_lab.diffusion.guidance import Strength
from ddpm_lab.diffusion.inverse_guidance import DPS, Inpainting, InverseProblem, PiGDM
from ddpm_lab.diffusion.operators import OPERATORS, Mask, Operator
from ddpm_lab.diffusion.rng import PerSampleGenerator
from ddpm_lab.sampling.conditions import format_size
from ddpm_lab.utils.ranges import NonNegative, Positive

MakeOperator = str | Callable[..., Operator]
"""The name of an operator, or a function of the shape (C, H, W) and an amount that builds one"""


def inpainting(
    denoiser: DenoiserLike,
    image: str,
    operator: MakeOperator = "mask",
    mask: str | None = None,
    amount: int | float | None = None,
    w: Strength = 0.0,
) -> Inpainting:
    """Keep the visible pixels of `image`, and sample the others; see `dps` for the arguments.

    Raises ValueError that begins with the argument, or for another operator than masks.
    """
    return Inpainting(denoiser, read_problem(denoiser, image, operator, mask, amount), w)


def dps(
    denoiser: DenoiserLike,
    image: str,
    operator: MakeOperator = "mask",
    mask: str | None = None,
    amount: int | float | None = None,
    noise: NonNegative = 0.0,
    measured: bool = False,
    w: Strength = 0.0,
    zeta: NonNegative = 1.0,
    clip: Positive | None = 1.0,
) -> DPS:
    """Sample images with the measurement of `image`; see `DPS` for `zeta` and `clip`.

    Args:
        denoiser: A denoiser of pixels.
        image: An image file, or a folder: sample i has image i mod N.
        operator: "mask", a key of `OPERATORS`, or a function like its values.
        mask: An image file, white (visible) and black (hidden), for operator="mask".
        amount: The option of the operator (None: its default).
        noise: Standard deviation of the noise that is added to the measurement.
        measured: True if `image` is the measurement, in its own size, and not an image to measure.
        w: Strength of the classifier-free guidance inside; 0 is off.
        zeta: Step size.
        clip: Bound on x_0 inside the norm.

    Raises ValueError that begins with the argument.
    """
    problem = read_problem(denoiser, image, operator, mask, amount, noise, measured)
    return DPS(denoiser, problem, w, zeta, clip)


def pigdm(
    denoiser: DenoiserLike,
    image: str,
    operator: MakeOperator = "mask",
    mask: str | None = None,
    amount: int | float | None = None,
    noise: NonNegative = 0.0,
    measured: bool = False,
    w: Strength = 0.0,
    data_std: Positive = 1.0,
) -> PiGDM:
    """Sample images with the measurement of `image`; see `PiGDM`, and `dps` for the arguments.

    With `measured`, `noise` is the standard deviation of the noise in the measurement.
    """
    problem = read_problem(denoiser, image, operator, mask, amount, noise, measured)
    return PiGDM(denoiser, problem, w, data_std)


@torch.inference_mode(False)  # the tensors take part in autograd
def read_problem(
    denoiser: DenoiserLike,
    image: str,
    operator: MakeOperator = "mask",
    mask: str | None = None,
    amount: int | float | None = None,
    noise: float = 0.0,
    measured: bool = False,
) -> InverseProblem:
    """Return the problem of these files; see `dps`. The noise of image i depends on i only."""
    shape = denoiser.shape
    if denoiser.space or shape is None or len(shape) != 3:
        kind = "latents" if denoiser.space else "points"
        raise ValueError(f"image={image} is for models of pixels, but this one samples {kind}")
    measure = _make_operator(operator, shape, mask, amount)
    if measured:
        y = _read_images(image, tuple(measure.forward(torch.zeros(1, *shape)).shape[1:]))
        return InverseProblem(measure, y, noise, {"measurement": _as_picture(y, shape)})
    x0 = _read_images(image, shape)
    y = measure.forward(x0)
    y = y + noise * PerSampleGenerator(0, range(len(y)))(y)
    return InverseProblem(measure, y, noise, {"image": x0, "measurement": _as_picture(y, shape)})


def _make_operator(
    name: MakeOperator, shape: tuple[int, ...], mask: str | None, amount: float | None
) -> Operator:
    if mask is not None and name == "mask":
        if amount is not None:
            raise ValueError(f"amount={amount} is not for operator=mask; try guidance.amount=null")
        return _read_mask(mask, shape)
    if mask is not None:
        raise ValueError(f"mask={mask} is not for operator={name}; try guidance.operator=mask")
    if name == "mask":
        raise ValueError("mask=null, but operator=mask needs an image; try guidance.mask=FILE")
    if isinstance(name, str):
        if name not in OPERATORS:
            raise ValueError(f"operator={name} is not one of mask, {', '.join(OPERATORS)}")
        name = OPERATORS[name]
    return name(shape) if amount is None else name(shape, amount)


def _read_images(path: str, shape: tuple[int, ...]) -> Tensor:
    """Return the images (N, C, H, W) in [-1, 1] of a file or folder."""
    _require(path, "image")
    try:
        return read_images(Path(path), shape).x0
    except ValueError as error:
        advice = "; scale or convert it first" * ("expected" in str(error))
        raise ValueError(f"image={error}{advice}") from error


def _read_mask(path: str, shape: tuple[int, ...]) -> Mask:
    _require(path, "mask")
    try:
        image = open_image(Path(path)).convert("L")
    except ValueError as error:
        raise ValueError(f"mask={error}") from error
    pixels = torch.from_numpy(np.array(image))
    if pixels.shape != shape[1:]:
        raise ValueError(
            f"mask={path} is {format_size(pixels.shape)}, but the images of this model are "
            f"{format_size(shape[1:])}; scale it without smoothing"
        )
    if other := int(((pixels > 0) & (pixels < 255)).sum()):
        raise ValueError(
            f"mask={path} has {other} gray or colored pixels; each must be white (visible, 255) or "
            "black (hidden, 0), in a PNG"
        )
    if pixels.min() == pixels.max():
        raise ValueError(
            f"mask={path} has one color; visible pixels must be white and hidden ones black"
        )
    return Mask(pixels.double() / 255)


def _require(path: str, key: str) -> None:
    if not Path(path).exists():
        raise ValueError(f"{key}={path} does not exist; try guidance.{key}=FILE")


def _as_picture(y: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return measurements in the size of images."""
    return F.interpolate(y, size=shape[1:]).expand(-1, *shape)
