"""The work of one image, and its settings: the same code in every server of the comparison.

The servers differ in what stands around this: HTTP, queueing, batching and processes.

Environment:
    COMPARE_PORT: where to listen. Default: 8100.
    COMPARE_THREADS: intra-op threads of each session. Default: every processor.
    COMPARE_SPIN: 1 lets those threads spin while they wait. Default: 0.
    COMPARE_WORKERS: worker processes (replicas), each with a session. Default: 1.
    COMPARE_MAX_BATCH, COMPARE_WINDOW_MS: the limits of dynamic batching. Defaults: 32 and 2.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from service.bundle import check_seed, latents, load_manifest
from service.serving.encoding import encode_png

MODEL = Path(__file__).resolve().parents[2] / "models" / "fashion"
ROUTE = "/generate"

PORT = int(os.environ.get("COMPARE_PORT", "8100"))
THREADS = int(os.environ.get("COMPARE_THREADS", os.cpu_count() or 1))
SPIN = os.environ.get("COMPARE_SPIN", "0") == "1"
WORKERS = int(os.environ.get("COMPARE_WORKERS", "1"))
MAX_BATCH_SIZE = int(os.environ.get("COMPARE_MAX_BATCH", "32"))
WINDOW_SECONDS = float(os.environ.get("COMPARE_WINDOW_MS", "2")) / 1000

Job = tuple[int, int]


def open_session(threads: int = THREADS, spin: bool = SPIN) -> Any:
    """Open the model as service/engines/onnx.py does; only threads and spinning may differ."""
    version = load_manifest(MODEL).version  # publish counts it up, and removes older ones
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    return onnxruntime.InferenceSession(
        MODEL / str(version) / "model.onnx",
        sess_options=options,
        providers=["CPUExecutionProvider"],
    )


class Painter:
    """A session, and what goes before and after it: noise by batch, PNG by image."""

    def __init__(self) -> None:
        self._session = open_session()
        manifest = load_manifest(MODEL)
        self._shape, self._classes = manifest.latent_shape, len(manifest.classes)

    def check(self, body: dict[str, Any]) -> Job:
        """A request's body as (class, seed); raises ValueError."""
        label, seed = body["class_label"], check_seed(body["seed"])
        if not isinstance(label, int) or not 0 <= label < self._classes:
            raise ValueError(f"class_label must be from 0 to {self._classes - 1}, not {label!r}")
        return label, seed

    def paint(self, jobs: Sequence[Job]) -> list[bytes]:
        """Draw one batch."""
        labels, seeds = zip(*jobs, strict=True)
        feeds = {
            "latents": latents(seeds, self._shape),
            "class_labels": np.array(labels, dtype=np.int64),
        }
        (images,) = self._session.run(["images"], feeds)
        return [encode_png(image) for image in images]
