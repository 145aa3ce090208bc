"""A recipe of the smallest network that can be built, for tests that run whole commands."""

import json
from typing import Any

NETWORK = {
    "img_resolution": 8, "img_channels": 1, "model_channels": 8, "channel_mult": [1],
    "num_blocks": 1, "attn_resolutions": [],
}  # fmt: skip
# What every section of a training needs; a test says what else matters to it.
SECTION = {"lr": 1e-3, "ema_halflife": 500, "checkpoint_every": 500}


def tiny_recipe(
    network: dict[str, Any] | None = None, licence: str | None = None, **sections: dict[str, Any]
) -> str:
    """The text of a recipe: its sections, such as `teacher` and `sid`, with what they add."""
    lines = ['description = "tiny"', *([f'licence = "{licence}"'] if licence else [])]
    for name, entries in {"network": NETWORK | (network or {}), **sections}.items():
        whole = entries if name == "network" else SECTION | entries
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in whole.items())]
    return "\n".join([*lines, ""])
