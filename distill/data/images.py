"""Pixels: uint8 as a network takes and makes them, and grids of many images."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from service.bundle import write_atomically

_SMALL = 128  # pixels a side


def from_pixels(pixels: Tensor) -> Tensor:
    """Map uint8 [N, C, H, W] to float32 in [-1, 1], laid out as channels_last."""
    return pixels.to(torch.float32, memory_format=torch.channels_last) / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """Quantise float [N, C, H, W] in [-1, 1] to uint8 [N, H, W, C], truncating as EDM does."""
    return (images * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def save_grid(path: Path, images: Tensor, columns: int = 10) -> None:
    """Save uint8 [N, H, W, C] as one PNG, row by row; pixels of small images as 2x2."""
    n, height, width, channels = images.shape
    scale = 2 if height <= _SMALL else 1
    rows = -(-n // columns)
    sheet = np.zeros((rows * columns, height, width, channels), np.uint8)
    sheet[:n] = images.cpu().numpy()
    grid = sheet.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    grid = grid.reshape(rows * height, columns * width, channels).squeeze()
    grid = grid.repeat(scale, axis=0).repeat(scale, axis=1)
    write_atomically(path, lambda file: Image.fromarray(grid).save(file, format="PNG"))
