"""The graph in the form that ONNX Runtime's CUDA provider computes fastest.

The same function, said in other operators; it is for that provider alone, as some of them have no
kernel anywhere else:

- Feature maps have their channels inside, [N, H, W, C], as the tensor cores read them: convolutions
  are com.microsoft.NhwcConv, which depends on no optimiser of the engine's; 1x1 ones are products.
- A group normalisation is com.microsoft.GroupNorm, which takes the SiLU after it along, or
  SkipGroupNorm, which takes the embedding and the convolution's bias before it along too. Of
  ONNX's own GroupNormalization the provider has no kernel and makes some twenty operators.
- No sizes are computed while it runs: every shape but the batch is a constant. What computes them
  would be placed on the processor, and CUDA graphs refuse it.

It is one walk over the exported graph. A value is stored with its axes in some order, and whoever
needs another order gets a copy; a Transpose of the graph is then no node, but another order. A node
that the walk does not know is kept as it is, on copies in ONNX's order.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper

from distill.export.cuda_norm import norm_in_steps
from distill.export.cuda_patterns import Patterns, options_of
from distill.export.stored import NHWC, StoredValues

DOMAIN = "com.microsoft"  # of the operators that are ONNX Runtime's own
# cuDNN's kernels for channels inside read 8 at a time: maps with fewer (the images) get zeros.
_FEWEST_CHANNELS = 8
_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Sqrt", "Exp")
_ELEMENTWISE = (*_ARITHMETIC, "Sigmoid", "Tanh", "Relu", "Clip", "Cast")


def rewrite_for_cuda(model: onnx.ModelProto) -> None:
    """Rewrite, in place, an exported graph that is free of computed shapes but for the batch."""
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph
    walk = _Walk(StoredValues(inferred), graph.node)
    for node in graph.node:
        walk.rewrite(node)
    walk.values.finish([value.name for value in graph.output])
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(walk.values.nodes)
    graph.initializer.extend(walk.values.used_constants())
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


class _Walk:
    """The rewriting of one node after the other.

    Attributes:
        values: what was written so far, and how each value is stored there.
    """

    def __init__(self, values: StoredValues, nodes: Sequence[NodeProto]) -> None:
        self.values = values
        self._patterns = Patterns(values, nodes)
        self._absorbed: set[str] = set()  # outputs of nodes that another node computes along
        self._without_bias: set[str] = set()  # outputs of convolutions whose bias another adds
        for node in nodes:
            added = self._patterns.embedding_before(node)
            if added is not None:
                self._absorbed.add(added.output[0])
                if self._patterns.bias_before(added):
                    self._without_bias.add(added.input[0])
        self._rules: dict[str, Callable[[NodeProto], bool]] = {
            "Conv": self._convolution,
            "ConvTranspose": self._transposed_convolution,
            "GroupNormalization": self._group_norm,
            "AveragePool": self._average,
            "Resize": self._resize,
            "Concat": self._concatenate,
            "Split": self._split,
            "Reshape": self._reshape,
            "Transpose": self._transpose,
            **dict.fromkeys(_ELEMENTWISE, self._elementwise),
        }

    def rewrite(self, node: NodeProto) -> None:
        """Write what computes this node's outputs, unless that was done along with another."""
        if node.output[0] in self._absorbed:
            return
        rule = self._rules.get(node.op_type)
        if rule is None or not rule(node):
            self.values.keep(node)

    def _convolution(self, node: NodeProto) -> bool:
        values, options, y = self.values, options_of(node), node.output[0]
        if not self._patterns.is_plain_convolution(node):
            return False
        weight = values.constant(node.input[1])
        assert weight is not None
        has_bias = len(node.input) > 2 and y not in self._without_bias
        bias = values.constant(node.input[2]) if has_bias else None
        del options["auto_pad"]
        x = values.get(node.input[0], NHWC)
        outputs, inputs = weight.shape[:2]
        plain = math.prod(options["strides"]) == 1 and not any(options["pads"])
        if options["group"] == 1 and weight.shape[2:] == (1, 1) and plain:
            matrix = values.add_constant(weight[:, :, 0, 0].T, f"{node.input[1]}.matrix")
            if bias is None:
                values.add("MatMul", [x, matrix], y, NHWC)
            else:
                values.write("MatMul", [x, matrix], f"{y}.product")
                added = values.add_constant(bias, node.input[2])
                values.add("Add", [f"{y}.product", added], y, NHWC)
            return True
        weight = weight.transpose(0, 2, 3, 1)
        more = max(0, _FEWEST_CHANNELS - outputs) if options["group"] == 1 else 0
        if options["group"] == 1 and inputs < _FEWEST_CHANNELS:
            missing = _FEWEST_CHANNELS - inputs
            pads = values.integers(0, 0, 0, 0, 0, 0, 0, missing)
            x = values.write("Pad", [x, pads], f"{y}.padded")
            weight = np.pad(weight, [(0, 0), (0, 0), (0, 0), (0, missing)])
        filters = [values.add_constant(_more_rows(weight, more), f"{node.input[1]}.ohwi")]
        if bias is not None:
            filters.append(
                values.add_constant(
                    _more_rows(bias, more), f"{node.input[2]}.wide" if more else node.input[2]
                )
            )
        options |= {"domain": DOMAIN}
        if not more:
            values.add("NhwcConv", [x, *filters], y, NHWC, **options)
            return True
        wide = values.write("NhwcConv", [x, *filters], f"{y}.wide", **options)
        ends = [values.integers(number) for number in (0, outputs, 3)]
        values.add("Slice", [wide, *ends], y, NHWC)
        return True

    def _transposed_convolution(self, node: NodeProto) -> bool:
        """One of each channel by itself, as an ordinary one of a map with zeros between pixels."""
        values, options = self.values, options_of(node)
        weight = values.constant(node.input[1])
        if weight is None or len(node.input) > 2 or weight.shape[1] != 1:
            return False
        channels, _, *kernel = weight.shape
        (down, across), begins = options["strides"], options["pads"][:2]
        y, (_, _, *size) = node.output[0], values.shape(node.input[0])
        if options["group"] != channels or options["dilations"] != [1, 1]:
            return False
        x = values.get(node.input[0], NHWC)
        apart = values.integers(0, size[0], 1, size[1], 1, channels)
        zeros = values.integers(*[0] * 6, 0, 0, down - 1, 0, across - 1, 0)
        whole = values.integers(0, size[0] * down, size[1] * across, channels)
        values.write("Reshape", [x, apart], f"{y}.apart")
        values.write("Pad", [f"{y}.apart", zeros], f"{y}.between")
        values.write("Reshape", [f"{y}.between", whole], f"{y}.zeros")
        before = [k - 1 - begin for k, begin in zip(kernel, begins, strict=True)]
        large = [size[0] * down, size[1] * across]
        after = [
            out - into - left + k - 1
            for out, into, left, k in zip(values.shape(y)[2:], large, before, kernel, strict=True)
        ]
        flipped = weight[:, :, ::-1, ::-1].transpose(0, 2, 3, 1)
        filters = values.add_constant(flipped, f"{node.input[1]}.ohwi")
        same = {"kernel_shape": kernel, "group": channels, "pads": [*before, *after]}
        values.add("NhwcConv", [f"{y}.zeros", filters], y, NHWC, domain=DOMAIN, **same)
        return True

    def _group_norm(self, node: NodeProto) -> bool:
        values, options = self.values, options_of(node)
        y = node.output[0]
        if len(values.shape(node.input[0])) != 4:
            return False
        if not self._patterns.has_kernel(node):
            norm_in_steps(values, node)
            return True
        activated = self._patterns.silu_after(y)
        weights = []
        for name in node.input[1:]:
            array = values.constant(name)
            assert array is not None
            weights.append(values.add_constant(array.astype(np.float32), f"{name}.float32"))
        attributes = {
            "domain": DOMAIN,
            "epsilon": options["epsilon"],
            "groups": options["num_groups"],
            "activation": int(activated is not None),
            "channels_last": 1,
        }
        if activated is not None:
            self._absorbed.update(self._patterns.users(y))
        result = activated or y
        if sum_ := self._patterns.embedding_before(node):
            inputs = [values.get(name, NHWC) for name in sum_.input]
            operands = [inputs[0], *weights, inputs[1]]
            if bias := self._patterns.bias_before(sum_):
                operands.append(values.get(bias))
            values.add("SkipGroupNorm", operands, result, NHWC, **attributes)
        else:
            x = values.get(node.input[0], NHWC)
            values.add("GroupNorm", [x, *weights], result, NHWC, **attributes)
        return True

    def _average(self, node: NodeProto) -> bool:
        """The mean of tiles that do not overlap."""
        values, options = self.values, options_of(node)
        _, channels, height, width = values.shape(node.input[0])
        down, across = options["kernel_shape"]
        tiled = options.get("strides") == [down, across] and not (height % down or width % across)
        if not tiled or any(options.get("pads", [])):
            return False
        tiles = values.integers(0, height // down, down, width // across, across, channels)
        y = node.output[0]
        values.write("Reshape", [values.get(node.input[0], NHWC), tiles], f"{y}.tiles")
        values.add("ReduceMean", [f"{y}.tiles", values.integers(2, 4)], y, NHWC, keepdims=0)
        return True

    def _resize(self, node: NodeProto) -> bool:
        values, options = self.values, options_of(node)
        scales = None if len(node.input) < 3 else values.constant(node.input[2])
        if scales is None or scales.shape != (4,) or options.get("mode") != b"nearest":
            return False
        inside = values.add_constant(scales[[0, 2, 3, 1]], f"{node.input[2]}.nhwc")
        values.add("Resize", [values.get(node.input[0], NHWC), "", inside], node.output[0], NHWC,
                   **options)  # fmt: skip
        return True

    def _split(self, node: NodeProto) -> bool:
        values, options = self.values, options_of(node)
        order = values.order(node.input[0])
        options["axis"] = order[options["axis"] % len(order)]
        inputs = [values.get(node.input[0], order), *(values.get(x) for x in node.input[1:])]
        values.add_all("Split", inputs, node.output, order, **options)
        return True

    def _concatenate(self, node: NodeProto) -> bool:
        """Maps of one size by Concat, others as a sum of maps with zeros where the others are.

        Of unequal maps the provider's Concat copies its table of addresses from the host each time,
        and a CUDA graph copies whatever lies there by then (onnxruntime#32121).
        """
        values, (y,) = self.values, node.output
        order = values.order(node.input[0])
        axis = options_of(node)["axis"] % len(order)
        maps = [values.get(name, order) for name in node.input]
        sizes = [values.shape(name)[axis] for name in node.input]
        if len(set(sizes)) == 1:
            values.add("Concat", maps, y, order, axis=order[axis])
            return True
        for number, name in enumerate(maps):
            pads = [0] * (2 * len(order))
            pads[order[axis]] = sum(sizes[:number])
            pads[len(order) + order[axis]] = sum(sizes[number + 1 :])
            maps[number] = f"{y}.part{number}"
            values.write("Pad", [name, values.integers(*pads)], maps[number])
        for number, name in enumerate(maps[1:-1], start=1):
            maps[0] = values.write("Add", [maps[0], name], f"{y}.sum{number}")
        values.add("Add", [maps[0], maps[-1]], y, order)
        return True

    def _elementwise(self, node: NodeProto) -> bool:
        """In the order that an input of the output's shape is stored in."""
        values, y = self.values, node.output[0]
        shape = values.shape(y)
        whole = [x for x in node.input if x and len(values.shape(x)) == len(shape)]
        if any(math.prod(values.shape(x)) != 1 for x in node.input if x and x not in whole):
            return False
        plain = tuple(range(len(shape)))
        orders = [values.order(x) for x in whole if values.shape(x) == shape]
        order = next((one for one in orders if one != plain), plain)
        inputs = [values.get(x, order if x in whole else None) for x in node.input]
        values.add(node.op_type, inputs, y, order, **options_of(node))
        return True

    def _reshape(self, node: NodeProto) -> bool:
        """Channels into heads and pixels into a sequence, or back; others are kept as they are."""
        values, (y,) = self.values, node.output
        before, after = values.shape(node.input[0]), values.shape(y)
        if _is_sequence_of(after, before) and values.order(node.input[0]) == NHWC:
            heads = after[1:-1]
            order = (0, *range(2, len(after)), 1)
            target = values.integers(0, after[-1], *heads)
            values.add("Reshape", [values.get(node.input[0], NHWC), target], y, order)
            return True
        if _is_sequence_of(before, after):
            x = values.get(node.input[0], (0, *range(2, len(before)), 1))
            target = values.integers(0, *after[2:], after[1])
            values.add("Reshape", [x, target], y, NHWC)
            return True
        return False

    def _transpose(self, node: NodeProto) -> bool:
        self.values.rename(node.input[0], node.output[0], options_of(node)["perm"])
        return True


def _more_rows(array: NDArray[Any], count: int) -> NDArray[Any]:
    return np.pad(array, [(0, count)] + [(0, 0)] * (array.ndim - 1))


def _is_sequence_of(sequence: Sequence[int], image: Sequence[int]) -> bool:
    """Whether [N, ..., H W] is a map [N, C, H, W] with its channels split among heads."""
    if len(image) != 4 or len(sequence) < 3:
        return False
    pixels, channels = math.prod(image[2:]), image[1]
    return sequence[-1] == pixels and math.prod(sequence[1:-1]) == channels
