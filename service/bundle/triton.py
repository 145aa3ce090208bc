"""Which graph of a bundle Triton serves: the one that its config.pbtxt names."""

import re
from pathlib import Path

from service.bundle.graphs import BASELINE, PLAN
from service.bundle.manifest import Manifest

CONFIG_NAME = "config.pbtxt"
_NAMED = re.compile(r'^\s*default_model_filename\s*:\s*"([^"]+)"', re.MULTILINE)


def triton_graph(folder: Path, manifest: Manifest) -> str:
    """The file name, within a version's folder, of the graph that Triton serves.

    Args:
        folder: the bundle's.
        manifest: its manifest, for configurations that name no graph: there it is the one that
            every engine reads, or the plan of a bundle that holds nothing else.
    """
    try:
        text = (folder / CONFIG_NAME).read_text(encoding="utf-8", errors="replace")
    except OSError:  # such a bundle can be served by an embedded engine
        text = ""
    if named := _NAMED.search(text):
        return named[1]
    return BASELINE if f"{manifest.version}/{BASELINE}" in manifest.files else PLAN
