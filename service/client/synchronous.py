"""The client for programs that wait for each answer."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator
from threading import Thread
from types import TracebackType
from typing import Any, Self, TypeVar

from .asynchronous import AsyncClient
from .messages import ClassLabel, Form, GeneratedImage, Inputs, ModelCard, Priority

T = TypeVar("T")


class Client:
    """Asks one server for images; use it in `with`, or `close()` it. Threads may share it.

    It is an AsyncClient on an event loop in a thread of its own, and not a second client beside
    it: so both behave alike, a stream goes on while its images are worked with, and closing it
    can cancel requests, which blocking calls in a pool of threads cannot. It works in notebooks
    too, where an event loop runs already.

    Arguments and errors are those of AsyncClient.
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
        self._client = AsyncClient(
            url, key=key, timeout=timeout, patience=patience, priority=priority
        )
        self._loop = asyncio.new_event_loop()
        # A daemon: a client that nobody closed must not keep the program from ending.
        self._thread = Thread(target=self._loop.run_forever, name="sid-client", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is under way and close the connections; a second time does nothing."""
        if self._loop.is_closed():
            return
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def models(self) -> list[ModelCard]:
        """The models that the server has."""
        return self._run(self._client.models())

    def generate(
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
        """Draw one image, as AsyncClient.generate does."""
        drawing = self._client.generate(
            class_label, seed, model=model, toward=toward, mix=mix, inputs=inputs, form=form
        )
        return self._run(drawing)

    def batch(
        self,
        seed: int,
        count: int,
        class_label: ClassLabel | None = None,
        *,
        model: str | None = None,
        inputs: Inputs | None = None,
    ) -> list[GeneratedImage]:
        """Draw several images in one request, as AsyncClient.batch does."""
        return self._run(self._client.batch(seed, count, class_label, model=model, inputs=inputs))

    def stream(
        self,
        seeds: Iterable[int],
        class_label: ClassLabel | None = None,
        *,
        model: str | None = None,
        inputs: Inputs | None = None,
        form: Form = "png",
        concurrency: int = 8,
    ) -> Iterator[GeneratedImage]:
        """Draw an image of each seed, as AsyncClient.stream does.

        Requests go on between two images. Closing the iterator, as leaving a `for` loop early
        does sooner or later, cancels them. Seeds are taken in the client's thread.
        """
        images = self._client.stream(
            seeds,
            class_label,
            model=model,
            inputs=inputs,
            form=form,
            concurrency=concurrency,
        )
        try:
            while (image := self._run(_next(images))) is not None:
                yield image
        finally:
            if not self._loop.is_closed():
                self._run(images.aclose())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work in the client's thread, and wait for it."""
        if self._loop.is_closed():
            work.close()
            raise RuntimeError("this client is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C too: nobody waits for it any more
            future.cancel()
            raise

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()


async def _next(images: AsyncGenerator[GeneratedImage]) -> GeneratedImage | None:
    return await anext(images, None)
