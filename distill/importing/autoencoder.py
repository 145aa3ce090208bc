"""A released autoencoder, as diffusers saves its AutoencoderKL: a .safetensors file.

Such a file holds numbers and names and nothing that could run. What an autoencoder is made of
stands in its tensors' shapes, but for the groups of its normalisations: those stand in the
config.json beside it.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from distill.errors import UserError, first_line
from distill.file_kinds import describe_file, is_autoencoder
from distill.networks.autoencoder import AutoencoderLayout, Decoder, Encoder
from distill.text_files import read_text
from service.bundle import first_error

# As attention's layers were called in older files; some have them as 1x1 convolutions.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_ATTENTION = re.compile(r"(.*\.attentions\.0\.)(query|key|value|proj_attn)(\..*)")
_DTYPES = ("F32", "F16", "BF16")
_MOST_LEVELS, _MOST_BLOCKS, _WIDEST = 8, 16, 4096
_MAX_NAME = 80  # of names in messages
_DECODER, _ENCODER = ("decoder.", "post_quant_conv."), ("encoder.", "quant_conv.")


class _Record(NamedTuple):
    """A tensor in the file: its name there, and its shape without the ones of a 1x1 convolution."""

    name: str
    shape: tuple[int, ...]


class Autoencoder(NamedTuple):
    """Both directions, in eval mode, float32 on the CPU.

    Attributes:
        decoder: from latents to images.
        encoder: from images to latents; None where a file does not hold it whole.
    """

    decoder: Decoder
    encoder: Encoder | None


def read_autoencoder(path: Path, groups: int | None = None) -> Autoencoder:
    """Read an autoencoder from a .safetensors file of diffusers'.

    Args:
        path: of the file.
        groups: of its normalisations; None for those in the config.json beside it, or 32.

    Raises:
        UserError: it is no such file, damaged, or of an autoencoder that is not supported.
    """
    if not path.is_file():
        reason = f"it is {describe_file(path)}" if path.is_dir() else "there is no such file"
        raise UserError(f"no autoencoder at {path}: {reason}; expected a .safetensors file")
    if not is_autoencoder(path):
        kind = describe_file(path) or "none"
        raise UserError(
            f"{path} is no autoencoder: it is {kind}; expected a .safetensors file of diffusers' "
            "AutoencoderKL, such as sd-vae-ft-mse's"
        )
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            slices = {name: file.get_slice(name) for name in names}
            for name, part in slices.items():
                if (kind := part.get_dtype()) not in _DTYPES:
                    raise _RefusedError(f"its {name[:_MAX_NAME]!r} is of the type {kind}")
            records = _todays_names({name: part.get_shape() for name, part in slices.items()})
            layout = _layout(records, _groups_beside(path) if groups is None else groups)
            # The weights first: so no more memory is taken than the file has bytes for.
            weights = _weights(_plan(Decoder, layout), _DECODER, records, file)
            decoder, encoder = Decoder(layout).eval(), None
            decoder.load_state_dict(weights)
            if (plan := _plan(Encoder, layout)).keys() <= records.keys():
                weights = _weights(plan, _ENCODER, records, file)
                encoder = Encoder(layout).eval()
                encoder.load_state_dict(weights)
    except _RefusedError as error:
        raise UserError(f"{path} is refused: {error}") from None
    except SafetensorError as error:
        raise UserError(f"{path} is damaged: {first_line(error)}") from None
    return Autoencoder(decoder, encoder)


class _RefusedError(UserError):
    """A file that is not read; the message says what it holds."""


def _todays_names(shapes: Mapping[str, list[int]]) -> dict[str, _Record]:
    """What the file holds by the names of today; raise if two tensors have the same one."""
    records: dict[str, _Record] = {}
    for name, shape in shapes.items():
        today, plain = name, tuple(shape)
        if match := _ATTENTION.fullmatch(name):
            today = f"{match[1]}{_OLD_NAMES[match[2]]}{match[3]}"
        if ".attentions." in name and plain[2:] == (1, 1):
            plain = plain[:2]
        if today in records:
            raise _RefusedError(f"it holds {today[:_MAX_NAME]!r} under two names")
        records[today] = _Record(name, plain)
    return records


def _layout(records: Mapping[str, _Record], groups: int) -> AutoencoderLayout:
    """What the decoder is made of, by its tensors' shapes."""

    def channels(name: str, axis: int) -> int:
        if name not in records:
            raise _RefusedError(f"it lacks {name!r}")
        shape = records[name].shape
        if len(shape) != 4 or not 1 <= shape[axis] <= _WIDEST:
            raise _RefusedError(f"its {name!r} has the shape {list(shape)}")
        return shape[axis]

    def count(prefix: str, most: int) -> int:
        after = (name.removeprefix(prefix) for name in records if name.startswith(prefix))
        indices = {rest.split(".")[0] for rest in after}
        if not 1 <= len(indices) <= most:
            raise _RefusedError(f"it has {len(indices)} of {prefix}*, and 1 to {most} can be read")
        return len(indices)

    levels = count("decoder.up_blocks.", _MOST_LEVELS)
    blocks = count("decoder.up_blocks.0.resnets.", _MOST_BLOCKS)
    widths = [channels(f"decoder.up_blocks.{i}.resnets.0.conv1.weight", 0) for i in range(levels)]
    try:
        return AutoencoderLayout(
            img_channels=channels("decoder.conv_out.weight", 0),
            latent_channels=channels("decoder.conv_in.weight", 1),
            widths=tuple(reversed(widths)),
            blocks=blocks - 1,
            groups=groups,
        )
    except ValidationError as error:
        raise _RefusedError(f"it cannot be built: {first_error(error)}") from None


def _plan(
    kind: type[Decoder] | type[Encoder], layout: AutoencoderLayout
) -> dict[str, tuple[int, ...]]:
    """The shapes of a half's tensors, by name; takes no memory."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in kind(layout).state_dict().items()}


def _weights(
    expected: Mapping[str, tuple[int, ...]],
    prefixes: tuple[str, ...],
    records: Mapping[str, _Record],
    file: Any,
) -> dict[str, Tensor]:
    """Read a half, once it is known that the file holds all of it and nothing else."""
    known = {name for name in records if name.startswith(prefixes)}
    if missing := sorted(expected.keys() - known):
        raise _RefusedError(f"it lacks {missing[0]!r} ({len(missing)} are missing)")
    others = {name for name in records if not name.startswith((*_DECODER, *_ENCODER))}
    if surplus := sorted((known - expected.keys()) | others):
        first = surplus[0][:_MAX_NAME]
        raise _RefusedError(f"it holds an unknown {first!r} ({len(surplus)} are)")
    for name, shape in expected.items():
        if records[name].shape != shape:
            raise _RefusedError(f"its {records[name].name!r} is not of the shape {list(shape)}")
    weights: dict[str, Tensor] = {}
    for name, shape in expected.items():
        weights[name] = file.get_tensor(records[name].name).float().reshape(shape)
        if not weights[name].isfinite().all():
            raise _RefusedError(f"its {records[name].name!r} holds NaN or infinity")
    return weights


def _groups_beside(path: Path) -> int:
    """The groups that the config.json beside a file states; 32, Stable Diffusion's, without one."""
    config = path.with_name("config.json")
    if not config.is_file():
        return 32
    try:
        stated = json.loads(read_text(config))
    except ValueError as error:
        raise _RefusedError(f"{config.name} beside it is no JSON: {first_line(error)}") from None
    groups = stated.get("norm_num_groups", 32) if isinstance(stated, dict) else None
    if type(groups) is not int or not 1 <= groups <= _WIDEST:
        raise _RefusedError(f"{config.name} beside it states no norm_num_groups of 1 or more")
    return groups
