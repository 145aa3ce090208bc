"""A client of SiD Serve, for programs: `Client`, and `AsyncClient` for those on an event loop.

    from sid_client import Client

    with Client("http://127.0.0.1:8000") as sid:
        sid.generate(class_label="Dress", seed=7).save("dress.png")

It needs httpx and nothing of the server. A server offers it for programs at `/client`, as a wheel
that installs it as `sid_client` (wheel_file.py); within the server it is service.client.
"""

import warnings

from .asynchronous import AsyncClient
from .errors import AnswerError, ClientError, UnreachableError
from .messages import ClassLabel, Form, GeneratedImage, Inputs, ModelCard, Priority
from .synchronous import Client

__all__ = [
    "AnswerError",
    "AsyncClient",
    "ClassLabel",
    "Client",
    "ClientError",
    "Form",
    "GeneratedImage",
    "Inputs",
    "ModelCard",
    "Priority",
    "UnreachableError",
]


def __getattr__(name: str) -> type[GeneratedImage]:
    """Picture, which GeneratedImage was called before, is there for one more release."""
    if name == "Picture":
        message = (
            "sid_client.Picture is called GeneratedImage now, and leaves with the next release"
        )
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return GeneratedImage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
