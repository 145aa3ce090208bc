"""A graph for the CUDA provider in ONNX's own operators: what judges it where there is no card.

ONNX Runtime has its own nodes on GPUs alone. Each is written out here as it is defined: sums in
float32, the result in the type of its input (docs/ContribOperators.md of ONNX Runtime).
"""

import onnx
from onnx import NodeProto, TensorProto, helper

from distill.export.cuda import DOMAIN

_TO_NCHW, _TO_NHWC = [0, 3, 1, 2], [0, 2, 3, 1]


def expand_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a graph that `rewrite_for_cuda` made, in operators that processors have kernels for."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    graph = twin.graph
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if node.domain != DOMAIN:
            graph.node.append(node)
        elif node.op_type == "NhwcConv":
            graph.node.extend(_convolution(node))
        else:
            graph.node.extend(_group_norm(node))
    kept = [one for one in twin.opset_import if one.domain != DOMAIN]
    del twin.opset_import[:]
    twin.opset_import.extend(kept)
    return twin


def _convolution(node: NodeProto) -> list[NodeProto]:
    """Whose map and filters have their channels inside."""
    (x, weight, *bias), (y,) = node.input, node.output
    options = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return [
        helper.make_node("Transpose", [x], [f"{y}.in"], perm=_TO_NCHW),
        helper.make_node("Transpose", [weight], [f"{y}.oihw"], perm=_TO_NCHW),
        helper.make_node("Conv", [f"{y}.in", f"{y}.oihw", *bias], [f"{y}.out"], **options),
        helper.make_node("Transpose", [f"{y}.out"], [y], perm=_TO_NHWC),
    ]


def _group_norm(node: NodeProto) -> list[NodeProto]:
    """GroupNorm, or SkipGroupNorm: of the map plus a row of every image plus a bias."""
    (x, gamma, beta, *added), (y,) = node.input, node.output
    options = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    nodes, whole = [], x
    for number, name in enumerate(added):  # which the kernel does in the map's type
        nodes.append(helper.make_node("Add", [whole, name], [f"{y}.sum{number}"]))
        whole = f"{y}.sum{number}"
    normal = {"num_groups": options["groups"], "epsilon": options["epsilon"]}
    nodes += [
        helper.make_node("Cast", [whole], [f"{y}.float32"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", [f"{y}.float32"], [f"{y}.in"], perm=_TO_NCHW),
        helper.make_node("GroupNormalization", [f"{y}.in", gamma, beta], [f"{y}.norm"], **normal),
    ]
    result = f"{y}.norm"
    if options["activation"]:
        result = f"{y}.silu"
        nodes.append(helper.make_node("Sigmoid", [f"{y}.norm"], [f"{y}.gate"]))
        nodes.append(helper.make_node("Mul", [f"{y}.norm", f"{y}.gate"], [result]))
    nodes += [
        helper.make_node("Transpose", [result], [f"{y}.out"], perm=_TO_NHWC),
        helper.make_node("CastLike", [f"{y}.out", x], [y]),
    ]
    return nodes
