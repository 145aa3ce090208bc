"""The network in a released pickle of EDM, SiD or SiDA: its configuration and weights, checked."""

import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distill.errors import UserError
from distill.file_kinds import describe_file, is_network
from distill.importing.arguments import configuration, plain_arguments
from distill.importing.machine import (
    DTYPE,
    EASY_DICT,
    MODULE_DICT,
    ORDERED_DICT,
    Node,
    RefusedError,
    read_pickle,
)
from distill.importing.tensors import (
    PARAMETER,
    STORAGE,
    TENSOR,
    TensorRecord,
    read_tensor,
    tensor_record,
)
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from distill.networks.layers import Conv2d, filter_of
from distill.networks.preconditioning import SIGMA_DATA

PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
NAMES = frozenset(
    {
        PERSISTENT,
        ORDERED_DICT,
        EASY_DICT,
        MODULE_DICT,
        PARAMETER,
        TENSOR,
        STORAGE,
        DTYPE,
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
    }
)

# SiDA's loop gives its networks' classes this ending: they compute the encoder alone too, and have
# the parameters, and their names, of the classes without it.
SIDA = "_EncoderDecoder"

MAX_FILE_BYTES = 4 * 2**30  # the largest released network has 1.2 GB
# Of a module's name, of the entries of its state's dicts, of modules within modules: released
# networks have 15, 40 and 4. One dict can be part of many modules, at the cost of two bytes each.
_MAX_KEY, _MAX_ENTRIES, _MAX_DEPTH = 64, 256, 8

_PARTS = {"UNetBlock", "Conv2d", "Linear", "GroupNorm", "PositionalEmbedding", "FourierEmbedding"}


@dataclass(frozen=True)
class Snapshot:
    """What was read from a file.

    Attributes:
        network: in eval mode, float32 on the CPU.
        class_name: of the raw network, "SongUNet" or "DhariwalUNet", for SiDA's with its ending.
        arguments: those of its constructor that the file states: numbers, text, tuples of them.
        from_training: whether the loss or the augmentation of its training is in the file.
    """

    network: Denoiser
    class_name: str
    arguments: dict[str, Any]
    from_training: bool


def read_snapshot(path: Path) -> Snapshot:
    """Read a released pickle without running anything in it.

    Raises:
        UserError: it is no such file, damaged, hostile, or of a network that is not supported.
    """
    expected = "a released .pkl of EDM's or SiD's"
    if not path.is_file():
        reason = f"it is {describe_file(path)}" if path.is_dir() else "there is no such file"
        raise UserError(f"no network at {path}: {reason}; expected {expected}")
    if kind := describe_file(path):
        raise UserError(f"{path} is refused: it is {kind}; expected {expected}")
    if is_network(path):
        raise UserError(
            f"{path} is refused: it is a network that sid-distill wrote, which needs no import: "
            "name it as it is, say with --teacher"
        )
    try:
        return _read(path)
    except RefusedError as error:
        raise UserError(f"{path} is refused: {error}") from None


def _read(path: Path) -> Snapshot:
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise RefusedError(f"it has {size} bytes, a network at most {MAX_FILE_BYTES}")
    if size == 0:
        raise RefusedError("it is empty")
    # Mapped, not opened: a file's read() first takes the memory that a damaged length asks for.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        content = read_pickle(stream, NAMES)
        if stream.tell() != size:
            raise RefusedError("it goes on after its end")
    if type(content) is not dict or "ema" not in content:
        raise RefusedError("it holds no 'ema', the network of a released file")
    outer = _module(content["ema"])
    if outer.class_name.removesuffix(SIDA) != "EDMPrecond":
        raise RefusedError(
            f"its network is a {outer.class_name!r}: only EDMPrecond can be read, the "
            "preconditioning of EDM, SiD and SiDA"
        )
    if outer.parameters or outer.buffers or outer.modules.keys() != {"model"}:
        raise RefusedError("its EDMPrecond holds more or less than a 'model'")
    inner = _module(outer.modules["model"])
    class_name = inner.class_name.removesuffix(SIDA)
    arguments = plain_arguments(class_name, inner.state.get("_init_kwargs"))
    config = configuration(class_name, arguments)
    if outer.state.get("sigma_data") != SIGMA_DATA:
        raise RefusedError(f"its sigma_data is not {SIGMA_DATA}, which all of EDM's have")
    for name in ("img_resolution", "img_channels", "label_dim"):
        if outer.state.get(name) != getattr(config, name):
            raise RefusedError(f"its EDMPrecond and its {inner.class_name} differ in {name}")
    return Snapshot(
        network=_load(config, _tensors(inner, "model.", {}, set()), size),
        class_name=inner.class_name,
        arguments=arguments,
        from_training=any(content.get(key) is not None for key in ("loss_fn", "augment_pipe")),
    )


@dataclass(frozen=True)
class _Module:
    """A module as the file describes it; every name in it is short text."""

    class_name: str
    state: dict[str, Any]
    parameters: dict[str, object]
    buffers: dict[str, object]
    modules: dict[str, object]


def _module(value: object) -> _Module:
    if type(value) is not Node:
        raise RefusedError("it holds a module that is none")
    class_name: object = "ModuleDict"
    state = value.state
    if value.path == PERSISTENT:
        meta = value.args[0] if len(value.args) == 1 else None
        if type(meta) is not dict or meta.get("type") != "class" or meta.get("version") != 6:
            raise RefusedError("it holds an object that is no class of version 6")
        class_name, state = meta.get("class_name"), meta.get("state")
    elif value.path != MODULE_DICT:
        raise RefusedError("it holds a module that is none")
    if type(class_name) is not str or type(state) is not dict:
        raise RefusedError("it holds a module without a class or a state")
    parts: list[dict[str, object]] = []
    for key in ("_parameters", "_buffers", "_modules"):
        part = state.get(key)
        if (
            type(part) is not dict
            or len(part) > _MAX_ENTRIES
            or any(len(name) > _MAX_KEY for name in part)
        ):
            raise RefusedError(f"its {class_name[:_MAX_KEY]!r} has no {key}, or far too many")
        parts.append(part)
    return _Module(class_name[:_MAX_KEY], state, *parts)


def _tensors(
    module: _Module, prefix: str, tensors: dict[str, TensorRecord], seen: set[int], depth: int = 0
) -> dict[str, TensorRecord]:
    """Collect the description of every parameter and buffer by its full name, into `tensors`.

    A module that contains itself, or is in two places, would make this endless.
    """
    if id(module.state) in seen or depth > _MAX_DEPTH:
        raise RefusedError("it has a module within itself, in two places or too deep")
    seen.add(id(module.state))
    for name, value in (module.parameters | module.buffers).items():
        if value is not None:
            try:
                tensors[prefix + name] = tensor_record(value)
            except RefusedError as error:
                raise RefusedError(f"its {prefix + name!r} {error}") from None
    for name, value in module.modules.items():
        if value is not None:
            child = _module(value)
            if child.class_name not in (*_PARTS, "ModuleDict"):
                raise RefusedError(f"its {prefix + name!r} is a {child.class_name!r}")
            _tensors(child, f"{prefix}{name}.", tensors, seen, depth + 1)
    return tensors


def _load(config: EdmConfig, records: dict[str, TensorRecord], file_bytes: int) -> Denoiser:
    """Build the network, once it is known that the file holds all of it and nothing else."""
    with torch.device("meta"):
        plan = Denoiser(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in plan.state_dict().items()}
    filters = {
        f"{name}.resample_filter": filter_of(module.resample)[None, None]
        for name, module in plan.named_modules()
        if isinstance(module, Conv2d) and module.resample
    }
    expected = shapes | {name: tuple(kernel.shape) for name, kernel in filters.items()}
    if missing := sorted(expected.keys() - records.keys()):
        raise RefusedError(f"it lacks {missing[0]!r} ({len(missing)} are missing)")
    if surplus := sorted(records.keys() - expected.keys()):
        raise RefusedError(f"it holds an unknown {surplus[0]!r} ({len(surplus)} are)")
    for name, shape in expected.items():
        if records[name].size != shape:
            raise RefusedError(f"its {name!r} is not of the shape {list(shape)}")
    if 2 * sum(math.prod(shape) for shape in expected.values()) > file_bytes:
        raise RefusedError("it is smaller than its network")
    tensors = {}
    for name, record in records.items():
        try:
            tensors[name] = read_tensor(record)
        except RefusedError as error:
            raise RefusedError(f"its {name!r} {error}") from None
    for name, kernel in filters.items():
        if not torch.allclose(tensors.pop(name), kernel):
            raise RefusedError(f"its {name!r} is not the filter of {config.architecture}")
    network = Denoiser(config)
    network.load_state_dict(tensors)
    return network.eval()
