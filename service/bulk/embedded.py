"""Images drawn in this process, by the engine that `sid serve` would serve them with."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from service.bulk.errors import PostponedError
from service.bulk.plan import Drawn, Piece
from service.bundle import list_bundles, load_bundle
from service.observability.metrics import Metrics
from service.serving.catalogue import Contents, open_catalogue, pick, trusted_keys
from service.serving.default_model import stated_default
from service.serving.exceptions import QueueFullError
from service.serving.jobs import resolve_jobs
from service.serving.served_model import ServedModel
from service.settings import Settings


class EmbeddedSource:
    """Draws pieces by a model of this process. `piece` is how many images make one batch: the
    engine's largest.

    Args:
        model: which is open.
        form: png, webp or jpeg.
        inputs: labels and vectors of the model that all images have.

    Raises:
        InputError: the model does not take them.
    """

    def __init__(self, model: ServedModel, form: str, inputs: Mapping[str, Any]) -> None:
        model.bundle.manifest.resolve_inputs(inputs)
        self.model = model.tag
        self.classes: Sequence[str] = model.bundle.manifest.classes
        self.piece, self.inputs = model.engine.max_batch_size, inputs
        self._model = model
        self._media_type = f"image/{form}"

    @property
    def slots(self) -> int:
        """How many pieces may be under way: as many wait or are written as are computed."""
        return 2 * self._model.pool.concurrency

    async def resolve(self, label: str) -> int | None:
        """The index of a class; raises ClassLabelError for what is none."""
        return self._model.bundle.manifest.resolve_class(label)

    async def draw(self, piece: Piece) -> list[bytes]:
        """The files of a piece.

        Raises:
            PostponedError: the engine has work of others (Triton).
            ComputeError, EngineError: it failed.
        """
        jobs = resolve_jobs(
            self._model.bundle.manifest,
            piece.class_label,
            piece.first,
            piece.count,
            self._media_type,
            inputs=self.inputs,
        )
        try:
            images = await self._model.submit(jobs)
        except QueueFullError as error:
            raise PostponedError(max(0.1, error.retry_after)) from None
        return [image.file for image in images]


@asynccontextmanager
async def open_embedded(
    settings: Settings, name: str | None, form: str, inputs: Mapping[str, Any]
) -> AsyncIterator[EmbeddedSource]:
    """A source for a model of the folder, which is open for as long as the context.

    Raises:
        BundleError, UnknownModelError, ModelRequiredError, EngineError: it cannot be opened.
        DefaultModelError: the default was asked for, and it is not there.
        InputError: the model does not take these inputs.
    """
    # The limit protects a server's clients from each other; here is but one.
    settings = settings.model_copy(update={"queue_size": 2**31})
    async with open_model(settings, name) as model:
        yield EmbeddedSource(model, form, inputs)


async def draw_one(
    settings: Settings,
    name: str | None,
    class_label: str | None,
    seed: int | None,
    form: str,
    inputs: Mapping[str, Any],
) -> Drawn:
    """One image; raises what `open_embedded` raises."""
    async with open_model(settings, name) as model:
        manifest = model.bundle.manifest
        jobs = resolve_jobs(manifest, class_label, seed, 1, f"image/{form}", inputs=inputs)
        (image,) = await model.submit(jobs)
    job = image.job
    return Drawn(image.file, job.seed, job.class_label, image.class_name, model.tag)


@asynccontextmanager
async def open_model(settings: Settings, name: str | None) -> AsyncIterator[ServedModel]:
    """A model of the folder, served for as long as the context; raises what `draw_one` raises.

    Args:
        settings: which folder, and which engine.
        name: which model; None: the default.
    """
    folders = {folder.name: folder for folder in list_bundles(settings.models)}
    default = stated_default(settings, folders) if name is None else None
    bundle = load_bundle(folders[pick(folders, name, default)], trusted_keys(settings))
    async with open_catalogue(Contents([bundle]), settings, Metrics()) as catalogue:
        yield catalogue.resolve(None)
