"""A blocking client of the application in this process, lifespan included."""

import asyncio
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import httpx
from fastapi import FastAPI

T = TypeVar("T")


class Client:
    """Calls the application on an event loop of its own; `run` runs anything else there."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app

    def __enter__(self) -> "Client":
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        try:
            self.run(self._enter())
        except BaseException:
            self._runner.close()
            raise
        return self

    async def _enter(self) -> None:
        await self._stack.enter_async_context(self.app.router.lifespan_context(self.app))
        # A failing route answers 500 here as under a real server, instead of raising.
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self.http = await self._stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://test")
        )

    def __exit__(self, *_: object) -> None:
        self.run(self._stack.aclose())
        self._runner.close()

    def run(self, awaitable: Awaitable[T]) -> T:
        async def wrapped() -> T:
            return await awaitable

        return self._runner.run(wrapped())

    def get(self, url: str, **options: Any) -> httpx.Response:
        return self.run(self.http.get(url, **options))

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        return self.run(self.http.request(method, url, **options))

    def generate(self, body: Any = None, **headers: str) -> httpx.Response:
        """POST /generate."""
        return self.run(self.http.post("/generate", json=body or {}, headers=headers))
