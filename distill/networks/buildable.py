"""Whether a U-Net of EDM's can be built: tried on torch's meta device, which takes no memory.

On the way up a U-Net joins maps of different widths, so which widths can be normalised in groups
follows from its whole wiring, and that is written down in the networks and nowhere else. A trial
takes some 10 ms. It draws no image, for that would load torch's compiler: what is built must run,
so layers refuse what they could not compute (see `PositionalEmbedding` and `UNetBlock`).
"""

from functools import lru_cache

import torch

from distill.networks.layout import EdmLayout

# Every architecture takes multiples of this, so a search for a width that works ends there.
ALWAYS_WORKS = 64
# More blocks on a level meet no other widths than two do.
ENOUGH_BLOCKS = 2


def explain_not_buildable(config: EdmLayout) -> str | None:
    """What is wrong with a configuration, and which widths would do; None if it can be built."""
    reason = _trial(_shape_of(config, config.model_channels))
    if reason is None:
        return None
    near = " or ".join(str(width) for width in _nearest_widths(config) if width is not None)
    advice = f": model_channels {near} would do" if near else ""
    return (
        f"{config.architecture} with {config.model_channels} channels times "
        f"{list(config.channel_mult)} cannot be built ({reason}){advice}"
    )


def _shape_of(config: EdmLayout, model_channels: int) -> EdmLayout:
    """The smallest configuration that can be built if and only if this one can."""
    return config.model_copy(
        update={
            "model_channels": model_channels,
            "num_blocks": min(config.num_blocks, ENOUGH_BLOCKS),
            "label_dim": 0,
            "augment_dim": 0,
            "dropout": 0.0,
        }
    )


@lru_cache(maxsize=1024)
def _trial(config: EdmLayout) -> str | None:
    """Build a network; what was said if that fails."""
    try:
        with torch.device("meta"):
            config.build()
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:
        return next(iter(str(error).splitlines()), type(error).__name__)
    return None


def _nearest_widths(config: EdmLayout) -> tuple[int | None, int | None]:
    """The next smaller and the next larger multiple of 4 that works as `model_channels`."""
    start = config.model_channels // 4 * 4
    below = range(start if start < config.model_channels else start - 4, 3, -4)[:16]
    above = range(start + 4, start + ALWAYS_WORKS + 1, 4)

    def first(widths: range) -> int | None:
        return next((width for width in widths if _trial(_shape_of(config, width)) is None), None)

    return first(below), first(above)
