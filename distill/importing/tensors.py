"""Tensors inside a pickle: views of a storage, which is a file of torch's in the file."""

import io
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.importing.machine import ORDERED_DICT, Name, Node, RefusedError, read_pickle

PARAMETER = "torch._utils._rebuild_parameter"
TENSOR = "torch._utils._rebuild_tensor_v2"
STORAGE = "torch.storage._load_from_bytes"

_DTYPES = {"torch.FloatStorage": "<f4", "torch.HalfStorage": "<f2"}
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# What comes before the numbers takes about 90 opcodes and 500 bytes. Were it read at any length,
# a file of a thousand tensors over one storage could have it read a thousand times.
_STORAGE_OPCODES, _STORAGE_HEADER = 200, 4096
_MAX_COUNT = 2**40


@dataclass(frozen=True)
class TensorRecord:
    """A tensor as a file describes it, nothing of it read yet."""

    storage: bytes
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def tensor_record(value: object) -> TensorRecord:
    """Take the description of a parameter or a buffer apart, as `Node`s hold it.

    Raises:
        RefusedError: it is none.
    """
    if type(value) is Node and value.path == PARAMETER and value.args:
        value = value.args[0]
    if type(value) is not Node or value.path != TENSOR or len(value.args) < 4:
        raise RefusedError("is no tensor")
    storage, offset, size, stride = value.args[:4]
    if type(storage) is not Node or storage.path != STORAGE or len(storage.args) != 1:
        raise RefusedError("has no storage")
    (blob,) = storage.args
    numbers = (offset, *_tuple(size), *_tuple(stride))
    if type(blob) is not bytes or any(type(number) is not int for number in numbers):
        raise RefusedError("has no storage, size or stride")
    if len(size) != len(stride) or not all(0 <= number < _MAX_COUNT for number in numbers):
        raise RefusedError("has a size and a stride that do not fit")
    return TensorRecord(blob, offset, size, stride)


def _tuple(value: object) -> tuple[object, ...]:
    if type(value) is not tuple:
        raise RefusedError("has no size or stride")
    return value


def read_tensor(record: TensorRecord) -> Tensor:
    """Read a tensor into float32 memory of its own.

    Its size must be one that the caller expects: so much memory is taken.

    Raises:
        RefusedError: the storage is not float32 or float16, does not hold the whole tensor, or
            is overlapped by it; or a value is NaN or infinite.
    """
    values = _read_storage(record.storage)
    count = int(np.prod(record.size, dtype=np.int64))
    if not _is_dense(record.size, record.stride) or record.offset + count > len(values):
        raise RefusedError("does not lie in its storage as a whole")
    flat = torch.from_numpy(values[record.offset : record.offset + count].astype(np.float32))
    tensor = flat.as_strided(record.size, record.stride).contiguous()
    if not tensor.isfinite().all():
        raise RefusedError("holds NaN or infinity")
    return tensor


def _is_dense(size: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether every element has a place of its own and no place is left out."""
    expected = 1
    for step, length in sorted((s, n) for n, s in zip(size, stride, strict=True) if n != 1):
        if step != expected:
            return False
        expected *= length
    return True


def _read_storage(blob: bytes) -> np.ndarray:
    """The numbers of a storage that `torch.save` wrote in its older form, without copying them.

    That form is five pickles (a magic number, a version, the machine, a reference to the storage,
    the list of its names), then the count and the numbers. `torch.load` would first take the
    memory that the reference asks for; here the bytes that are there decide.
    """
    stream = io.BytesIO(blob[:_STORAGE_HEADER])
    names = (*_DTYPES, ORDERED_DICT)

    def part() -> object:
        return read_pickle(stream, names, _STORAGE_OPCODES, persistent=True)

    if blob.startswith(b"PK"):
        raise RefusedError("has its storage in a zip: expected torch's older form")
    if part() != _MAGIC or part() != _PROTOCOL:
        raise RefusedError("has a storage of a version that is not supported")
    machine = part()
    if type(machine) is not dict or machine.get("little_endian") is not True:
        raise RefusedError("has a storage of a big-endian machine")
    reference = part()
    if type(reference) is not Node or reference.path != "persistent":
        raise RefusedError("has a storage that is none")
    match reference.args[0]:
        case ("storage", Name(path), str(key), str(), int(count), None) if path in _DTYPES:
            dtype = np.dtype(_DTYPES[path])
        case _:
            raise RefusedError("has a storage that is neither float32 nor float16")
    keys = part()
    if type(keys) is not list or len(keys) != 1 or keys[0] != key:
        raise RefusedError("has more than one storage")
    start = stream.tell()
    stated = int.from_bytes(blob[start : start + 8], "little")
    if count < 1 or stated != count or len(blob) != start + 8 + count * dtype.itemsize:
        raise RefusedError("has a storage of another length than it says")
    return np.frombuffer(blob, dtype, offset=start + 8)
