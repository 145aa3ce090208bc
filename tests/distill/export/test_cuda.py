"""The graph for the CUDA provider, proved where there is no card: by its nodes' definitions."""

from math import prod

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from typer.testing import CliRunner

from distill.checkpoints import save_network
from distill.cli import app
from distill.export.cuda_twin import expand_nodes
from distill.export.one_step import PixelGenerator
from distill.export.onnx import example_inputs
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16}
# What the CUDA provider has kernels for, of the element types that our graphs have: the types of
# the first input, by "Operators implemented by CUDAExecutionProvider" in docs/OperatorKernels.md of
# ONNX Runtime 1.2x (and Cast's results, uint8 among them). An integer's place is on the processor.
KERNELS = {
    ("", operator): FLOATS
    for operator in (
        "Add", "Sub", "Mul", "Div", "Sqrt", "Sigmoid", "Clip", "Cast", "Concat", "Split", "Slice",
        "Pad", "Gather", "Gemm", "MatMul", "Softmax", "Resize", "ReduceMean", "Reshape",
        "Unsqueeze", "DepthToSpace", "SpaceToDepth", "Transpose",
    )
}  # fmt: skip
KERNELS |= dict.fromkeys(
    [("com.microsoft", name) for name in ("NhwcConv", "GroupNorm", "SkipGroupNorm")], FLOATS
)
KERNELS["", "Transpose"] = FLOATS | {TensorProto.UINT8}


class NhwcConv(OpRun):
    op_domain = "com.microsoft"

    def _run(self, x, weight, bias=None, pads=None, strides=None, group=1, **_):
        """X [N, H, W, C], W [M, kH, kW, C / group], B [M]: a sum over the taps, in float32."""
        top, left, bottom, right = pads or (0, 0, 0, 0)
        down, across = strides or (1, 1)
        padded = np.pad(x.astype(np.float32), [(0, 0), (top, bottom), (left, right), (0, 0)])
        height, width = weight.shape[1:3]
        rows, columns = padded.shape[1] - height + 1, padded.shape[2] - width + 1
        maps = np.split(padded, group, axis=3)
        filters = np.split(weight.astype(np.float32), group, axis=0)
        parts = [
            sum(
                part[:, i : i + rows : down, j : j + columns : across] @ taps[:, i, j].T
                for i in range(height)
                for j in range(width)
            )
            for part, taps in zip(maps, filters, strict=True)
        ]
        y = np.concatenate(parts, axis=3)
        return ((y if bias is None else y + bias).astype(x.dtype),)


def normalised(x, gamma, beta, options):
    """Two channels a thread; the variance by the mean of squares, both sums in float32."""
    count, height, width, channels = x.shape
    groups = options["groups"]
    assert options["channels_last"] == 1
    assert gamma.dtype == beta.dtype == np.float32
    assert channels % groups == 0
    assert (channels // groups) % 2 == 0
    grouped = x.astype(np.float32).reshape(count, height * width, groups, -1)
    mean = grouped.mean(axis=(1, 3), keepdims=True)
    variance = np.maximum((grouped**2).mean(axis=(1, 3), keepdims=True) - mean**2, 0)
    y = ((grouped - mean) / np.sqrt(variance + np.float32(options["epsilon"]))).reshape(x.shape)
    y = y * gamma + beta
    return (y / (1 + np.exp(-y)) if options["activation"] else y).astype(x.dtype)


class GroupNorm(OpRun):
    op_domain = "com.microsoft"

    def _run(self, x, gamma, beta, **options):
        return (normalised(x, gamma, beta, options),)


class SkipGroupNorm(OpRun):
    op_domain = "com.microsoft"

    def _run(self, x, gamma, beta, row, bias=None, **options):
        """Of X + row [N, 1, 1, C] + bias [C], in X's type."""
        assert row.shape == (len(x), 1, 1, x.shape[3])
        whole = x + row if bias is None else x + row + bias
        assert whole.dtype == x.dtype
        return (normalised(whole, gamma, beta, options),)


NODES = [NhwcConv, GroupNorm, SkipGroupNorm]


def awake(architecture="ddpmpp", **changes):
    """A small network of random weights, with every kind of layer of its architecture."""
    torch.manual_seed(0)
    layout = {
        "img_resolution": 8, "img_channels": 3, "label_dim": 3, "model_channels": 16,
        "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (4,), "dropout": 0.1,
    }  # fmt: skip
    denoiser = Denoiser(EdmConfig(architecture=architecture, **(layout | changes))).eval()
    with torch.no_grad():  # an untrained network's output layer is near zero
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return denoiser


NETWORKS = {
    "DDPM++": {},
    "NCSN++, more classes than the embedding is wide": {"architecture": "ncsnpp", "label_dim": 80},
    "ADM, several heads": {"architecture": "adm", "model_channels": 64},
    "patches of pixels, without classes": {"patch_size": 2, "img_resolution": 16, "label_dim": 0},
    "an odd number of channels in a group": {"model_channels": 160, "channel_mult": (1, 1)},
}
USUAL = ("DDPM++", "ADM, several heads")


@pytest.fixture(
    scope="module",
    params=[
        name if name in USUAL else pytest.param(name, marks=pytest.mark.long) for name in NETWORKS
    ],
)
def network(request):
    return awake(**NETWORKS[request.param])


@pytest.fixture
def export(network, export_once, tmp_path):
    """A function that exports the network in a precision."""

    def export(precision):
        export_once(network, 2.5, tmp_path / precision, precision, cuda=True)
        return onnx.load(tmp_path / precision)

    return export


def inputs_and_images(network, batch):
    inputs = example_inputs(network, batch)
    with torch.no_grad():
        images = PixelGenerator(network, 2.5)(*inputs).numpy()
    names = ("latents", "class_labels")
    feed = {name: value.numpy() for name, value in zip(names, inputs, strict=False)}
    assert images.std() > 10, "a flat image would prove nothing"
    return feed, images


def assert_alike(images, expected, levels):
    assert images.dtype == np.uint8
    assert images.shape == expected.shape
    assert np.abs(images.astype(int) - expected.astype(int)).max() <= levels


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "levels"),
    [pytest.param("float32", 1, marks=pytest.mark.long), ("float16", 4)],
)
def test_it_draws_what_torch_draws_by_its_nodes_definitions(network, export, precision, levels):
    feed, expected = inputs_and_images(network, 2)
    session = ReferenceEvaluator(export(precision), new_ops=NODES)
    assert_alike(session.run(None, feed)[0], expected, levels)


@pytest.mark.slow
def test_the_twin_draws_the_same_alone_and_in_a_batch(network, export):
    session = onnxruntime.InferenceSession(expand_nodes(export("float16")).SerializeToString())
    for batch in (1, 5):
        feed, expected = inputs_and_images(network, batch)
        assert_alike(session.run(None, feed)[0], expected, 4)


def element_types(model):
    """Of every tensor of a graph; each node gives what it takes first, but for a Cast."""
    types = {one.name: one.data_type for one in model.graph.initializer}
    types |= {one.name: one.type.tensor_type.elem_type for one in model.graph.input}
    for node in model.graph.node:
        cast = node.op_type == "Cast"
        kind = helper.get_attribute_value(node.attribute[0]) if cast else types[node.input[0]]
        types |= dict.fromkeys(node.output, kind)
    return types


@pytest.mark.slow
def test_every_node_has_a_kernel_and_stays_on_the_card(export):
    model = export("float16")
    types = element_types(model)
    for node in model.graph.node:
        assert types[node.input[0]] in KERNELS.get((node.domain, node.op_type), ()), node
    constants = {one.name: list(one.dims) for one in model.graph.initializer}
    shapes = {"Reshape": [1], "Pad": [1], "Slice": [1, 2, 3], "ReduceMean": [1], "Unsqueeze": [1]}
    for node in model.graph.node:
        for position in shapes.get(node.op_type, []):
            assert node.input[position] in constants, "a shape that is computed"
    assert {one.op_type for one in model.graph.node} & {"NhwcConv"}
    assert {(one.domain, one.version) for one in model.opset_import} == {
        ("", 21), ("com.microsoft", 1),
    }  # fmt: skip


@pytest.mark.slow
def test_nothing_copies_from_the_host_while_it_runs(network, export):
    """Concat of unequal maps would, and a CUDA graph would copy what has replaced it by then."""
    twin = expand_nodes(export("float16"))
    joins = {"Concat": "input", "Split": "output"}
    parts = [getattr(one, joins[one.op_type]) for one in twin.graph.node if one.op_type in joins]
    assert parts
    twin.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, None)
        for name in {name for names in parts for name in names}
    )
    session = onnxruntime.InferenceSession(twin.SerializeToString())
    made = session.run(None, inputs_and_images(network, 2)[0])
    sizes = {one.name: array.shape for one, array in zip(twin.graph.output, made, strict=True)}
    for names in parts:
        assert len({sizes[name] for name in names}) == 1
        assert len(names) <= 32


@pytest.mark.slow
def test_no_feature_map_is_transposed_outside_of_attention(network, export):
    model = export("float16")
    users = {name: node for node in model.graph.node for name in node.input}
    makers = {name: node for node in model.graph.node for name in node.output}
    patches = network.config.patch_size > 1
    for node in model.graph.node:
        if node.op_type != "Transpose" or users.get(node.output[0]) is None:
            continue
        user, maker = users[node.output[0]], makers.get(node.input[0])
        attends = {"MatMul", "Mul"} & {user.op_type} or (maker and maker.op_type == "MatMul")
        of_images = maker is None or maker.op_type in ("Cast", "Add", "Mul", "Slice", "Reshape")
        assert attends or of_images or patches, node


@pytest.mark.slow
def test_norms_take_the_activation_and_the_embedding_along(tmp_path, export_once):
    counts = {}
    for name in ("ddpmpp", "adm"):
        export_once(awake(name, model_channels=64), 2.5, tmp_path / name, "float16", cuda=True)
        model = onnx.load(tmp_path / name)
        counts[name] = [node.op_type for node in model.graph.node]
        assert "GroupNormalization" not in counts[name]
    blocks = counts["ddpmpp"].count("SkipGroupNorm")
    assert blocks == 10
    assert "Sigmoid" not in counts["ddpmpp"]
    # ADM scales and shifts between its second norm and the activation.
    assert counts["adm"].count("Sigmoid") == blocks
    assert "SkipGroupNorm" not in counts["adm"]


def single(operator, dtype, arrays, **attributes):
    """A model of one node of ONNX Runtime's own, whose first input is X and the rest constants."""
    names = [f"i{number}" for number in range(len(arrays))]
    node = helper.make_node(operator, names, ["y"], domain="com.microsoft", **attributes)
    constants = [numpy_helper.from_array(a, n) for a, n in zip(arrays[1:], names[1:], strict=True)]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs = [helper.make_tensor_value_info("i0", kind, arrays[0].shape)]
    outputs = [helper.make_tensor_value_info("y", kind, [None] * 4)]
    graph = helper.make_graph([node], "one", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


CONVOLUTIONS = {
    "3x3": ((2, 6, 6, 8), (16, 3, 3, 8), {"pads": [1, 1, 1, 1]}),
    "1x1": ((2, 6, 6, 8), (16, 1, 1, 8), {}),
    "each channel by itself, halving": (
        (2, 8, 8, 6), (6, 4, 4, 1), {"pads": [1, 1, 1, 1], "strides": [2, 2], "group": 6},
    ),
    "margins that differ": (
        (2, 8, 8, 6), (6, 4, 4, 1), {"pads": [2, 2, 1, 1], "strides": [1, 1], "group": 6},
    ),
}  # fmt: skip
TOLERANCES = {np.float32: 2e-6, np.float16: 2e-3}


def assert_expands_to_its_definition(model, x, dtype):
    (expected,) = ReferenceEvaluator(model, new_ops=NODES).run(None, {"i0": x})
    session = onnxruntime.InferenceSession(expand_nodes(model).SerializeToString())
    (found,) = session.run(None, {"i0": x})
    assert found.dtype == expected.dtype == dtype
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCES[dtype] * largest)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_expands_to_its_definition(dtype, case, bias):
    generator = np.random.default_rng(0)
    shape, filters, options = CONVOLUTIONS[case]
    arrays = [generator.normal(size=size).astype(dtype) for size in (shape, filters, filters[:1])]
    model = single(
        "NhwcConv", dtype, arrays[: 2 + bias], kernel_shape=list(filters[1:3]), **options
    )
    assert_expands_to_its_definition(model, arrays[0], dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("activation", [0, 1])
@pytest.mark.parametrize("added", ["nothing", "a row", "a row and a bias"])
def test_a_norm_expands_to_its_definition(dtype, activation, added):
    generator = np.random.default_rng(0)
    x = (generator.normal(size=(2, 6, 5, 24)) * 3 + 1).astype(dtype)
    gamma, beta = generator.normal(size=(2, 24)).astype(np.float32)
    row, bias = (generator.normal(size=size).astype(dtype) for size in ((2, 1, 1, 24), 24))
    terms = {"nothing": [], "a row": [row], "a row and a bias": [row, bias]}[added]
    model = single(
        "SkipGroupNorm" if terms else "GroupNorm", dtype, [x, gamma, beta, *terms],
        epsilon=1e-5, groups=6, activation=activation, channels_last=1,
    )  # fmt: skip
    assert_expands_to_its_definition(model, x, dtype)


@pytest.mark.slow
def test_the_command_writes_it_in_float16_and_in_nothing_else(tmp_path):
    metadata = {"role": "generator", "classes": ["a", "b", "c"], "sigma_init": 2.5}
    save_network(tmp_path / "g.safetensors", awake(), metadata)
    arguments = ["export", str(tmp_path / "g.safetensors"), "--engine", "cuda", "--out"]
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "model.cuda.onnx")])
    assert result.exit_code == 0, result.output
    model = onnx.load(tmp_path / "model.cuda.onnx")
    assert TensorProto.FLOAT16 in element_types(model).values()
    weights = [one for one in model.graph.initializer if prod(one.dims) > 1000]
    assert {one.data_type for one in weights} == {TensorProto.FLOAT16}
    refused = CliRunner().invoke(app, [*arguments, str(tmp_path / "x"), "--precision", "float32"])
    assert "--engine cuda is float16 only" in str(refused.exception)
