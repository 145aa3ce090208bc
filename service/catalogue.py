"""The models of one server: opened together, found by name, closed together."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from service.bundle import Bundle, list_bundles, load_bundle
from service.engines import Engine, EngineError
from service.engines.onnx import OnnxEngine
from service.generation import Model
from service.settings import Settings
from service.telemetry import ModelMetrics, Telemetry


class UnknownModelError(LookupError):
    """No model of that name is served; the message names those that are."""


class ModelRequiredError(ValueError):
    """Several models are served and the request names none; the message names them."""


def pick(names: Iterable[str], wanted: str | None) -> str:
    """Return the model that a request means: the named one, or the only one.

    Raises:
        UnknownModelError: there is no model `wanted`.
        ModelRequiredError: `wanted` is None and there are several models.
    """
    names = sorted(names)
    if wanted is None:
        if len(names) != 1:
            raise ModelRequiredError(f"say which model: {', '.join(names)}")
        return names[0]
    if wanted not in names:
        raise UnknownModelError(f"no model is named {wanted!r}: there is {', '.join(names)}")
    return wanted


def load_bundles(models: Path) -> list[Bundle]:
    """Load and verify every bundle in a folder; raises BundleError for the first that fails."""
    return [load_bundle(folder) for folder in list_bundles(models)]


class Catalogue:
    """The open models of one server, and whether they are ready."""

    def __init__(self, models: Sequence[Model]) -> None:
        self.models = {model.name: model for model in models}
        self.draining = False
        self._check: asyncio.Task[dict[str, str]] | None = None

    def resolve(self, name: str | None) -> Model:
        """The model of that name, or the only one; raises like `pick`.

        `name:version:digest`, as X-Model reports it, is that very bundle or none.
        """
        wanted, _, pinned = (name or "").partition(":")
        model = self.models[pick(self.models, wanted if name is not None else None)]
        if pinned and name != model.bundle.tag:
            raise UnknownModelError(f"{name} is not served: {wanted} is {model.bundle.tag} now")
        return model

    async def failures(self) -> dict[str, str]:
        """Have every model draw its canary image; return those that fail, and why.

        Probes that arrive together share one check, so that probing cannot pile up work.
        """
        if self._check is None or self._check.done():
            self._check = asyncio.create_task(self._check_all())
        return await asyncio.shield(self._check)

    async def give_up(self) -> None:
        """End all work that is still accepted, unfinished, with ClosedError."""
        await asyncio.gather(*(model.give_up() for model in self.models.values()))

    async def _check_all(self) -> dict[str, str]:
        reasons = await asyncio.gather(*map(self._reason, self.models.values()))
        return {name: why for name, why in zip(self.models, reasons, strict=True) if why}

    async def _reason(self, model: Model) -> str | None:
        try:
            await model.supervisor.check()
        except EngineError as error:
            return str(error)
        return None


def make_engine(bundle: Bundle, settings: Settings) -> Engine:
    """The engine that the settings ask for, not yet open.

    Raises:
        EngineError: what it needs is not installed.
    """
    if not settings.triton_addresses:
        return OnnxEngine(bundle, threads=settings.threads, concurrency=settings.batches_at_a_time)
    try:
        from service.engines.triton import TritonEngine  # here: half a second, for its users only
    except ImportError as error:
        raise EngineError(
            f"SID_TRITON needs the extra `triton`, pip install 'sid-serve[triton]': {error}"
        ) from error
    return TritonEngine(
        bundle,
        addresses=settings.triton_addresses,
        max_batch_size=settings.max_batch_size,
        concurrency=settings.batches_at_a_time,
    )


@asynccontextmanager
async def open_catalogue(
    bundles: Sequence[Bundle], settings: Settings, telemetry: Telemetry
) -> AsyncIterator[Catalogue]:
    """Open every bundle's engine, draw each canary once (which warms it up), close all at the end.

    A failing canary does not stop the server: it is logged, and readiness stays red.

    Raises:
        EngineError: a graph cannot be loaded or breaks the bundle's contract.
    """
    models = []
    async with AsyncExitStack() as stack:
        for bundle in bundles:
            model = Model(
                bundle,
                make_engine(bundle, settings),
                max_batch_size=settings.max_batch_size,
                queue_size=settings.queue_size,
                engine_seconds=settings.engine_seconds,
                metrics=ModelMetrics(telemetry, bundle.manifest.name),
            )
            stack.push_async_callback(model.close, settings.grace_seconds)
            await model.open()
            models.append(model)
        yield Catalogue(models)
