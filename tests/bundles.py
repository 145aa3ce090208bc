"""Small real bundles for tests: a random network in ONNX, published through service.bundle."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

from distill.export.triton import triton_config
from service.bundle import (
    FILENAMES,
    Bundle,
    Golden,
    GoldenImage,
    Graph,
    LabelInput,
    Manifest,
    Measured,
    NoiseInput,
    Precision,
    Tolerance,
    VectorInput,
    latents,
    load_bundle,
    noise_and_class,
    sha256_file,
    write_manifest,
)
from service.engines import Engine, Inputs, Prepared

CLOTHES = ["T-shirt/top", "Trouser", "Dress"]
# What a model may take beside noise and class.
STYLE = LabelInput(name="style", count=5, default=1)
MIX = VectorInput(name="mix", shape=(2,), default=(0.5, 0.5))
# Turns of the loop, in native code: until someone ends it, and some tenths of a second.
FOR_EVER, A_WHILE = 10**15, 200_000
_WIDTH = 8
_TOLERANCES: dict[Precision, Tolerance] = {
    "float32": Tolerance(max_difference=1, max_differing_share=0.05),
    "bfloat16": Tolerance(max_difference=8, max_differing_share=1.0),
    "float16": Tolerance(max_difference=2, max_differing_share=0.5),
}


def write_bundle(
    models: Path,
    name: str = "tiny",
    *,
    classes: list[str] | None = None,
    resolution: int = 8,
    channels: int = 1,
    golden: bool = True,
    turns: int = 0,
    version: int = 1,
    triton: Mapping[str, Any] = MappingProxyType({}),
    graphs: Sequence[str] = (),
    latent_shape: tuple[int, int, int] | None = None,
    extra: Sequence[LabelInput | VectorInput] = (),
    **manifest: Any,
) -> Path:
    """Publish a random two-layer convolutional network of the bundle's signature.

    Returns the bundle's folder, models/name. The network is the same for the same arguments.
    `graphs` are the files that hold it once more, in the precision that belongs to their names.
    `triton` goes to `triton_config`. `latent_shape` is that of the images if it is None, else of a
    smaller noise that the network scales up; `extra` are inputs beside noise and class.
    Asked for its first class, it computes a loop of so many `turns` too (see FOR_EVER).
    """
    classes = CLOTHES if classes is None else classes
    folder = models / name
    graph = folder / str(version) / "model.onnx"
    graph.parent.mkdir(parents=True)
    latent_shape = latent_shape or (channels, resolution, resolution)
    network: dict[str, Any] = {
        "classes": len(classes), "resolution": resolution, "channels": channels,
        "latent_shape": latent_shape, "extra": extra,
    }  # fmt: skip
    write_graph(graph, turns=turns, **network)
    for filename in graphs:
        write_graph(graph.with_name(filename), precision=FILENAMES[filename], **network)
    metadata: dict[str, Any] = {
        "name": name,
        "version": version,
        "inputs": [*noise_and_class(latent_shape, has_classes=bool(classes)), *extra],
        "images": (resolution, resolution, channels),
        "classes": classes,
        "sigma_init": 2.5,
        "files": {
            f"{version}/{filename}": sha256_file(graph.with_name(filename))
            for filename in ("model.onnx", *graphs)
        },
        "graphs": {filename: _graph(filename) for filename in graphs},
        "licence": "Apache-2.0",
        "description": "Random weights, for tests.",
        "training": {"data": "none", "kimg": 0},
    }
    if golden:
        metadata["golden"] = _golden(graph, Manifest(**metadata))
    written = Manifest(**(metadata | manifest))
    (folder / "config.pbtxt").write_text(triton_config(written, **triton))
    write_manifest(folder, written)
    return folder


def republished(folder: Path, **manifest: Any) -> Bundle:
    """The bundle again, with digests that fit files that have changed, or other facts."""
    metadata = json.loads((folder / "manifest.json").read_text())
    metadata["files"] = {name: sha256_file(folder / name) for name in metadata["files"]}
    write_manifest(folder, Manifest(**(metadata | manifest)))
    return load_bundle(folder)


def served_tag(folder: Path, graph: str = "float32") -> str:
    """The tag with which a bundle is served whose graph is this; float32: plain model.onnx."""
    return f"{load_bundle(folder).tag}:{graph}"


def graph_inputs(noise: Any, class_labels: Any = None, **extra: Any) -> Inputs:
    """The inputs of a graph by name."""
    labels = {} if class_labels is None else {"class_labels": class_labels}
    return {"latents": noise} | labels | extra


async def compute(
    engine: Engine,
    noise: Any,
    class_labels: Any = None,
    deadline: float | None = None,
    **extra: Any,
) -> Any:
    """The images that an engine computes from these inputs."""
    prepared = Prepared(graph_inputs(noise, class_labels, **extra))
    return await engine.generate(lambda: prepared, lambda images: images, deadline)


def write_graph(
    path: Path,
    *,
    classes: int,
    resolution: int = 8,
    channels: int = 1,
    batch: str | int = "N",
    turns: int = 0,
    precision: Precision = "float32",
    latent_shape: tuple[int, int, int] | None = None,
    extra: Sequence[LabelInput | VectorInput] = (),
) -> None:
    """Write the network: convolution, embeddings, tanh, (scaling up,) convolution, quantisation.

    In other precisions than float32 the weights of the second convolution are stored so.
    """
    random = np.random.default_rng(0)

    def constant(name: str, value: np.ndarray) -> Any:
        return numpy_helper.from_array(value, name)

    def weights(name: str, *shape: int) -> Any:
        return constant(name, random.normal(0, 0.3, shape).astype(np.float32))

    depth, *side = latent_shape or (channels, resolution, resolution)
    values = [
        constant("sigma", np.float32(2.5)),
        constant("half", np.float32(127.5)),
        constant("zero", np.float32(0)),
        constant("top", np.float32(255)),
        constant("axes", np.array([2, 3])),
        weights("in.weight", _WIDTH, depth, 3, 3),
    ]
    last_weight = random.normal(0, 0.3, (channels, _WIDTH, 3, 3)).astype(np.float32)
    inputs = [_tensor("latents", TensorProto.FLOAT, [batch, depth, *side])]
    nodes = [
        helper.make_node("Mul", ["latents", "sigma"], ["x"]),
        helper.make_node("Conv", ["x", "in.weight"], ["h0"], pads=[1, 1, 1, 1]),
    ]
    hidden = "h0"

    def embed(name: str, operator: str, inputs: list[str]) -> str:
        """Add what an input's table makes of it, [N, _WIDTH], to every pixel."""
        nodes.extend(
            [
                helper.make_node(operator, inputs, [f"{name}.row"]),
                helper.make_node("Unsqueeze", [f"{name}.row", "axes"], [f"{name}.pixel"]),
                helper.make_node("Add", [hidden, f"{name}.pixel"], [f"{name}.added"]),
            ]
        )
        return f"{name}.added"

    if classes:
        values.append(weights("embedding", classes, _WIDTH))
        inputs.append(_tensor("class_labels", TensorProto.INT64, [batch]))
        hidden = embed("class", "Gather", ["embedding", "class_labels"])
    for one in extra:
        dtype = TensorProto.INT64 if isinstance(one, LabelInput) else TensorProto.FLOAT
        inputs.append(_tensor(one.name, dtype, [batch, *one.shape]))
        table = f"{one.name}.table"
        if isinstance(one, LabelInput):
            values.append(weights(table, one.count, _WIDTH))
            hidden = embed(one.name, "Gather", [table, one.name])
        else:
            values.append(weights(table, *one.shape, _WIDTH))
            hidden = embed(one.name, "MatMul", [one.name, table])
    if turns:
        values += [constant("first", np.int64(0)), constant("turns_of_first", np.int64(turns))]
        nodes += _loop(hidden, "h_late")
        hidden = "h_late"
    nodes += [
        helper.make_node("Tanh", [hidden], ["h2"]),
        *_scaling("h2", "h3", resolution // side[0], values),
        *_last_convolution("h3", "y0", last_weight, precision, values),
        helper.make_node("Tanh", ["y0"], ["y1"]),
        helper.make_node("Mul", ["y1", "half"], ["y2"]),
        helper.make_node("Add", ["y2", "half"], ["y3"]),
        helper.make_node("Round", ["y3"], ["y4"]),
        helper.make_node("Clip", ["y4", "zero", "top"], ["y5"]),
        helper.make_node("Cast", ["y5"], ["y6"], to=TensorProto.UINT8),
        helper.make_node("Transpose", ["y6"], ["images"], perm=[0, 2, 3, 1]),
    ]
    outputs = [_tensor("images", TensorProto.UINT8, [batch, resolution, resolution, channels])]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    save(model, path)


def _scaling(hidden: str, output: str, factor: int, values: list[Any]) -> list[Any]:
    """Nodes that repeat each pixel `factor` times in height and width."""
    if factor == 1:
        return [helper.make_node("Identity", [hidden], [output])]
    values.append(numpy_helper.from_array(np.float32([1, 1, factor, factor]), "scales"))
    options = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
    nearest = {"nearest_mode": "floor"}
    return [helper.make_node("Resize", [hidden, "", "scales"], [output], **options, **nearest)]


def _last_convolution(
    hidden: str, output: str, weight: np.ndarray, precision: Precision, values: list[Any]
) -> list[Any]:
    """Nodes of a convolution of values between -1 and 1; its constants are added to `values`."""
    if precision == "float32":
        values.append(numpy_helper.from_array(weight, "out.weight"))
        return [helper.make_node("Conv", [hidden, "out.weight"], [output], pads=[1, 1, 1, 1])]
    dtype = TensorProto.BFLOAT16 if precision == "bfloat16" else TensorProto.FLOAT16
    stored = weight.astype(helper.tensor_dtype_to_np_dtype(dtype))
    values.append(numpy_helper.from_array(stored, "out.weight"))  # OpenVINO wants raw bytes
    return [
        helper.make_node("Cast", ["out.weight"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("Conv", [hidden, "w"], [output], pads=[1, 1, 1, 1]),
    ]


def _graph(filename: str) -> Graph:
    """What the manifest says of one: bounds of the tests' own, and no measurement that counts."""
    precision = FILENAMES[filename]
    bounds = _TOLERANCES[precision]
    measured = Measured(
        engine="none 0", images=1, difference=0, differing_share=0.0, batch_difference=0
    )
    return Graph(precision=precision, bounds=bounds, measured=measured)


def _loop(hidden: str, output: str) -> list[Any]:
    """Nodes that pass `hidden` on, after the turns of a loop if any class label is the first."""
    scalar = helper.make_tensor_value_info("carried", TensorProto.FLOAT, [])
    condition = helper.make_tensor_value_info("condition", TensorProto.BOOL, [])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["condition"], ["condition_out"]),
            helper.make_node("Sin", ["carried"], ["carried_out"]),
        ],
        "turn",
        [helper.make_tensor_value_info("turn", TensorProto.INT64, []), condition, scalar],
        [
            helper.make_tensor_value_info("condition_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried_out", TensorProto.FLOAT, []),
        ],
    )
    return [
        helper.make_node("ReduceMin", ["class_labels"], ["lowest"], keepdims=0),
        helper.make_node("Equal", ["lowest", "first"], ["is_first"]),
        helper.make_node("Cast", ["is_first"], ["is_first_number"], to=TensorProto.INT64),
        helper.make_node("Mul", ["is_first_number", "turns_of_first"], ["turns"]),
        helper.make_node("Loop", ["turns", "", "zero"], ["looped"], body=body),
        helper.make_node("Add", [hidden, "looped"], [output]),
    ]


def _tensor(name: str, dtype: int, shape: list[str | int]) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def _golden(graph: Path, manifest: Manifest) -> Golden:
    """Draw the golden image in a session of its own, so that tests compare two paths."""
    import onnxruntime

    seed, label = 7, len(manifest.classes) - 1 if manifest.classes else None
    feeds: dict[str, Any] = {}
    for one in manifest.inputs:
        if isinstance(one, NoiseInput):
            feeds[one.name] = latents([seed], one.shape)
        else:
            default = one.default if isinstance(one, LabelInput | VectorInput) else label
            feeds[one.name] = np.array([default], one.dtype)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    images: Any = session.run(["images"], feeds)[0]
    image = GoldenImage.from_pixels(images[0], class_label=label, seed=seed)
    return Golden(max_difference=1, max_differing_share=0.05, images=[image])
