"""The folded network in the form that processors compute fastest.

The same function in float32, said in other operators; what that is worth:
docs/results/export-and-engines.md.

- A group normalisation is an instance normalisation of the groups and a batch normalisation that
  scales and shifts channels. ONNX Runtime has a kernel for each of those on processors, and none
  for the whole: it would compute twenty operators instead.
- A wide 3x3 convolution is Winograd's F(4x4, 3x3) (Lavin and Gray 2015, arXiv 1509.09308, section
  4.3): a tile of 4x4 outputs comes from a tile d of 6x6 inputs and the filter g by
  A^T [(G g G^T) * (B^T d B)] A, a quarter of the multiplications. Its transforms are products with
  constant matrices, and the rest is 36 matrix products, which engines compute near the processor's
  peak.
- Wide maps have their channels inside, [N, H, W, C]. Each layer here turns its input so and its
  output back; ONNX Runtime's optimiser then takes out the pairs that meet (`cancel_transposes`).
  The group normalisation of such a map is two sums over it and one scale and shift.

Transformed filters are four times the plain ones, so the graph holds the plain ones and engines
transform them when they load: the file stays small, the memory does not.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from distill.export.one_step import FoldedGenerator
from distill.networks.layers import BOX, Conv2d, GroupNorm, kaiming

# Below it the transforms cost more than the multiplications they save.
WIDE = 128
TILE = 4  # outputs along a side of a tile; heights and widths are multiples of it
_SPAN = 6  # inputs along a side of a tile

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


def rewrite_wide_layers(generator: FoldedGenerator, *inputs: Tensor) -> None:
    """Exchange, in place, the wide layers of a folded generator for those forms.

    Args:
        generator: what to rewrite.
        inputs: of one call, from which the size of every feature map is learnt.
    """
    sizes: dict[nn.Module, int] = {}

    def observe(layer: nn.Module, _: Any, output: Tensor) -> None:
        sizes[layer] = output.shape[2]

    layers = [m for m in generator.modules() if isinstance(m, Conv2d | GroupNorm)]
    hooks = [layer.register_forward_hook(observe) for layer in layers]
    with torch.no_grad():
        generator(*inputs)
    for hook in hooks:
        hook.remove()
    for parent in list(generator.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, GroupNorm) and layer.num_channels >= WIDE:
                setattr(parent, name, _GroupNorm(layer, sizes[layer]))
            elif isinstance(layer, Conv2d) and _is_wide(layer):
                if layer.kernel == 1:
                    form: nn.Module = _Pointwise(layer)
                elif sizes[layer] % TILE == 0:
                    form = _Winograd(layer, sizes[layer])
                else:
                    continue
                resample = Conv2d(1, 1, 0, kaiming, layer.up, layer.down)
                setattr(parent, name, nn.Sequential(resample, form))


def split_group_norms(model: onnx.ModelProto) -> None:
    """Exchange, in place, every GroupNormalization node for the two that have kernels."""
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    shapes = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input)
    }
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if node.op_type != "GroupNormalization":
            graph.node.append(node)
            continue
        (x, weight, bias), (y,) = node.input, node.output
        attributes = {
            attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute
        }
        groups, channels = attributes["num_groups"], weights[weight].dims[0]

        def constant(name: str, values: Any, y: str = y) -> str:
            graph.initializer.append(numpy_helper.from_array(np.array(values), f"{y}.{name}"))
            return f"{y}.{name}"

        ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        grouped = [x, constant("groups", [0, groups, -1])]
        normal = [f"{y}.grouped", constant("ones", ones[:groups]), constant("0s", zeros[:groups])]
        whole = [f"{y}.normal", constant("shape", [-1, channels, *shapes[x][2:]])]
        moments = [constant("mean", zeros), constant("variance", ones)]
        graph.node.extend(
            [
                helper.make_node("Reshape", grouped, [f"{y}.grouped"]),
                helper.make_node(
                    "InstanceNormalization",
                    normal,
                    [f"{y}.normal"],
                    epsilon=attributes["epsilon"],
                ),
                helper.make_node("Reshape", whole, [f"{y}.whole"]),
                helper.make_node(
                    "BatchNormalization",
                    [f"{y}.whole", weight, bias, *moments],
                    [y],
                    epsilon=0.0,
                ),
            ]
        )


def cancel_transposes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Have ONNX Runtime's optimiser move transposes together and drop those that cancel.

    Its other basic optimisations run too, all within ONNX's own operators; constants are not
    folded, which would write the transformed filters out.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        onnxruntime.InferenceSession(
            model.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["ConstantFolding"],
        )
        return onnx.load(options.optimized_model_filepath)


def _is_wide(layer: Conv2d) -> bool:
    if layer.kernel not in (1, 3) or layer.fused or layer.resample not in ((), BOX):
        return False
    return min(layer.weight.shape[:2]) >= WIDE


class _GroupNorm(nn.Module):
    """`layer`, for feature maps of size x size: y = x scale + shift, both [N, 1, C]."""

    mean_of_group: Tensor
    mean_of_map: Tensor

    def __init__(self, layer: GroupNorm, size: int) -> None:
        super().__init__()
        self.eps, self.size, self.channels = layer.eps, size, layer.num_channels
        self.weight, self.bias = layer.weight, layer.bias
        width = layer.num_channels // layer.num_groups
        block = torch.full((width, width), 1 / width)
        self.register_buffer("mean_of_group", torch.block_diag(*[block] * layer.num_groups))
        self.register_buffer("mean_of_map", torch.full((1, size * size), 1 / size**2))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1).reshape(-1, self.size * self.size, self.channels)
        mean = self.mean_of_map @ x @ self.mean_of_group
        square = self.mean_of_map @ (x * x) @ self.mean_of_group
        # Rounding may make a flat map's variance negative.
        scale = ((square - mean * mean).clamp_min(0) + self.eps).rsqrt() * self.weight
        x = x * scale + (self.bias - mean * scale)
        return x.reshape(-1, self.size, self.size, self.channels).permute(0, 3, 1, 2)


class _Pointwise(nn.Module):
    """A 1x1 convolution as a matrix product."""

    def __init__(self, layer: Conv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight[:, :, 0, 0].T.contiguous().detach())
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return (x.permute(0, 2, 3, 1) @ self.weight + self.bias).permute(0, 3, 1, 2)


class _Winograd(nn.Module):
    """The 3x3 convolution of `layer`, for feature maps of size x size, in and out.

    A transform along one side of a map is one banded matrix for all of its tiles. Axes are ordered
    so that a map is copied once on the way in, between the two transforms, and once on the way out.
    """

    filter_transform: Tensor
    taps: Tensor
    into: Tensor
    out_of: Tensor
    output: Tensor

    def __init__(self, layer: Conv2d, size: int) -> None:
        super().__init__()
        self.size, self.tiles = size, size // TILE
        self.outputs, self.inputs = layer.weight.shape[:2]
        self.bias = layer.bias
        taps = layer.weight.detach().permute(3, 2, 1, 0).reshape(9, -1)
        self.register_buffer("taps", taps)  # [9, in * out], the filter's columns first
        self.register_buffer("filter_transform", torch.kron(FILTER, FILTER).float())  # [36, 9]
        self.register_buffer("into", _banded(size))
        out_of = torch.einsum("ia,ts->tias", OUTPUT.float(), torch.eye(self.tiles))
        self.register_buffer("out_of", out_of.reshape(size, _SPAN * self.tiles))
        self.register_buffer("output", OUTPUT.float())

    def forward(self, x: Tensor) -> Tensor:
        # Tile (s, t), s down and t across, has components (a, b) and outputs (i, j).
        size, tiles, inputs, outputs = self.size, self.tiles, self.inputs, self.outputs
        filters = (self.filter_transform @ self.taps).reshape(_SPAN, _SPAN, inputs, outputs)
        x = self.into @ x.permute(0, 2, 3, 1)  # [N, H, (b, t), in]
        x = x.reshape(-1, size, _SPAN, tiles, inputs).permute(2, 1, 0, 3, 4)  # [b, H, N, t, in]
        x = self.into @ x.reshape(_SPAN, size, -1)  # [b, (a, s), N t in]
        x = x.reshape(_SPAN, _SPAN, -1, inputs) @ filters  # [b, a, s N t, out]
        x = self.out_of @ x.reshape(_SPAN, _SPAN * tiles, -1)  # [b, H = (s, i), N t out]
        x = self.output @ x.reshape(_SPAN, -1)  # [j, H N t out]
        x = x.reshape(TILE, size, -1, tiles, outputs).permute(2, 1, 3, 0, 4)  # [N, H, t, j, out]
        return (x.reshape(-1, size, size, outputs) + self.bias).permute(0, 3, 1, 2)


def _banded(size: int) -> Tensor:
    """The input transform of all tiles along one side, margin of zeros included: [6 tiles, size].

    Row (i, t) is component i of tile t, which begins one pixel before pixel 4 t.
    """
    tiles = size // TILE
    band = torch.zeros(_SPAN, tiles, size + 2)
    for tile in range(tiles):
        band[:, tile, TILE * tile : TILE * tile + _SPAN] = INPUT.float()
    return band[:, :, 1:-1].reshape(_SPAN * tiles, size)
