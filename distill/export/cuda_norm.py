"""Group normalisation of maps with channels inside, where the CUDA provider's kernel refuses it."""

import math
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto

from distill.export.cuda_patterns import options_of
from distill.export.stored import NHWC, StoredValues


def norm_in_steps(values: StoredValues, node: NodeProto) -> None:
    """In float32 and ONNX's own operators, for the widths that the kernel refuses."""
    options, y = options_of(node), node.output[0]
    _, channels, *size = values.shape(node.input[0])
    groups, dtype = options["num_groups"], values.dtype(node.input[0])
    weights = [values.constant(name) for name in node.input[1:]]
    scale, shift = (
        values.add_constant(array.astype(np.float32), f"{name}.float32")
        for name, array in zip(node.input[1:], weights, strict=True)
        if array is not None
    )
    steps = 0

    def step(operator: str, *inputs: str, **attributes: Any) -> str:
        nonlocal steps
        steps += 1
        return values.write(operator, list(inputs), f"{y}.{steps}", **attributes)

    x = step("Cast", values.get(node.input[0], NHWC), to=TensorProto.FLOAT)
    x = step("Reshape", x, values.integers(0, math.prod(size), groups, channels // groups))
    axes = values.integers(1, 3)
    centred = step("Sub", x, step("ReduceMean", x, axes))
    variance = step("ReduceMean", step("Mul", centred, centred), axes)
    epsilon = values.add_constant(np.float32(options["epsilon"]), f"{y}.epsilon")
    x = step("Div", centred, step("Sqrt", step("Add", variance, epsilon)))
    x = step("Reshape", x, values.integers(0, *size, channels))
    x = step("Add", step("Mul", x, scale), shift)
    values.add("Cast", [x], y, NHWC, to=dtype)
