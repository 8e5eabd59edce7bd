"""Where the pictures of a source are kept while they are used: in memory, if they fit."""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.data.splits import Images, Source, Split, Streamed

RESIDENT = 4 * 2**30
"""Bytes of pictures that are read into memory unasked"""


def hold(
    source: Source,
    shape: tuple[int, ...],
    labels: Tensor | None,
    chosen: Tensor | None = None,
    resident: bool | None = None,
) -> Split:
    """Pictures of `source`, those numbered `chosen` (N,), or all of them, and their `labels` (N,), in memory or, where
    they are not `resident`, streamed. None: resident where they take at most `RESIDENT` bytes.
    """
    chosen = torch.arange(len(source)) if chosen is None else chosen
    size = len(chosen) * torch.Size(shape).numel()
    if not (size <= RESIDENT if resident is None else resident):
        return Streamed(source, chosen, shape, labels)
    pixels = torch.empty(len(chosen), *shape, dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:  # decoders let go of the interpreter
        read = pool.map(source.__getitem__, chosen.tolist())
        for i, picture in enumerate(
            tqdm(read, "reading pictures", len(chosen), leave=False, disable=None)
        ):
            pixels[i] = picture
    return Images(pixels, labels)
