"""Log lines: one form for our own and for the libraries', on standard error.

Our own go straight from structlog to the file descriptor, because the standard library's logging
costs several times what they do; the libraries' lines, which are few, join them at the end. No
value can forge a line or reach the terminal as a command: control characters are escaped.

In a process that serves, nobody waits for the reader of a line, and what is printed, warned of or
raised in a thread is a line too; where the form is JSON, so is all that libraries write to standard
output and error (`unblocked`).
"""

import contextlib
import io
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal

import orjson
import structlog

from service.observability.log_writer import LineWriter
from service.observability.relay import Relay
from service.observability.uncaught import uncaught_logged

LogFormat = Literal["human", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
Fields = MutableMapping[str, Any]
Renderer = Callable[[Any, str, Fields], bytes]

_STDOUT, _STDERR = 1, 2
_LAST_SECONDS = 2.0  # for the last lines to get out when the process ends
_PLAIN = re.compile(r"[!#-&(-<>-~]+").fullmatch  # visible ASCII but for quotes and the equals sign
_COLOURS = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "1;31"}

_writers: dict[int, LineWriter] = {}  # of each descriptor, where nobody may wait for its reader

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
    global _render
    _render = render = _json if log_format == "json" else _Human(colours=os.isatty(_STDERR))
    level = logging.getLevelNamesMapping()[log_level.upper()]
    logging.basicConfig(level=level, handlers=[_Libraries(render)], force=True)
    structlog.configure(
        processors=[render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Stderr(),
        cache_logger_on_first_use=False,
    )


def is_json() -> bool:
    """Whether every line has to be JSON: what `configure` was told."""
    return _render is _json and structlog.is_configured()


@contextmanager
def unblocked() -> Iterator[None]:
    """Have nobody wait for the reader of what is logged or printed meanwhile.

    For a process that serves. Warnings and what threads raise become log lines, and where those
    are JSON, whatever is printed does too. At the end the last lines get two seconds.
    """
    streams = sys.stdout, sys.stderr
    relays = [Relay(*item) for item in _PRINTED.items()] if is_json() else []
    places = [relay.original for relay in relays] or [_STDOUT, _STDERR]
    writers = {
        descriptor: LineWriter(place)
        for descriptor, place in zip((_STDOUT, _STDERR), places, strict=True)
    }
    writers[_STDERR].notice = _report_dropped
    _writers.update(writers)
    if not relays:
        sys.stdout, sys.stderr = (_Stream(*item) for item in writers.items())
    for relay in relays:
        relay.start()
    try:
        with uncaught_logged():
            yield
    finally:
        for stream in streams:
            with contextlib.suppress(OSError, ValueError):  # its reader left; it is closed
                stream.flush()
        for relay in relays:
            relay.close()
        until = time.monotonic() + _LAST_SECONDS
        flushed = [writer.flush(until - time.monotonic()) for writer in writers.values()]
        if all(flushed):  # else its reader stalls: the last words shall not wait for it either
            sys.stdout, sys.stderr = streams
            _writers.clear()


def dropped() -> int:
    """How many lines were dropped: their reader does not keep up, or there is no place."""
    return sum(writer.dropped for writer in _writers.values())


def _hand_on_printed(line: str) -> None:
    _writers[_STDOUT].write(_json(None, "info", {"event": line, "logger": "stdout"}))


def _hand_on_errors(line: str) -> None:
    _writers[_STDERR].write(_json(None, "warning", {"event": line, "logger": "stderr"}))


_PRINTED = {_STDOUT: _hand_on_printed, _STDERR: _hand_on_errors}


class _Stream(io.TextIOBase):
    """Standard output or standard error as Python's text stream."""

    def __init__(self, descriptor: int, writer: LineWriter) -> None:
        self._descriptor, self._writer = descriptor, writer

    def write(self, text: str) -> int:
        """Write text."""
        self._writer.write(text.encode("utf-8", "backslashreplace"))
        return len(text)

    def writable(self) -> bool:
        """Whether it can be written to."""
        return True

    def fileno(self) -> int:
        """The descriptor, for those who ask where this goes."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether a person reads it."""
        return os.isatty(self._descriptor)


def _report_dropped(lines: int) -> bytes:
    event = "log lines were dropped, for nobody read them or there was no place"
    return _render(None, "warning", {"event": event, "lines": lines})


class _Stderr:
    """The end of every line: one system call, so that lines of several threads do not mix."""

    def write(self, line: bytes) -> None:
        """Write a line; a full disk or a closed pipe must not fail the request that is logged."""
        if (writer := _writers.get(_STDERR)) is not None:
            writer.write(line)
        else:
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


_render: Renderer = _json  # what `configure` chose


def _escape(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _now() -> str:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{_to_the_second(seconds)}.{nanoseconds // 1000:06d}Z"


@lru_cache(maxsize=1)
def _to_the_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
