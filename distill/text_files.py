"""Reading text files that people write: recipes, class names, frequencies."""

from pathlib import Path

from distill.errors import UserError
from service.bundle.text import TextError, decode_text


def named_file(text: str) -> Path | None:
    """The file of that name, for options that take a file or the text itself; None for none."""
    try:
        return Path(text) if Path(text).is_file() else None
    except (OSError, ValueError):  # too long for a file's name: a list of a thousand numbers
        return None


def read_text(path: Path) -> str:
    """The text of a file, without a byte-order mark.

    Raises:
        UserError: it is in another encoding than UTF-8 (or UTF-16 with a mark).
    """
    try:
        return decode_text(path.read_bytes())
    except TextError as error:
        raise UserError(f"{path}: {error}") from None
