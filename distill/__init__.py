"""The offline half: from a diffusion teacher to a one-step generator (PyTorch)."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # see service/__init__.py
