"""Released EDM and SiD pickles, read without running anything in them.

The original reader executes Python source that lies in the file. This one reads the file as data
and takes from it numbers, names and shapes, each checked (docs/design.md).
"""

from pathlib import Path

from distill.importing.snapshot import Snapshot, read_snapshot
from distill.networks import Denoiser

__all__ = ["Snapshot", "load_network", "read_snapshot"]


def load_network(path: Path | str) -> Denoiser:
    """Read the network of a released pickle, in eval mode, on the CPU.

    Raises:
        UserError: it is no such file, damaged, hostile, or of a network that is not supported.
    """
    return read_snapshot(Path(path)).network
