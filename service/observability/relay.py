"""What libraries print to standard output or error, line by line, for a log of one form.

ONNX Runtime, OpenVINO and gRPC write to the file descriptors themselves and know no form but their
own. So the descriptor becomes a pipe, and a thread hands on what comes out of it. The price: what
a process says that dies in native code at that moment stays in the pipe; and native code that keeps
the interpreter to itself while it writes more than the pipe holds waits for this thread, which
waits for the interpreter. So the pipe is as large as Linux lets anybody make one.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable
from threading import Thread

_LONGEST = 1 << 16  # bytes of one line; what is longer is cut
_ROOM = 1 << 20  # bytes of the pipe
_LAST_SECONDS = 1.0  # for the pipe's end, which a child process may hold open


class Relay:
    """The pipe and the thread of one descriptor.

    Args:
        descriptor: whose lines are wanted.
        on_line: called with each of them, in the thread.

    Attributes:
        original: where the descriptor led, and leads again after `close`.
    """

    def __init__(self, descriptor: int, on_line: Callable[[str], None]) -> None:
        self.original = os.dup(descriptor)
        self._descriptor, self._on_line = descriptor, on_line
        self._thread = Thread(target=self._run, name=f"relay-{descriptor}", daemon=True)

    def start(self) -> None:
        """From now on hand on what is written to the descriptor."""
        self._pipe, writer = os.pipe()
        if hasattr(fcntl, "F_SETPIPE_SZ"):  # Linux
            with contextlib.suppress(OSError):  # this user's pipes hold too much already: 64 KiB
                fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _ROOM)
        os.dup2(writer, self._descriptor)
        os.close(writer)
        self._thread.start()

    def close(self) -> None:
        """Have the descriptor lead to where it led, once the last lines are handed on."""
        os.dup2(self.original, self._descriptor)
        self._thread.join(_LAST_SECONDS)

    def _run(self) -> None:
        rest = b""
        while data := os.read(self._pipe, _LONGEST):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) >= _LONGEST:
                lines, rest = [*lines, rest], b""
            self._hand_on(lines)
        self._hand_on([rest])
        os.close(self._pipe)

    def _hand_on(self, lines: list[bytes]) -> None:
        for line in lines:
            if text := line.decode("utf-8", "backslashreplace").strip():
                self._on_line(text)
