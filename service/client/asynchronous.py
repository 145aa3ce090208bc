"""The client for programs on an event loop; the one that waits is made of it."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from itertools import islice
from types import TracebackType
from typing import Any, Self

import httpx

from .errors import ClientError
from .messages import (
    ClassLabel,
    Form,
    GeneratedImage,
    Inputs,
    ModelCard,
    Priority,
    check_url,
    headers_for,
    proxy_for,
    read_error,
    read_image,
    read_images,
    read_models,
    unreachable,
)
from .retries import Attempts


class AsyncClient:
    """Asks one server for images; use it in `async with`, or `await close()` it.

    Args:
        url: the server's address, http://host:port. A proxy that the environment names (HTTP_PROXY)
            is used, but not for addresses of this machine.
        key: API key, for a server that wants one.
        timeout: seconds that a connection or an answer may take.
        patience: seconds for which a request is tried again that was refused for now (429, 503)
            or found nobody listening; 0: not at all. What is wrong with a request is raised at
            once.
        priority: of all its requests; None: as the server has it, which is interactive or what
            the key has at most. A program that does work of both kinds has two clients.

    Every method raises AnswerError for what the server refuses and UnreachableError where none
    answers; both are ClientError.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout: float = 30.0,
        patience: float = 30.0,
        priority: Priority | None = None,
    ) -> None:
        self._url = check_url(url)
        self._timeout = timeout
        self._patience = patience
        headers = headers_for(key, priority)
        proxied = proxy_for(self._url) is not None
        try:
            self._http = httpx.AsyncClient(
                base_url=self._url,
                headers=headers,
                timeout=timeout,
                # How many at a time is the caller's choice.
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
                trust_env=proxied,  # httpx would ask a proxy for this machine's addresses too
                verify=httpx.create_ssl_context(),  # which does follow SSL_CERT_FILE
            )
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise ClientError(
                f"the proxy that the environment names is of no use: {error}"
            ) from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def models(self) -> list[ModelCard]:
        """The models that the server has."""
        return read_models(await self._ask("GET", "/models"))

    async def generate(
        self,
        class_label: ClassLabel | None = None,
        seed: int | None = None,
        *,
        model: str | None = None,
        toward: int | None = None,
        mix: float | None = None,
        inputs: Inputs | None = None,
        form: Form = "png",
    ) -> GeneratedImage:
        """Draw one image; the same model, class and seed give the same bytes.

        Args:
            class_label: class index or name; None: the seed modulo the number of classes.
            seed: 0 to 2^64-1; None: a random one, which the image names.
            model: its name; None: the server's default. Or name:version:digest:graph, as an
                image names it, which is this very graph or an error.
            toward: a second seed, to draw a step of the walk there.
            mix: how far along that walk, 0 to 1; None: halfway.
            inputs: labels and vectors of the model by name; None: their defaults.
            form: what file.
        """
        body = {
            "class_label": class_label,
            "seed": seed,
            "model": model,
            "toward": toward,
            "mix": mix,
            "inputs": inputs or None,
        }
        return read_image(await self._draw(body, f"image/{form}"))

    async def batch(
        self,
        seed: int,
        count: int,
        class_label: ClassLabel | None = None,
        *,
        model: str | None = None,
        inputs: Inputs | None = None,
    ) -> list[GeneratedImage]:
        """Draw `count` images in one request, as PNG: their seeds are `seed`, `seed` + 1, ...

        A server bounds how many (64 by default): AnswerError 413 says so.
        """
        body = {
            "class_label": class_label,
            "seed": seed,
            "n": count,
            "model": model,
            "inputs": inputs or None,
        }
        return read_images(await self._draw(body, "application/zip"))

    async def stream(
        self,
        seeds: Iterable[int],
        class_label: ClassLabel | None = None,
        *,
        model: str | None = None,
        inputs: Inputs | None = None,
        form: Form = "png",
        concurrency: int = 8,
    ) -> AsyncGenerator[GeneratedImage]:
        """Draw an image of each seed, and yield them in the order of the seeds.

        At most `concurrency` images are under way or wait to be taken, so `seeds` may be
        endless. Closing the iterator (`aclose`) cancels what is under way, at the server too.
        """
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {concurrency}")
        upcoming = iter(seeds)
        window: deque[asyncio.Task[GeneratedImage]] = deque()
        try:
            while True:
                for seed in islice(upcoming, concurrency - len(window)):
                    drawing = self.generate(
                        class_label, seed, model=model, inputs=inputs, form=form
                    )
                    window.append(asyncio.create_task(drawing))
                if not window:
                    return
                image = await window[0]
                window.popleft()
                yield image
        finally:
            for task in window:
                task.cancel()
            await asyncio.gather(*window, return_exceptions=True)

    async def _draw(self, parameters: dict[str, Any], accept: str) -> httpx.Response:
        body = {name: value for name, value in parameters.items() if value is not None}
        return await self._ask("POST", "/generate", json=body, headers={"Accept": accept})

    async def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request until it succeeds, or is not to be tried again."""
        attempts = Attempts(self._patience)
        while True:
            failure: ClientError
            try:
                response = await self._http.request(method, path, **options)
            except httpx.HTTPError as error:
                failure = unreachable(error, self._url, self._timeout)
            else:
                if response.is_success:
                    return response
                failure = read_error(response)
            await asyncio.sleep(attempts.pause_after(failure))
