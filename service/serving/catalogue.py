"""The models of one server: opened together, found by name, closed together."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from service.bundle import Bundle, list_bundles, load_bundle, load_trusted_keys
from service.engines import EngineError
from service.engines.threads import run_aside
from service.exceptions import RefusedError
from service.observability.metrics import Metrics, ModelMetrics
from service.serving.default_model import choose_default, stated_default
from service.serving.engine_selection import make_engines
from service.serving.served_model import ServedModel
from service.settings import Settings

_LINGER_SECONDS = 1.0
_PROBE_SECONDS = 2.0  # that a probe waits for a canary: below what platforms wait for a probe


class UnknownModelError(RefusedError, LookupError):
    """No model of that name is served; the message names those that are."""

    status, kind = 404, "model-not-found"


class ModelRequiredError(RefusedError, ValueError):
    """Several models are served and the request names none; the message names them."""

    status, kind = 422, "model-required"


def pick(names: Iterable[str], wanted: str | None, default: str | None = None) -> str:
    """Return the model that a request means: the named one, or the default, or the only one.

    Raises:
        UnknownModelError: there is no model `wanted`.
        ModelRequiredError: `wanted` is None, and so is `default`, and there are several models.
    """
    names = sorted(names)
    if wanted is None:
        wanted = choose_default(names, default)
    if wanted is None:
        raise ModelRequiredError(
            f"say which model: {', '.join(names)} (SID_DEFAULT_MODEL of the server can name one "
            "for requests that do not)"
        )
    if wanted not in names:
        raise UnknownModelError(f"no model is named {wanted!r}: there is {', '.join(names)}")
    return wanted


@dataclass(frozen=True)
class Contents:
    """What a folder of models holds.

    Attributes:
        bundles: its models, verified.
        default: the name of the one that is stated to be the default; None: nothing is stated.
    """

    bundles: Sequence[Bundle]
    default: str | None = None


def load_contents(settings: Settings) -> Contents:
    """Load and verify every bundle in the folder of models.

    Raises:
        BundleError: the folder holds none, or one of them fails.
        KeyFileError: the trusted keys cannot be read.
        DefaultModelError: the default that is stated is not among them.
    """
    folders = list_bundles(settings.models)
    default = stated_default(settings, [folder.name for folder in folders])
    trusted = trusted_keys(settings)
    return Contents([load_bundle(folder, trusted) for folder in folders], default)


def trusted_keys(settings: Settings) -> frozenset[bytes] | None:
    """The keys of which one has to have signed each bundle; None: they need not be signed.

    Raises:
        KeyFileError: they cannot be read.
    """
    path = settings.trusted_keys
    return None if path is None else load_trusted_keys(path)


class Catalogue:
    """The open models of one server, and whether they are ready.

    Args:
        open_model: opens a bundle's engines; raises EngineError when it cannot be served.
        grace_seconds: how long a model's accepted work may take to finish when it is closed.

    Attributes:
        models: by name.
        default: the name of the model that a request gets which names none; None: it has to.
        draining: whether the server is shutting down.
    """

    def __init__(
        self, open_model: Callable[[Bundle], Awaitable[ServedModel]], grace_seconds: float
    ) -> None:
        self.models: dict[str, ServedModel] = {}
        self.default: str | None = None
        self.draining = False
        self._open_model = open_model
        self._grace_seconds = grace_seconds
        self._check: asyncio.Task[dict[str, str]] | None = None
        self._reloading = asyncio.Lock()
        self._closing: dict[ServedModel, asyncio.Task[None]] = {}

    async def serve(self, contents: Contents) -> None:
        """Open the first models, one by one.

        A failing canary does not stop the server: it is logged, and readiness stays red.

        Raises:
            EngineError: a graph cannot be loaded or breaks the bundle's contract.
        """
        for bundle in contents.bundles:
            model = self.models[bundle.manifest.name] = await self._open_model(bundle)
            model.register()
        self.default = choose_default(self.models, contents.default)

    async def reload(self, load: Callable[[], Contents]) -> list[str]:
        """Go over to the contents that `load` returns without refusing a request: all, or none.

        What is new or has changed is opened beside what is served, and has to draw its canary
        image. Then requests go there, and the models that were replaced finish what they have.

        Returns:
            The tags of what is served now.

        Raises:
            BundleError, DefaultModelError: a bundle cannot be read, or the default is not there.
            KeyFileError: the trusted keys cannot be read.
            EngineError: a new bundle cannot be served, or draws another image than published.
        """
        async with self._reloading:
            contents = await run_aside(load)
            served = {model.bundle.tag: model for model in self.models.values()}
            opened: list[ServedModel] = []
            try:
                for bundle in contents.bundles:
                    if bundle.tag not in served:
                        opened.append(await self._open_model(bundle))
                        opened[-1].pool.require_up()
            except BaseException:  # a cancel too: the server ends
                for model in opened:
                    await model.close(0)
                raise
            after = {model.bundle.tag: model for model in opened} | served
            self.models = {b.manifest.name: after[b.tag] for b in contents.bundles}
            for bundle in contents.bundles:
                after[bundle.tag].bundle = bundle  # of the same bytes, but another may have signed
            self.default = choose_default(self.models, contents.default, self.default)
            for model in opened:
                model.register()
            for model in served.values():
                if model not in self.models.values():
                    model.unregister(replaced=model.name in self.models)
                    self._closing[model] = asyncio.create_task(self._close_later(model))
            return [model.tag for model in self.models.values()]

    async def close(self) -> None:
        """Finish accepted work and free every engine."""
        async with self._reloading:  # which ends what it had begun
            await asyncio.gather(
                *(model.close(self._grace_seconds) for model in self.models.values()),
                *self._closing.values(),
            )

    async def _close_later(self, model: ServedModel) -> None:
        # A request that has found this model may not have queued its images yet.
        await asyncio.sleep(_LINGER_SECONDS)
        try:
            await model.close(self._grace_seconds)
        finally:
            del self._closing[model]

    def resolve(self, name: str | None) -> ServedModel:
        """The model of that name, or the default; raises like `pick`.

        `name:version:digest:graph`, as X-Model reports it, is that very graph or none, and
        `name:version:digest` any graph of that bundle.
        """
        wanted, _, pinned = (name or "").partition(":")
        model = self.models[pick(self.models, wanted if name is not None else None, self.default)]
        if pinned and name not in (model.tag, model.bundle.tag):
            raise UnknownModelError(f"{name} is not served: {wanted} is {model.tag} now")
        return model

    async def failures(self) -> dict[str, str]:
        """Have every model draw its canary image; return those that fail, and why.

        Probes that arrive together share one check, and those that follow at once are content
        with its good end, so that probing neither piles up work nor takes the engine's time.
        Where an image takes seconds no probe waits for it: meanwhile the models fail that are down.
        """
        if self._check is None or self._check.done():
            self._check = asyncio.create_task(self._check_all())
        if (await asyncio.wait([self._check], timeout=_PROBE_SECONDS))[0]:
            return self._check.result()
        down = {name: model.pool.down for name, model in self.models.items()}
        return {name: why for name, why in down.items() if why is not None}

    async def abort(self) -> None:
        """End all work that is still accepted, unfinished, with ClosedError."""
        accepted = [*self.models.values(), *self._closing]
        await asyncio.gather(*(model.abort() for model in accepted))

    async def _check_all(self) -> dict[str, str]:
        models = self.models  # `reload` may put others there meanwhile
        reasons = await asyncio.gather(*map(self._reason, models.values()))
        return {name: why for name, why in zip(models, reasons, strict=True) if why}

    async def _reason(self, model: ServedModel) -> str | None:
        try:
            await model.pool.check(remember=True)
        except EngineError as error:
            return str(error)
        return None


@asynccontextmanager
async def open_catalogue(
    contents: Contents, settings: Settings, metrics: Metrics
) -> AsyncIterator[Catalogue]:
    """Open every bundle's engines, draw each canary (which warms them up), close all at the end.

    Raises:
        EngineError: see `Catalogue.serve`.
    """

    async def open_model(bundle: Bundle) -> ServedModel:
        model = ServedModel(
            bundle,
            await make_engines(bundle, settings),
            queue_size=settings.queue_size,
            engine_seconds=settings.engine_seconds,
            metrics=ModelMetrics(metrics, bundle.manifest.name),
            provenance=settings.provenance,
        )
        try:
            await model.open()
        except BaseException:
            await model.close(0)
            raise
        return model

    catalogue = Catalogue(open_model, settings.grace_seconds)
    try:
        await catalogue.serve(contents)
        yield catalogue
    finally:
        await catalogue.close()
