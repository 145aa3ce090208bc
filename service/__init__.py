"""The online half: requests in, pictures out (FastAPI, no torch)."""
