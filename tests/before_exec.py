"""Commands whose process does something of its own before it becomes the program.

Popen's preexec_fn forks the tests' process, threads and all: where gRPC runs in it, its copy in the
child aborts about once in a thousand times.
"""

import sys


def before_exec(statements: str, *command: object) -> list[str]:
    """A command that runs these lines of Python, and then becomes `command` in the same process."""
    code = f"""
import fcntl, os, resource, signal, sys, termios
for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and exec keeps that
    signal.signal(number, signal.SIG_DFL)
{statements}
os.execvp(sys.argv[1], sys.argv[1:])
"""
    return [sys.executable, "-c", code, *map(str, command)]


TAKE_TERMINAL = "fcntl.ioctl(0, termios.TIOCSCTTY, 0)"  # of a session that has none
