"""Text files that people write: UTF-8, or with a byte-order mark UTF-16 or UTF-32 as well."""

import codecs

# The marks of UTF-32 come first, for that of its little-endian form begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class TextError(ValueError):
    """Bytes that are no text; the message says what is wrong, not of which file."""


def decode_text(data: bytes) -> str:
    """Decode a text file's bytes, without its byte-order mark and with plain line ends.

    Editors and shells on Windows write such marks, and PowerShell writes UTF-16.

    Raises:
        TextError: the bytes are in another encoding; the message says where and what to do.
    """
    mark, encoding = next(
        ((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", "utf-8")
    )
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count("\n".encode(encoding)) + 1
        raise TextError(
            f"not {encoding[:6].rstrip('-').upper()} text "
            f"(byte 0x{error.object[error.start]:02x} in line {line}): save it as UTF-8"
        ) from None
    if "\0" in text:  # UTF-16 without a mark looks like that, and so does most of what is no text
        line = text[: text.index("\0")].count("\n") + 1
        raise TextError(f"not UTF-8 text (byte 0x00 in line {line}): save it as UTF-8")
    # A second mark comes from joining two files.
    return text.replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n")
