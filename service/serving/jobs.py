"""What is asked of a model, resolved and checked: one job per image; and what comes of it."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from service.bundle import Manifest, Value, check_seed
from service.engines import Images
from service.exceptions import RefusedError
from service.observability.metrics import Timings
from service.observability.tracing import BatchTrace

# Random seeds stay below 2^32: larger ones repeat the same images (see bundle.latents), and
# JavaScript reads whole numbers exactly up to 2^53 only.
_RANDOM_SEED_BITS = 32


@dataclass(frozen=True, slots=True)
class ImageJob:
    """One image to draw, resolved and checked.

    Attributes:
        class_label: class index; None when the model is unconditional.
        seed: 0..2^64-1.
        media_type: how to encode it (see `encoding.encode`).
        toward: the seed at the end of a walk that starts at `seed`; None: no walk.
        mix: how far along that walk, 0 to 1.
        inputs: the value of each label and vector that the model has (`Manifest.extra_inputs`).
    """

    class_label: int | None
    seed: int
    media_type: str
    toward: int | None = None
    mix: float = 0.0
    inputs: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageResult:
    """One image, and everything needed to draw it again.

    Attributes:
        job: what was asked for.
        class_name: the name of its class.
        pixels: uint8 [H, W, C].
        file: the encoded image; empty for the media type PIXELS.
        timings: where its time went.
        batch: the trace of the batch that drew it.
    """

    job: ImageJob
    class_name: str | None
    pixels: Images
    file: bytes
    timings: Timings
    batch: BatchTrace


class WalkError(RefusedError, ValueError):
    """What is asked of a walk between two seeds makes none; the message says why."""

    status, kind = 422, "walk-nowhere"


def resolve_jobs(
    manifest: Manifest,
    class_label: int | str | None,
    seed: int | None,
    n: int,
    media_type: str,
    toward: int | None = None,
    mix: float | None = None,
    inputs: Mapping[str, object] | None = None,
) -> list[ImageJob]:
    """Resolve what is asked of a model: image i has seed + i, and goes toward toward + i.

    Args:
        manifest: the model's.
        class_label: class index or name. None: each image's seed modulo the number of
            classes; or what an unconditional model asks for.
        seed: the first seed; None draws a random one.
        n: how many images.
        media_type: how to encode them.
        toward: the seed to which the first image's walk leads; None: no walk.
        mix: how far along the walk, 0 to 1; None: halfway, if there is one.
        inputs: of the model's labels and vectors those that are named; the others' defaults.

    Raises:
        ClassLabelError, SeedError: the model has no such class, or a seed is out of range.
        InputError: it has no such input, or the input does not take the value.
        WalkError: there is a `mix` and nowhere to go.
    """
    label = None if class_label is None else manifest.resolve_class(class_label)
    first = secrets.randbits(_RANDOM_SEED_BITS) if seed is None else check_seed(seed)
    check_seed(first + n - 1)
    if toward is not None:
        check_seed(toward)
        check_seed(toward + n - 1)
        mix = 0.5 if mix is None else mix
    elif mix is not None:
        raise WalkError("mix says how far to go toward a second seed: say toward as well")
    values = manifest.resolve_inputs(inputs or {})
    return [
        ImageJob(
            (first + i) % len(manifest.classes) if label is None and manifest.classes else label,
            first + i,
            media_type,
            None if toward is None else toward + i,
            mix or 0.0,
            values,
        )
        for i in range(n)
    ]
