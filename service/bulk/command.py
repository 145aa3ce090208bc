"""What `sid generate` does: one image or many, in this process or by a server."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from service.bulk import one, run
from service.bulk.embedded import open_embedded
from service.bulk.errors import BulkError
from service.bulk.plan import parse_inputs, parse_seeds
from service.bulk.run import StoppedError
from service.bulk.server import open_server
from service.settings import Settings

__all__ = ["StoppedError", "generate"]

_IMAGE = Path("picture.png")
_FORMS = ("png", "webp", "jpeg")
_PRIORITY = "bulk"  # of many images, so that they do not hold up people who wait for theirs


def generate(
    place: Settings | str,
    *,
    key: str | None,
    model: str | None,
    class_label: str | None,
    seed: int | None,
    seeds: str | None,
    inputs: Sequence[str],
    form: str | None,
    output: Path | None,
    priority: str | None,
) -> None:
    """Draw what the options ask for.

    Args:
        place: a server's address, or the settings of this process.
        key: the server's API key.
        model: its name; None: the default.
        class_label: index or name, for many images `all` too; None: by seed.
        seed: of one image; None: random.
        seeds: of many images; None: draw one.
        inputs: labels and vectors of the model, as `parse_inputs` reads them.
        form: of many images: png, webp or jpeg; None: png.
        output: where to.
        priority: of the requests to a server; None: `bulk` of many, of one as the server has it.

    Raises:
        BulkError: options contradict each other, or the images cannot be written.
        StoppedError: the user stopped a bulk run.
        ClientError, EngineError and others: they cannot be drawn.
    """
    named = parse_inputs(inputs)
    if priority is not None and not isinstance(place, str):
        raise BulkError("--priority is for a server (--url): in this process nobody else draws")
    if seeds is None:
        if form is not None:
            raise BulkError("--form goes with --seeds: one image's form is its name's suffix")
        one.run(place, key, model, class_label, seed, named, output or _IMAGE, priority)
        return
    if seed is not None:
        raise BulkError("--seed draws one image and --seeds many: leave one of the two out")
    if output is None or output.suffix.lower() in one.FORMS:
        raise BulkError("--seeds draws many images: say where to with -o, a folder or a .zip")
    if form not in (None, *_FORMS):
        raise BulkError(f"--form is {', '.join(_FORMS)}, not {form}")
    parts = parse_seeds(seeds)
    asyncio.run(
        _bulk(
            place,
            key,
            model,
            class_label,
            parts,
            named,
            form or "png",
            output,
            priority or _PRIORITY,
        )
    )


async def _bulk(
    place: Settings | str,
    key: str | None,
    model: str | None,
    class_label: str | None,
    seeds: tuple[range, ...],
    inputs: Mapping[str, Any],
    form: str,
    output: Path,
    priority: str,
) -> None:
    source = (
        open_server(place, key, model, form, inputs, priority)
        if isinstance(place, str)
        else open_embedded(place, model, form, inputs)
    )
    async with source as drawing:
        await run.run(drawing, seeds, class_label, form, output)
