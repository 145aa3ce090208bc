"""A graph being rewritten, whose values may be stored with their axes in another order."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

AxisOrder = tuple[int, ...]  # axis i of a value is axis order[i] of the tensor that is stored

NHWC: AxisOrder = (0, 3, 1, 2)  # of a value that ONNX calls [N, C, H, W]


class StoredValues:
    """Nodes written so far, and for each value of the old graph how the new one stores it.

    Args:
        graph: the old graph, with inferred shapes; every size but the batch is known.

    Attributes:
        nodes: what was written.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes: list[NodeProto] = []
        self._constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
        self._shapes = {name: list(array.shape) for name, array in self._constants.items()}
        self._dtypes = {one.name: one.data_type for one in graph.initializer}
        for value in (*graph.value_info, *graph.input, *graph.output):
            tensor = value.type.tensor_type
            self._shapes[value.name] = [size.dim_value for size in tensor.shape.dim]
            self._dtypes[value.name] = tensor.elem_type
        self._stored: dict[str, tuple[str, AxisOrder]] = {}
        self._copies: dict[tuple[str, AxisOrder], str] = {}
        self._made: dict[str, TensorProto] = {}

    def shape(self, value: str) -> list[int]:
        """Sizes in ONNX's order; 0 is the batch."""
        return self._shapes[value]

    def dtype(self, value: str) -> int:
        """ONNX's number of the element type."""
        return self._dtypes[value]

    def constant(self, value: str) -> NDArray[Any] | None:
        """What a value is, if it is the same for every input."""
        return self._constants.get(value)

    def order(self, value: str) -> AxisOrder:
        """How the value is stored."""
        return self._stored.get(value, (value, self._plain(value)))[1]

    def get(self, value: str, order: AxisOrder | None = None) -> str:
        """The tensor that holds the value in that order, ONNX's if None; it is made if need be."""
        if not value:
            return value  # an optional input that is left out
        wanted = self._plain(value) if order is None else order
        if (array := self._constants.get(value)) is not None:
            suffix = "" if wanted == self._plain(value) else f".{_text(wanted)}"
            axes = sorted(range(array.ndim), key=lambda axis: wanted[axis])
            return self.add_constant(array.transpose(axes), value + suffix)
        name, stored = self._stored.get(value, (value, self._plain(value)))
        if stored == wanted:
            return name
        perm = tuple(stored[i] for i in np.argsort(wanted))
        if (name, perm) not in self._copies:
            sizes = [self.shape(value)[i] for i in np.argsort(wanted)]
            copy = f"{name}.{_text(perm)}"
            moved = [axis for axis in perm if self.shape(value)[stored.index(axis)] != 1]
            if moved == sorted(moved) and perm[0] == 0:  # only axes of size 1 move
                self.write("Reshape", [name, self.integers(0, *sizes[1:])], copy)
            else:
                self.write("Transpose", [name], copy, perm=perm)
            self._copies[name, perm] = copy
        return self._copies[name, perm]

    def rename(self, value: str, new: str, perm: Sequence[int]) -> None:
        """Let `new` be the transposed value, without a node."""
        name, order = self._stored.get(value, (value, self._plain(value)))
        self._stored[new] = name, tuple(order[axis] for axis in perm)

    def write(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Write a node and return the tensor that it makes, which is no value of the old graph."""
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def add(
        self, operator: str, inputs: Sequence[str], value: str, order: AxisOrder, **attributes: Any
    ) -> None:
        """Write the node that makes a value of the old graph, stored in that order."""
        self.add_all(operator, inputs, [value], order, **attributes)

    def add_all(
        self,
        operator: str,
        inputs: Sequence[str],
        values: Sequence[str],
        order: AxisOrder,
        **attributes: Any,
    ) -> None:
        """Write the node that makes several values."""
        outputs = []
        for value in values:
            plain = order == self._plain(value)
            outputs.append(value if plain else f"{value}.{_text(order)}")
            self._stored[value] = outputs[-1], order
        self.nodes.append(helper.make_node(operator, inputs, outputs, **attributes))

    def keep(self, node: NodeProto) -> None:
        """Write a node as it was, on values in ONNX's order."""
        new = NodeProto()
        new.CopyFrom(node)
        new.input[:] = [self.get(name) for name in node.input]
        self.nodes.append(new)

    def integers(self, *numbers: int) -> str:
        """The tensor of these int64."""
        return self.add_constant(np.array(numbers, np.int64), f"int64.{_text(numbers, '.')}")

    def add_constant(self, array: NDArray[Any] | np.generic, name: str) -> str:
        """The tensor of this name, which is the array."""
        if name not in self._made:
            self._made[name] = numpy_helper.from_array(np.array(array, order="C"), name)
        return name

    def finish(self, outputs: Sequence[str]) -> None:
        """Write what brings the graph's outputs to their names, in ONNX's order."""
        for value in outputs:
            if (name := self.get(value)) == value:
                continue
            if self.nodes[-1].output[:] == [name]:
                self.nodes[-1].output[:] = [value]
            else:
                self.write("Identity", [name], value)

    def used_constants(self) -> list[TensorProto]:
        """The constants that some node takes."""
        used = {name for node in self.nodes for name in node.input}
        return [tensor for name, tensor in self._made.items() if name in used]

    def _plain(self, value: str) -> AxisOrder:
        return tuple(range(len(self.shape(value))))


def _text(numbers: Sequence[int], between: str = "") -> str:
    return between.join(map(str, numbers))
