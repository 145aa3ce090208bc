"""One training a folder: a lock that ends with its process."""

import errno
import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distill.errors import UserError

# What flock answers where another holds the lock, and on file systems that know no locks: NFS
# without its lock daemon, some of FUSE, Lustre without -o flock.
_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the lock dies with the process, however it ends.

    Raises:
        UserError: another process holds it, or it cannot be locked.
    """
    with (folder / ".lock").open("a") as file:  # "a": a refused run changes no file's time
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                raise UserError(
                    f"another process trains in {folder}: wait for it or stop it, or name another "
                    "folder with --out"
                ) from None
            if error.errno not in _NO_LOCKS:
                raise UserError(f"{file.name} cannot be locked: {error.strerror}") from None
            print(
                f"note: the file system of {folder} has no locks ({error.strerror}): see to it "
                "yourself that no other process trains there",
                file=sys.stderr,
            )
        yield
