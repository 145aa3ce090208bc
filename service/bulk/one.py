"""One image, drawn in this process or by a server, to a file."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.bulk import embedded, server
from service.bulk.errors import BulkError
from service.settings import Settings

FORMS = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}
"""What file a name's suffix asks for."""


def run(
    place: Settings | str,
    key: str | None,
    model: str | None,
    class_label: str | None,
    seed: int | None,
    inputs: Mapping[str, Any],
    path: Path,
    priority: str | None,
) -> None:
    """Draw an image, write it and say what it is.

    Args:
        place: a server's address, or the settings of this process.
        key: the server's API key.
        model: its name; None: the default.
        class_label: index or name; None: the seed modulo the number of classes.
        seed: None: a random one.
        inputs: labels and vectors of the model; what is not named has its default.
        path: the file.
        priority: of the request to a server; None: as the server has it.

    Raises:
        BulkError: the file cannot be written, or its name does not say which it should be.
        ClientError, EngineError and others: it cannot be drawn.
    """
    if (form := FORMS.get(path.suffix.lower())) is None:
        raise BulkError(f"{path}: the name must end in {', '.join(FORMS)}")
    if not path.parent.is_dir():
        raise BulkError(f"{path.parent}: there is no such folder")
    drawn = asyncio.run(
        server.draw_one(place, key, model, class_label, seed, form, inputs, priority)
        if isinstance(place, str)
        else embedded.draw_one(place, model, class_label, seed, form, inputs)
    )
    try:
        path.write_bytes(drawn.content)
    except OSError as error:
        raise BulkError(f"{path}: {error.strerror}") from error
    shown = f"{drawn.class_name} (class {drawn.class_label}), " if drawn.class_name else ""
    print(f"{path}: {shown}seed {drawn.seed}, model {drawn.model}")
