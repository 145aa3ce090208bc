"""From the constructor arguments in a released file to a configuration of the networks here."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from distill.importing.machine import RefusedError
from distill.networks.edm import EdmConfig
from distill.networks.layout import Architecture
from service.bundle import first_error

_MAX_LENGTH = 64  # of names in messages, and of lists

# What a constructor's argument may be at most: every released network is far below, and so much
# can be laid out (without memory) in a second or two.
_LIMITS = {
    "img_resolution": 1024,
    "img_channels": 64,
    "label_dim": 100_000,
    "augment_dim": 1000,
    "model_channels": 4096,
    "num_blocks": 16,
    "channel_mult": 64,
}
# What an architecture is made of, and what is the same in all of them.
_FIXED = {"channel_mult_emb": 4, "label_dropout": 0}
_STYLES: dict[Architecture, dict[str, object]] = {
    "ddpmpp": {
        "embedding_type": "positional",
        "encoder_type": "standard",
        "decoder_type": "standard",
        "channel_mult_noise": 1,
        "resample_filter": (1, 1),
    },
    "ncsnpp": {
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "decoder_type": "standard",
        "channel_mult_noise": 2,
        "resample_filter": (1, 3, 3, 1),
    },
    "adm": {},
}
# Arguments that a released file may leave out, by class.
_SIZES = {"label_dim": 0, "augment_dim": 0, "dropout": 0.10}
_DEFAULTS: dict[str, dict[str, object]] = {
    "SongUNet": _FIXED | _SIZES | _STYLES["ddpmpp"] | {"num_blocks": 4, "attn_resolutions": (16,)},
    "DhariwalUNet": _FIXED | _SIZES | {"num_blocks": 3, "attn_resolutions": (32, 16, 8)},
}


def plain_arguments(class_name: str, given: object) -> dict[str, Any]:
    """Check names and types of a raw network's constructor arguments; lists become tuples.

    Args:
        class_name: of the network, "SongUNet" or "DhariwalUNet".
        given: what the file holds for its arguments.

    Raises:
        RefusedError: the class or an argument is another than those of EDM and SiD.
    """
    if class_name not in _DEFAULTS:
        raise RefusedError(
            f"its raw network is a {class_name!r}: {' and '.join(_DEFAULTS)} can be read"
        )
    if type(given) is not dict:
        raise RefusedError(f"its {class_name} does not say what it was built from")
    allowed = {*_DEFAULTS[class_name], *_LIMITS, "in_channels", "out_channels"}
    arguments: dict[str, Any] = {}
    for name, value in given.items():
        if name not in allowed:
            raise RefusedError(f"its {class_name} has an unknown {name[:_MAX_LENGTH]!r}")
        plain = tuple(value) if type(value) in (list, tuple) else value
        each = plain if type(plain) is tuple else (plain,)
        if len(each) > _MAX_LENGTH or any(type(item) not in (int, float, str) for item in each):
            raise RefusedError(f"the {name} of its {class_name} is of a wrong type")
        arguments[name] = plain
    return arguments


def configuration(class_name: str, arguments: dict[str, Any]) -> EdmConfig:
    """Turn constructor arguments (`plain_arguments`) into a configuration.

    Raises:
        RefusedError: it is none of the architectures here, or cannot be built.
    """
    full: dict[str, Any] = _DEFAULTS[class_name] | arguments
    if full.get("in_channels") != full.get("out_channels"):
        raise RefusedError("its network gives other channels than it takes")
    for name, value in _FIXED.items():
        if full[name] != value:
            raise RefusedError(f"its {name} is not {value}, as in all that can be read")
    full["img_channels"] = full.get("out_channels")
    check_sizes(full, _LIMITS)
    architecture = next(
        (
            name
            for name, style in _STYLES.items()
            if (name == "adm") == (class_name == "DhariwalUNet")
            and all(full[key] == value for key, value in style.items())
        ),
        None,
    )
    if architecture is None:
        raise RefusedError("it is a SongUNet that is neither DDPM++ nor NCSN++")
    # EDM's ADM names 32, 16 and 8 for every size: a resolution that is no level has no effect.
    levels = [full["img_resolution"] >> level for level in range(len(full["channel_mult"]))]
    attending = full["attn_resolutions"]
    try:
        return EdmConfig.model_validate(
            {name: full[name] for name in EdmConfig.model_fields if name in full}
            | {
                "architecture": architecture,
                "attn_resolutions": tuple(res for res in attending if res in levels),
            },
            strict=True,
        )
    except ValidationError as error:
        raise RefusedError(f"its network cannot be built: {first_error(error)}") from None


def check_sizes(arguments: Mapping[str, Any], limits: Mapping[str, int]) -> None:
    """Check that a network is of a size that can be built.

    Args:
        arguments: of its constructor.
        limits: by argument, what it, or each number of its list, may be at most.

    Raises:
        RefusedError: one is missing, larger, or of another type.
    """
    for name, limit in limits.items():
        values = arguments.get(name)
        for value in values if type(values) is tuple else (values,):
            if type(value) is not int or not 0 <= value <= limit:
                raise RefusedError(f"its {name} is missing, or not within 0 to {limit}")
    for name in ("channel_mult", "attn_resolutions"):
        if type(arguments.get(name)) is not tuple:
            raise RefusedError(f"its {name} is no list")
