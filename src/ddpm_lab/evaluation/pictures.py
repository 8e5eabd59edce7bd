"""Pictures of pictures."""

from pathlib import Path

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import make_grid


def save_grid(pixels: Tensor, file: Path, columns: int, least: int = 40) -> Path:
    """(N, C, H, W) uint8 as a PNG, row by row; small pictures are enlarged to `least` pixels a side or more."""
    scale = -(-least // pixels.shape[-1])
    enlarged = pixels.cpu().repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    file.parent.mkdir(parents=True, exist_ok=True)
    picture: Image.Image = to_pil_image(make_grid(enlarged, nrow=columns, padding=max(2, scale // 2), pad_value=40))
    picture.save(file)
    return file
