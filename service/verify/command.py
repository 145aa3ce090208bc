"""What `sid verify` does: read a file, draw its image again, compare."""

import asyncio
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from service.bundle import first_error
from service.serving.provenance import Provenance, parse
from service.settings import Settings
from service.verify.comparison import Verdict, compare
from service.verify.png_file import PngFile, read_png_file
from service.verify.redraw import NotDrawableError, NotHereError, redraw_here, redraw_there

_LONGEST_REASON = 200  # characters of what is wrong with a text that anybody may have written


class Report(NamedTuple):
    """What came of it, and the line that says so."""

    verdict: Verdict
    line: str


def verify(place: Settings | str, key: str | None, path: Path) -> Report:
    """Say what drew an image, by its own words, and whether that is so.

    Args:
        place: a server's address, or the settings of this process.
        key: the server's API key.
        path: the file.

    Raises:
        PngError: it is no PNG file that can be read.
        BundleError, EngineError, ClientError and others: it cannot be drawn again.
    """
    file = read_png_file(path)
    if not file.provenance:
        return Report(
            Verdict.NO_PROVENANCE,
            f"{path}: no provenance: the file does not say what drew it (SID_PROVENANCE=off, or "
            "saved anew by a program that keeps no texts)",
        )
    try:
        wanted = _provenance(file)
        redrawing = (
            redraw_there(place, key, wanted)
            if isinstance(place, str)
            else redraw_here(place, wanted)
        )
        drawn = asyncio.run(redrawing)
    except (_NotOursError, NotDrawableError) as error:
        reason = _plain(str(error))
        return Report(Verdict.NOT_OURS, f"{path}: not ours: its text sid-provenance: {reason}")
    except NotHereError as error:
        line = f"{path}: not here: it says {_words(wanted)}, and {error}"
        return Report(Verdict.NOT_HERE, line)
    verdict, reason = compare(file.rgba(), drawn.rgba, (wanted.graph, drawn.tag.rpartition(":")[2]))
    if file.depth > 8:
        verdict, reason = Verdict.ALTERED, f"it has {file.depth} bits per value, and models draw 8"
    elif file.changing:
        kinds = ", ".join(file.changing)
        verdict, reason = Verdict.ALTERED, f"it holds {kinds}, by which it may be shown otherwise"
    words = _words(wanted, drawn.class_name)
    return Report(verdict, f"{path}: {verdict.name.lower()}: {words}; {reason} ({drawn.by})")


class _NotOursError(Exception):
    """The text is none that we write."""


def _provenance(file: PngFile) -> Provenance:
    (kind, text), *more = file.provenance
    if more or kind != "tEXt":
        raise _NotOursError("it stands there twice" if more else f"it is a chunk {kind}, not tEXt")
    try:
        return parse(text)
    except ValidationError as error:
        raise _NotOursError(str(first_error(error))) from error


def _words(wanted: Provenance, class_name: str | None = None) -> str:
    """What the file says, in words."""
    parts = [f"model {wanted.model}"]
    if wanted.class_label is not None:
        shown = f"class {wanted.class_label}"
        parts.append(f"{class_name} ({shown})" if class_name else shown)
    parts.append(f"seed {wanted.seed}")
    if wanted.toward is not None:
        parts.append(f"toward {wanted.toward}, mix {wanted.mix:g}")
    parts += [f"{name} {value}" for name, value in wanted.inputs.items()]
    return ", ".join(parts)


def _plain(text: str) -> str:
    """One line without control characters, which would reach the terminal."""
    return "".join(one if one.isprintable() else "?" for one in text)[:_LONGEST_REASON]
