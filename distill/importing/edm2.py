"""The network in a released pickle of EDM2's, or of SiD's on EDM2: teachers and generators."""

import math
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from distill.importing.arguments import check_sizes
from distill.importing.machine import ARRAYS, DTYPE, Node, RefusedError
from distill.importing.modules import Module, read_module, read_object, read_tensors, tensor_records
from distill.networks import Denoiser
from distill.networks.autoencoder import EDM2_SCALE, LatentScale
from distill.networks.edm2 import Edm2Config
from distill.networks.preconditioning import SIGMA_DATA
from service.bundle import first_error

# Classes of a preconditioning, and whether it is one of SiD's, which only generators have.
PRECONDITIONINGS = {
    "Precond": False,
    "EDM_2_Precond_Generator": True,
    "EDM_2_Precond_EncoderDecoder": True,
}
_NETWORKS = ("UNet", "UNet_EncoderDecoder")
_PARTS = ("Block", "MPConv", "MPFourier")
_HEAD = {"logvar_fourier", "logvar_linear"}
AUTOENCODER = "stabilityai/sd-vae-ft-mse"  # of all released latent networks

_MAX_LENGTH = 64  # of names in messages, and of lists
# What a constructor's argument may be at most: every released network is far below.
_LIMITS = {
    "img_resolution": 1024,
    "img_channels": 64,
    "label_dim": 100_000,
    "model_channels": 4096,
    "num_blocks": 16,
    "channels_per_head": 4096,
    "channel_mult": 64,
    "attn_resolutions": 1024,
}
_DEFAULTS: dict[str, object] = {
    "channel_mult": (1, 2, 3, 4),
    "num_blocks": 3,
    "attn_resolutions": (16, 8),
    "channels_per_head": 64,
    "dropout": 0,
}
# The same in all that can be read.
_FIXED: dict[str, object] = {
    "channel_mult_noise": None,
    "channel_mult_emb": None,
    "label_balance": 0.5,
    "concat_balance": 0.5,
    "res_balance": 0.3,
    "attn_balance": 0.3,
    "clip_act": 256,
}
# Of SiDA's classes: how they were trained, which changes no image.
_TRAINING = ("force_normalization", "use_gan")


def read_edm2(outer: Module, file_bytes: int) -> tuple[Denoiser, dict[str, Any], str]:
    """Read the network of one of `PRECONDITIONINGS`.

    Args:
        outer: the preconditioning.
        file_bytes: the file's size.

    Returns:
        The network, the arguments of its constructor, and its class's name.

    Raises:
        RefusedError: it is damaged, or another network than those of EDM2.
    """
    held = set(outer.modules)
    whole = held in ({"unet"}, {"unet", *_HEAD})
    if outer.parameters or outer.buffers or not whole:
        raise RefusedError(f"its {outer.class_name} holds more or less than a 'unet' and a head")
    inner = read_module(outer.modules["unet"])
    if inner.class_name not in _NETWORKS:
        raise RefusedError(
            f"its raw network is a {inner.class_name!r}: {' and '.join(_NETWORKS)} can be read"
        )
    arguments = _plain_arguments(inner)
    has_head = "logvar_linear" in held
    config = _configuration(arguments, _head_width(outer) if has_head else 0)
    if outer.state.get("sigma_data") != SIGMA_DATA:
        raise RefusedError(f"its sigma_data is not {SIGMA_DATA}, which all of EDM2's have")
    for name in ("img_resolution", "img_channels", "label_dim"):
        if outer.state.get(name) != getattr(config, name):
            raise RefusedError(
                f"its {outer.class_name} and its {inner.class_name} differ in {name}"
            )
    return _load(config, outer, file_bytes), arguments, inner.class_name


def _load(config: Edm2Config, outer: Module, file_bytes: int) -> Denoiser:
    """Build the network; names in the file are those of the network but for the beginning."""
    with torch.device("meta"):
        plan = Denoiser(config).state_dict()
    ours = {_released_name(name): name for name in plan}
    # Gains are numbers in the file, and here rows of one.
    expected = {
        name: () if name.endswith("gain") else tuple(plan[mine].shape)
        for name, mine in ours.items()
    }
    records = tensor_records(outer, "", (*_NETWORKS, *_PARTS))
    tensors = read_tensors(records, expected, file_bytes)
    network = Denoiser(config)
    network.load_state_dict(
        {ours[name]: tensor.reshape(plan[ours[name]].shape) for name, tensor in tensors.items()}
    )
    return network.eval()


def _released_name(name: str) -> str:
    """A weight's name in the file: the uncertainty head stands beside the raw network there."""
    name = name.removeprefix("model.")
    return name if name.startswith("logvar_") else f"unet.{name}"


def _head_width(outer: Module) -> int:
    given = outer.state.get("_init_kwargs")
    width = given.get("logvar_channels", 128) if type(given) is dict else None
    if type(width) is not int or not 1 <= width <= 4096:
        raise RefusedError("its logvar_channels is not within 1 to 4096")
    return width


def _plain_arguments(inner: Module) -> dict[str, Any]:
    """Check names and types of the raw network's constructor arguments; lists become tuples."""
    given = inner.state.get("_init_kwargs")
    if type(given) is not dict:
        raise RefusedError(f"its {inner.class_name} does not say what it was built from")
    arguments: dict[str, Any] = {}
    for name, value in given.items():
        if name not in (*_LIMITS, *_DEFAULTS, *_FIXED, *_TRAINING):
            raise RefusedError(f"its {inner.class_name} has an unknown {name[:_MAX_LENGTH]!r}")
        plain = tuple(value) if type(value) in (list, tuple) else value
        each = plain if type(plain) is tuple else (plain,)
        kinds = (bool,) if name in _TRAINING else (int, float, type(None))
        if len(each) > _MAX_LENGTH or any(type(item) not in kinds for item in each):
            raise RefusedError(f"the {name} of its {inner.class_name} is of a wrong type")
        if name in _FIXED and plain != _FIXED[name]:
            raise RefusedError(f"its {name} is not {_FIXED[name]}, as in all that can be read")
        arguments[name] = plain
    return arguments


def _configuration(arguments: dict[str, Any], logvar_channels: int) -> Edm2Config:
    full: dict[str, Any] = _DEFAULTS | arguments
    check_sizes(full, _LIMITS)
    # All name 16 and 8, whatever their size: a resolution that is no level has no effect.
    levels = [full["img_resolution"] >> level for level in range(len(full["channel_mult"]))]
    attending = tuple(res for res in full["attn_resolutions"] if res in levels)
    fields = {name: full[name] for name in Edm2Config.model_fields if name in full}
    try:
        return Edm2Config.model_validate(
            fields | {"attn_resolutions": attending, "logvar_channels": logvar_channels},
            strict=True,
        )
    except ValidationError as error:
        raise RefusedError(f"its network cannot be built: {first_error(error)}") from None


def read_latents(encoder: object, config: Edm2Config) -> tuple[str, LatentScale] | None:
    """Whose latents a network draws, by the encoder in its file.

    Args:
        encoder: what the file holds for it; None where it holds none, as in SiD's files.
        config: of the network.

    Returns:
        The autoencoder's name and how latents stand to its own; None for a network of pixels.

    Raises:
        RefusedError: the encoder is none of EDM2's, or of other channels than the network.
    """
    if encoder is None:
        pixels = config.img_channels in (1, 3)
        if not pixels and config.img_channels != len(EDM2_SCALE.scale):
            raise RefusedError(
                f"its network has {config.img_channels} channels: expected 1 or 3 of pixels, or "
                f"{len(EDM2_SCALE.scale)} of latents"
            )
        return None if pixels else (AUTOENCODER, EDM2_SCALE)
    class_name, state = read_object(encoder)
    if class_name == "StandardRGBEncoder":
        return None
    if class_name != "StabilityVAEEncoder":
        raise RefusedError(
            f"its encoder is a {class_name!r}: StabilityVAEEncoder and StandardRGBEncoder can be "
            "read"
        )
    name = state.get("vae_name")
    if type(name) is not str or not name.isprintable() or not 1 <= len(name) <= 200:
        raise RefusedError("its encoder does not name its autoencoder")
    scale, bias = (_array(state.get(key), key, config.img_channels) for key in ("scale", "bias"))
    if 0 in scale:
        raise RefusedError("the scale of its encoder holds a 0")
    return name, LatentScale(scale, bias)


def _array(value: object, name: str, channels: int) -> tuple[float, ...]:
    """The float32 numbers of an array of NumPy's, one a channel."""
    match value:
        case Node(path=path, state=(1, (int(count),), Node() as dtype, False, bytes() as content)):
            known = path in ARRAYS and dtype.path == DTYPE and dtype.args[:1] == ("f4",)
            little = type(dtype.state) is tuple and dtype.state[1:2] == ("<",)
            if known and little and len(content) == 4 * count:
                if count != channels:
                    raise RefusedError(
                        f"its encoder has a {name} of {count} channels, its network {channels}"
                    )
                numbers = tuple(float(number) for number in np.frombuffer(content, "<f4"))
                if all(map(math.isfinite, numbers)):
                    return numbers
    raise RefusedError(f"the {name} of its encoder is not float32 numbers, one a channel")
