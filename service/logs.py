"""Log lines: one form for our own and for the libraries', on standard error.

Our own go straight from structlog to the file descriptor, because the standard library's logging
costs several times what they do; the libraries' lines, which are few, join them at the end. No
value can forge a line or reach the terminal as a command: control characters are escaped.
"""

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, MutableMapping
from functools import lru_cache
from typing import Any, Literal

import orjson
import structlog

LogFormat = Literal["human", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
Fields = MutableMapping[str, Any]
Renderer = Callable[[Any, str, Fields], bytes]

_STDERR = 2
_PLAIN = re.compile(r"[!#-&(-<>-~]+").fullmatch  # visible ASCII but for quotes and the equals sign
_COLOURS = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "1;31"}

_exception_text = structlog.processors.format_exc_info
# Without local variables, which rich tracebacks show: they hold what clients sent, keys included.
_exception_dict = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)


def configure(log_format: LogFormat, log_level: LogLevel = "info") -> None:
    """Send every log line of the process to standard error, for people or for a collector.

    Loggers that are bound afterwards follow; one that is used often should be bound once
    (`structlog.get_logger().bind()`), for a lazy one is made anew for every line.
    """
    render = _json if log_format == "json" else _Human(colours=os.isatty(_STDERR))
    level = logging.getLevelNamesMapping()[log_level.upper()]
    logging.basicConfig(level=level, handlers=[_Libraries(render)], force=True)
    structlog.configure(
        processors=[render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Stderr(),
        cache_logger_on_first_use=False,
    )


class _Stderr:
    """The end of every line: one system call, so that lines of several threads do not mix."""

    def write(self, line: bytes) -> None:
        """Write a line; a full disk or a closed pipe must not fail the request that is logged."""
        with contextlib.suppress(OSError):
            os.write(_STDERR, line)

    debug = info = warning = error = critical = write


class _Libraries(logging.Handler):
    """Gives the lines of the standard library's logging the form of ours."""

    def __init__(self, render: Renderer) -> None:
        super().__init__()
        self._render = render
        self._stderr = _Stderr()

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            fields: Fields = {"event": record.getMessage().strip(), "logger": record.name}
            if record.exc_info:
                fields["exc_info"] = record.exc_info
            self._stderr.write(self._render(None, record.levelname.lower(), fields))
        except Exception:
            self.handleError(record)


def _json(_: Any, level: str, fields: Fields) -> bytes:
    if "exc_info" in fields:
        fields = _exception_dict(None, level, fields)
    line = {"timestamp": _now(), "level": level, "event": fields.pop("event"), **fields}
    try:
        data = orjson.dumps(line, default=repr, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a lone surrogate, a number beyond 64 bits
        data = b"\xff"
    if data.isascii():
        return data
    # orjson leaves everything above ASCII as it is, the terminal's C1 controls included.
    return json.dumps(line, default=repr).encode("ascii") + b"\n"


class _Human:
    """`time level event key=value ...`, then the traceback, indented so that it forges no line."""

    def __init__(self, *, colours: bool) -> None:
        self._levels = {
            level: f"\x1b[{code}m{level:<7}\x1b[0m" if colours else f"{level:<7}"
            for level, code in _COLOURS.items()
        }

    def __call__(self, _: Any, level: str, fields: Fields) -> bytes:
        trace = ""
        if "exc_info" in fields:
            fields = _exception_text(None, level, fields)
            trace = fields.pop("exception", "")
        event = fields.pop("event")
        parts = [_now(), self._levels[level], event if event.isprintable() else _escape(event)]
        for key, value in fields.items():
            text = value if type(value) is str else str(value)
            # repr escapes whatever is not printable: newlines, escapes, marks that turn text.
            parts.append(f"{key}={text if _PLAIN(text) else repr(text)}")
        lines = [" ".join(parts), *(f"    {_escape(line)}" for line in trace.splitlines()), ""]
        return "\n".join(lines).encode()


def _escape(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _now() -> str:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{_to_the_second(seconds)}.{nanoseconds // 1000:06d}Z"


@lru_cache(maxsize=1)
def _to_the_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
