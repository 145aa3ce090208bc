"""A client of SiD Serve, for programs: `Client`, and `AsyncClient` for those on an event loop.

    from service.client import Client

    with Client("http://127.0.0.1:8000") as sid:
        sid.generate(class_label="Dress", seed=7).save("dress.png")

It needs httpx, and nothing of the server is loaded.
"""

from service.client.asynchronous import AsyncClient
from service.client.errors import AnswerError, ClientError, UnreachableError
from service.client.messages import ClassLabel, Form, Inputs, ModelCard, Picture
from service.client.synchronous import Client

__all__ = [
    "AnswerError",
    "AsyncClient",
    "ClassLabel",
    "Client",
    "ClientError",
    "Form",
    "Inputs",
    "ModelCard",
    "Picture",
    "UnreachableError",
]
