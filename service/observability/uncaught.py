"""Warnings, and exceptions that nobody catches, as log lines instead of Python's own text."""

import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def uncaught_logged() -> Iterator[None]:
    """Log warnings, and what is raised where nobody can catch it, until the end of the context."""

    def warn(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,  # noqa: ARG001
        line: str | None = None,  # noqa: ARG001
    ) -> None:
        place = f"{filename}:{lineno}"
        logging.getLogger("py.warnings").warning("%s: %s (%s)", category.__name__, message, place)

    def thread_failed(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is not SystemExit:
            error = args.exc_value or args.exc_type()
            name = args.thread.name if args.thread is not None else "?"
            logging.getLogger("threading").error("the thread %s failed", name, exc_info=error)

    def ignored(args: "sys.UnraisableHookArgs") -> None:
        error = args.exc_value or args.exc_type()
        logging.getLogger("python").error(
            "%s: %r", args.err_msg or "Exception ignored in", args.object, exc_info=error
        )

    hooks = warnings.showwarning, threading.excepthook, sys.unraisablehook
    warnings.showwarning, threading.excepthook, sys.unraisablehook = warn, thread_failed, ignored
    try:
        yield
    finally:
        warnings.showwarning, threading.excepthook, sys.unraisablehook = hooks
