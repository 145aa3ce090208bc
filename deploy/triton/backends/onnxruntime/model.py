"""Stands in for Triton's onnxruntime backend where only its Python backend is at hand.

Triton takes a model.py in a backend's folder for the backend itself (a Python-based backend), so
a repository whose configurations say `backend: "onnxruntime"` is served as it is. Only the
computation is replaced: batching, queues, cancellation, warm-up, metrics and the front ends are
Triton's own. The images of NVIDIA have the real backend, and this file has no place in them.
"""

import json
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    """One instance of a model, in a process of its own."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Leave the configuration as it is written."""
        return config

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph of the version that Triton loads, with the configured threads."""
        config = json.loads(args["model_config"])
        parameters = config["parameters"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters["intra_op_thread_count"]["string_value"])
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # an error comes as an exception too
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        graph = config["default_model_filename"] or "model.onnx"
        path = Path(args["model_repository"]) / args["model_version"] / graph
        self._session = onnxruntime.InferenceSession(
            path, sess_options=options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [node.name for node in self._session.get_inputs()]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Compute the requests that Triton's batcher has put together, in one run."""
        wanted = [not request.is_cancelled() for request in requests]
        images = iter(self._compute(list(compress(requests, wanted))))
        return [_answer(next(images)) if is_wanted else _cancelled() for is_wanted in wanted]

    def _compute(self, requests: list[Any]) -> list[Any]:
        if not requests:
            return []
        rows = {name: [_rows(request, name) for request in requests] for name in self._inputs}
        feeds = {name: np.concatenate(arrays) for name, arrays in rows.items()}
        (images,) = self._session.run(["images"], feeds)
        sizes = [len(array) for array in rows[self._inputs[0]]]
        return np.split(images, np.cumsum(sizes)[:-1])


# Arrays cross by DLPack: the server's own conversions are built against numpy 1, and under
# numpy 2 they give empty outputs and inputs of one repeated value.


def _rows(request: Any, name: str) -> Any:
    return np.from_dlpack(triton.get_input_tensor_by_name(request, name))


def _answer(images: Any) -> Any:
    return triton.InferenceResponse([triton.Tensor.from_dlpack("images", images)])


def _cancelled() -> Any:
    return triton.InferenceResponse(
        error=triton.TritonError("cancelled", triton.TritonError.CANCELLED)
    )
