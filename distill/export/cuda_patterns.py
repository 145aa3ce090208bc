"""What the rewriting for the CUDA provider recognises in an exported graph."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from onnx import NodeProto, helper

from distill.export.stored import StoredValues


class Patterns:
    """Nodes that one operator of ONNX Runtime's own computes together.

    Args:
        values: the graph's values.
        nodes: the graph's nodes, in order.
    """

    def __init__(self, values: StoredValues, nodes: Sequence[NodeProto]) -> None:
        self._values = values
        self._makers = {name: node for node in nodes for name in node.output}
        self._users: dict[str, list[NodeProto]] = defaultdict(list)
        for node in nodes:
            for name in node.input:
                self._users[name].append(node)

    def users(self, value: str) -> list[str]:
        """The first output of every node that takes the value."""
        return [node.output[0] for node in self._users[value]]

    def is_plain_convolution(self, node: NodeProto) -> bool:
        """Whether the node is a convolution of maps with weights that do not change."""
        if node.op_type != "Conv" or options_of(node)["auto_pad"] != b"NOTSET":
            return False
        fixed = all(self._values.constant(name) is not None for name in node.input[1:])
        return fixed and len(self._values.shape(node.input[1])) == 4

    def has_kernel(self, node: NodeProto) -> bool:
        """Whether the node can be a GroupNorm, whose kernel takes two channels a thread."""
        if node.op_type != "GroupNormalization" or len(self._values.shape(node.input[0])) != 4:
            return False
        return (self._values.shape(node.input[0])[1] // options_of(node)["num_groups"]) % 2 == 0

    def silu_after(self, y: str) -> str | None:
        """The output of x * sigmoid(x), if nobody else uses `y`."""
        users = {user.op_type: user for user in self._users[y]}
        if len(self._users[y]) != 2 or set(users) != {"Sigmoid", "Mul"}:
            return None
        (gate,) = users["Sigmoid"].output
        alone = self._users[gate] == [users["Mul"]]
        return str(users["Mul"].output[0]) if alone else None

    def embedding_before(self, node: NodeProto) -> NodeProto | None:
        """The sum of a map and a row [N, C, 1, 1], if it is normalised and used by nobody else."""
        maker = self._makers.get(node.input[0]) if self.has_kernel(node) else None
        if maker is None or maker.op_type != "Add" or len(self._users[maker.output[0]]) != 1:
            return None
        x, row = (self._values.shape(name) for name in maker.input)
        # A row of 1 is of a network without classes, and the kernel takes one an image.
        return maker if row == [*x[:2], 1, 1] and x[0] == 0 else None

    def bias_before(self, sum_: NodeProto) -> str | None:
        """The bias of the convolution that makes the sum's map, if nobody else uses that."""
        maker = self._makers.get(sum_.input[0])
        if maker is None or not self.is_plain_convolution(maker) or len(maker.input) < 3:
            return None
        if len(self._users[sum_.input[0]]) != 1:
            return None
        return str(maker.input[2])


def options_of(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node by name."""
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}
