"""A graph is exported once for all tests: tracing a network takes seconds, copying a file none."""

import hashlib
import inspect
import json
import os
import shutil

import pytest

from distill.export.onnx import export_onnx
from service.bundle import write_atomically


@pytest.fixture(scope="session")
def export_once(tmp_path_factory):
    """`export_onnx`, which writes the same bytes for the same network and form wherever it is.

    So what one test has exported is copied for the next, in every process of pytest-xdist.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def export(*args, **options):
        call = inspect.signature(export_onnx).bind(*args, **options)
        call.apply_defaults()
        form = dict(call.arguments)
        network, path = form.pop("generator"), form.pop("path")
        digest = hashlib.sha256(json.dumps(form).encode())
        digest.update(network.config.model_dump_json().encode())
        for name, tensor in network.state_dict().items():
            digest.update(name.encode() + tensor.numpy().tobytes())
        kept = folder / f"{digest.hexdigest()}.onnx"
        if not kept.is_file():
            write_atomically(kept, lambda file: export_onnx(network, path=file, **form))
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kept, path)

    return export


@pytest.fixture(autouse=True, scope="module")
def publish_copies_graphs(export_once):
    """What `publish` has exported before is copied."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.export.publish.export_onnx", export_once)
        yield
