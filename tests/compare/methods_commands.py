"""Commands of sid-distill in processes of their own, until a deadline: for methods.py."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
# By the modules, for a machine to which a checkout was carried has no installed command.
SID_DISTILL = [sys.executable, "-c", "from distill.cli import main; main()"]
STOPPED = 130  # what sid-distill exits with when a training was stopped and kept its state


class StoppedError(Exception):
    """A command did not end as it should; the text is one line."""


class Commands:
    """Runs commands of sid-distill until a deadline, from several threads.

    Args:
        minutes: after which none is begun, and those that run are asked to stop; None: never.
    """

    def __init__(self, minutes: float | None) -> None:
        self.deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
        self.printing = threading.Lock()

    def run(self, words: Sequence[str | Path], log: Path) -> str:
        """Run one to its end; its stderr goes to `log`. Return what it printed.

        Raises:
            StoppedError: it failed, or the time was up.
        """
        command = [str(word) for word in words]
        if time.monotonic() >= self.deadline:
            raise StoppedError("the time was up before it began: the same command goes on")
        self.say(f"sid-distill {shlex.join(command)}")
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        with log.open("ab") as errors:
            process = subprocess.Popen(
                [*SID_DISTILL, *command],
                stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
            )  # fmt: skip
            timer = None
            if self.deadline < float("inf"):
                timer = threading.Timer(
                    self.deadline - time.monotonic(), process.send_signal, [signal.SIGTERM]
                )
                timer.start()
            printed = process.communicate()[0]
            if timer is not None:
                timer.cancel()
        if process.returncode == 0:
            return printed
        if process.returncode == STOPPED or time.monotonic() >= self.deadline:
            raise StoppedError("it was stopped: the same command goes on")
        said = log.read_text(errors="replace").strip().splitlines() or ["no message"]
        raise StoppedError(f"exit status {process.returncode}: {said[-1]}")

    def say(self, line: str) -> None:
        """Print a line, whole, also from several threads."""
        with self.printing:
            print(line, file=sys.stderr, flush=True)
