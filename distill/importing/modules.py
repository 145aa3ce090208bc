"""Modules of torch as a released pickle describes them, and their tensors, each checked."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from distill.importing.machine import MODULE_DICT, Node, RefusedError
from distill.importing.tensors import TensorRecord, read_tensor, tensor_record

PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"

# Of a module's name, of the entries of its state's dicts, of modules within modules: released
# networks have 15, 40 and 4. One dict can be part of many modules, at the cost of two bytes each.
_MAX_KEY, _MAX_ENTRIES, _MAX_DEPTH = 64, 256, 8


@dataclass(frozen=True)
class Module:
    """A module as the file describes it; every name in it is short text."""

    class_name: str
    state: dict[str, Any]
    parameters: dict[str, object]
    buffers: dict[str, object]
    modules: dict[str, object]


def read_object(value: object) -> tuple[str, dict[str, Any]]:
    """The class's name, cut if it is long, and the state of an object that a file describes.

    Raises:
        RefusedError: it is none.
    """
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
    return class_name[:_MAX_KEY], state


def read_module(value: object) -> Module:
    """Take the description of a module apart.

    Raises:
        RefusedError: it is none.
    """
    class_name, state = read_object(value)
    parts: list[dict[str, object]] = []
    for key in ("_parameters", "_buffers", "_modules"):
        part = state.get(key)
        if (
            type(part) is not dict
            or len(part) > _MAX_ENTRIES
            or any(len(name) > _MAX_KEY for name in part)
        ):
            raise RefusedError(f"its {class_name!r} has no {key}, or far too many")
        parts.append(part)
    return Module(class_name, state, *parts)


def tensor_records(
    module: Module, prefix: str, classes: Collection[str]
) -> dict[str, TensorRecord]:
    """Collect the description of every parameter and buffer by its full name.

    Args:
        module: whose they are.
        prefix: of their names.
        classes: of which the modules within it may be; a ModuleDict may be anywhere.

    Raises:
        RefusedError: a module is of another class, in two places or too deep; or something is no
            tensor.
    """
    records: dict[str, TensorRecord] = {}
    _collect(module, prefix, (*classes, "ModuleDict"), records, set(), 0)
    return records


def _collect(
    module: Module,
    prefix: str,
    classes: Collection[str],
    records: dict[str, TensorRecord],
    seen: set[int],
    depth: int,
) -> None:
    # A module that contains itself, or is in two places, would make this endless.
    if id(module.state) in seen or depth > _MAX_DEPTH:
        raise RefusedError("it has a module within itself, in two places or too deep")
    seen.add(id(module.state))
    for name, value in (module.parameters | module.buffers).items():
        if value is not None:
            try:
                records[prefix + name] = tensor_record(value)
            except RefusedError as error:
                raise RefusedError(f"its {prefix + name!r} {error}") from None
    for name, value in module.modules.items():
        if value is not None:
            child = read_module(value)
            if child.class_name not in classes:
                raise RefusedError(f"its {prefix + name!r} is a {child.class_name!r}")
            _collect(child, f"{prefix}{name}.", classes, records, seen, depth + 1)


def read_tensors(
    records: Mapping[str, TensorRecord], expected: Mapping[str, tuple[int, ...]], file_bytes: int
) -> dict[str, Tensor]:
    """Read tensors, once it is known that the file holds all of them and nothing else.

    Args:
        records: what the file holds, by name.
        expected: the shapes of a network's tensors, by name.
        file_bytes: the file's size: nothing larger is read.

    Returns:
        float32, by name.

    Raises:
        RefusedError: a tensor is missing, unknown, of another shape, damaged or not finite.
    """
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
    return tensors
