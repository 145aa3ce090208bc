"""3x3 convolutions in fewer multiplications: Winograd's F(4x4, 3x3), in plain torch.

Lavin and Gray 2015 (arXiv 1509.09308), section 4.3. A tile of 4x4 outputs comes from a tile d of
6x6 inputs and the 3x3 filter g by

    Y = A^T [(G g G^T) * (B^T d B)] A

36 multiplications where the direct form takes 144. Over all tiles and channels, the element-wise
product is 36 matrix products. The transforms are linear, so a gradient needs only their
transposes: that of the input is a convolution with the filter turned around, that of the filter

    dL/dg = G^T [sum over tiles of (A dL/dY A^T) * (B^T d B)] G

The outputs are off by some 5e-6 of the largest (the transforms' constants spread over a range of
5), which training does not notice; torch's own CPU convolution has no such algorithm.

Inside, feature maps are [N, H, W, C] and transforms are written as one product with the Kronecker
square of a matrix, the 6x6 tile being one axis of 36.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

TILE = 4  # outputs along a side; heights and widths are multiples of it

# Tiles worked on at once: their transforms then stay in the processor's cache.
_TILES_AT_ONCE = 128


# The matrices of the paper's equation 31, float64.
INPUT = torch.tensor(  # B^T
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    dtype=torch.float64,
)
FILTER = torch.tensor(  # G
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    dtype=torch.float64,
)
OUTPUT = torch.tensor(  # A^T
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    dtype=torch.float64,
)


def _square(matrix: Tensor) -> Tensor:
    """The Kronecker product of a matrix with itself, computed in float64: float32."""
    return torch.kron(matrix, matrix).float()


_B = _square(INPUT)  # [36, 36]
_G = _square(FILTER)  # [36, 9]
_G_TURNED = _square(FILTER.flip(1))  # for the filter turned by 180 degrees
_A = _square(OUTPUT)  # [16, 36]
# The row of the tile's axis that A carries to every output with factor 1 (row 1, column 1):
# what is added there is added to all 16 outputs.
_TO_EVERY_OUTPUT = 7


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same-size convolution `F.conv2d(x, weight, bias, padding=1)`, with its gradients.

    Args:
        x: float32 [N, C, H, W] on a CPU, H and W multiples of 4; fastest in channels_last.
        weight: float32 [O, C, 3, 3].
        bias: float32 [O].

    Returns:
        float32 [N, O, H, W] in channels_last memory.
    """
    return _Winograd.apply(x, weight, bias)


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        filters = _transformed_weight(weight, _G).transpose(1, 2)
        return _convolved(_channels_inside(x), filters, bias).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        inside = _channels_inside(gradient)
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            filters = _transformed_weight(weight, _G_TURNED)
            of_x = _convolved(inside, filters, None).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(_channels_inside(x), inside)
        if ctx.needs_input_grad[2]:
            of_bias = inside.sum(dim=(0, 1, 2))
        return of_x, of_weight, of_bias


def _channels_inside(x: Tensor) -> Tensor:
    """[N, C, H, W] as contiguous [N, H, W, C]: of a map in channels_last no copy."""
    return x.permute(0, 2, 3, 1).contiguous()


def _transformed_weight(weight: Tensor, transform: Tensor) -> Tensor:
    """G g G^T of every filter: [O, C, 3, 3] to [36, O, C]."""
    taps = weight.permute(2, 3, 0, 1).reshape(9, -1)
    return (transform @ taps).view(36, weight.shape[0], weight.shape[1])


def _transformed_tiles(x: Tensor) -> Tensor:
    """B^T d B of every tile and channel: [N, H, W, C] to [36, tiles, C]."""
    n, height, width, channels = x.shape
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    images, rows, columns, _ = padded.stride()
    # Tiles of 6x6 that begin at every fourth pixel, as a view.
    shape = (6, 6, n, height // TILE, width // TILE, channels)
    strides = (rows, columns, images, TILE * rows, TILE * columns, 1)
    return (_B @ padded.as_strided(shape, strides).reshape(36, -1)).view(36, -1, channels)


def _images_at_once(x: Tensor) -> int:
    """How many images of [N, H, W, C] hold about `_TILES_AT_ONCE` tiles."""
    return max(1, _TILES_AT_ONCE * TILE * TILE // (x.shape[1] * x.shape[2]))


def _convolved(x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve x [N, H, W, C] with filters [36, C, O]: [N, H, W, O]."""
    n, height, width, _ = x.shape
    down, across, channels = height // TILE, width // TILE, filters.shape[2]
    out = x.new_empty(n, down, TILE, across, TILE, channels)
    count = _images_at_once(x)
    for some, target in zip(x.split(count), out.split(count), strict=True):
        products = torch.bmm(_transformed_tiles(some), filters)
        if bias is not None:
            products[_TO_EVERY_OUTPUT] += bias
        tiles = (_A @ products.view(36, -1)).view(TILE, TILE, -1, down, across, channels)
        target.copy_(tiles.permute(2, 3, 0, 4, 1, 5))
    return out.view(n, height, width, channels)


def _weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """Of x [N, H, W, C] and the outputs' gradient [N, H, W, O]: [O, C, 3, 3]."""
    channels, (_, height, width, out_channels) = x.shape[3], gradient.shape
    products = x.new_zeros(36, out_channels, channels)
    count = _images_at_once(x)
    for some, upstream in zip(x.split(count), gradient.split(count), strict=True):
        tiles = upstream.view(-1, height // TILE, TILE, width // TILE, TILE, out_channels)
        tiles = tiles.permute(2, 4, 0, 1, 3, 5).reshape(TILE * TILE, -1)
        spread = (_A.T @ tiles).view(36, -1, out_channels)
        products.baddbmm_(spread.transpose(1, 2), _transformed_tiles(some))
    taps = (_G.T @ products.view(36, -1)).view(3, 3, out_channels, channels)
    return taps.permute(2, 3, 0, 1)
