"""The online half: requests in, images out (FastAPI, no torch)."""

import os

# ONNX Runtime's official builds report on their use to Microsoft unless this says no before they
# are loaded (Privacy.md in its package).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
