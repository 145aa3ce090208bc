"""The network in a released pickle of EDM, EDM2, SiD or SiDA: its weights, checked."""

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distill.errors import UserError
from distill.file_kinds import describe_file, is_network
from distill.importing.arguments import configuration, plain_arguments
from distill.importing.edm2 import PRECONDITIONINGS, read_edm2, read_latents
from distill.importing.machine import (
    ARRAYS,
    DTYPE,
    EASY_DICT,
    GETATTR,
    MODULE_DICT,
    ORDERED_DICT,
    RefusedError,
    read_pickle,
)
from distill.importing.modules import PERSISTENT, Module, read_module, read_tensors, tensor_records
from distill.importing.tensors import PARAMETER, STORAGE, TENSOR, TensorRecord
from distill.networks import Denoiser
from distill.networks.autoencoder import LatentScale
from distill.networks.edm import EdmConfig
from distill.networks.edm2 import Edm2Config
from distill.networks.layers import Conv2d, filter_of
from distill.networks.preconditioning import SIGMA_DATA

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
        *ARRAYS,
        "numpy.ndarray",
        GETATTR,
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
    }
)

# SiDA's loop gives its networks' classes this ending: they compute the encoder alone too, and have
# the parameters, and their names, of the classes without it.
SIDA = "_EncoderDecoder"

MAX_FILE_BYTES = 8 * 2**30  # the largest released network, a generator of EDM2's xxl, has 6.1 GB
_PARTS = {"UNetBlock", "Conv2d", "Linear", "GroupNorm", "PositionalEmbedding", "FourierEmbedding"}


@dataclass(frozen=True)
class Snapshot:
    """What was read from a file.

    Attributes:
        network: in eval mode, float32 on the CPU.
        class_name: of the raw network, such as "SongUNet", "DhariwalUNet" or "UNet", for SiDA's
            with its ending.
        arguments: those of its constructor that the file states: numbers, text, tuples of them.
        from_training: whether the loss or the augmentation of its training is in the file.
        is_generator: whether its class is one that only generators have; else nobody can tell.
        latents: whose latents it draws: an autoencoder's name, and how they stand to that one's
            own; None for a network of pixels.
    """

    network: Denoiser
    class_name: str
    arguments: dict[str, Any]
    from_training: bool
    is_generator: bool = False
    latents: tuple[str, LatentScale] | None = None


def read_snapshot(path: Path) -> Snapshot:
    """Read a released pickle without running anything in it.

    Raises:
        UserError: it is no such file, damaged, hostile, or of a network that is not supported.
    """
    expected = "a released .pkl of EDM's, EDM2's or SiD's"
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
    outer = read_module(content["ema"])
    from_training = any(content.get(key) is not None for key in ("loss_fn", "augment_pipe"))
    if outer.class_name in PRECONDITIONINGS:
        return _edm2(outer, content.get("encoder"), from_training, size)
    if outer.class_name.removesuffix(SIDA) != "EDMPrecond":
        raise RefusedError(
            f"its network is a {outer.class_name!r}: only EDMPrecond can be read, the "
            "preconditioning of EDM, SiD and SiDA, and those of EDM2: "
            f"{', '.join(PRECONDITIONINGS)}"
        )
    if outer.parameters or outer.buffers or outer.modules.keys() != {"model"}:
        raise RefusedError("its EDMPrecond holds more or less than a 'model'")
    inner = read_module(outer.modules["model"])
    class_name = inner.class_name.removesuffix(SIDA)
    arguments = plain_arguments(class_name, inner.state.get("_init_kwargs"))
    config = configuration(class_name, arguments)
    if outer.state.get("sigma_data") != SIGMA_DATA:
        raise RefusedError(f"its sigma_data is not {SIGMA_DATA}, which all of EDM's have")
    for name in ("img_resolution", "img_channels", "label_dim"):
        if outer.state.get(name) != getattr(config, name):
            raise RefusedError(f"its EDMPrecond and its {inner.class_name} differ in {name}")
    return Snapshot(
        network=_load(config, tensor_records(inner, "model.", _PARTS), size),
        class_name=inner.class_name,
        arguments=arguments,
        from_training=from_training,
    )


def _edm2(outer: Module, encoder: object, from_training: bool, size: int) -> Snapshot:
    network, arguments, class_name = read_edm2(outer, size)
    assert isinstance(network.config, Edm2Config)
    return Snapshot(
        network=network,
        class_name=class_name,
        arguments=arguments,
        from_training=from_training,
        is_generator=PRECONDITIONINGS[outer.class_name],
        latents=read_latents(encoder, network.config),
    )


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
    tensors = read_tensors(records, expected, file_bytes)
    for name, kernel in filters.items():
        if not torch.allclose(tensors.pop(name), kernel):
            raise RefusedError(f"its {name!r} is not the filter of {config.architecture}")
    network = Denoiser(config)
    network.load_state_dict(tensors)
    return network.eval()
