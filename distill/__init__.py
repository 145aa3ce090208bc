"""The offline half: from a diffusion teacher to a one-step generator (PyTorch)."""
