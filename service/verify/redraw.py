"""An image once more, from what its file says: by a model of this machine, or by a server."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from service.bundle import list_bundles, load_bundle
from service.client import AnswerError, AsyncClient
from service.exceptions import RefusedError
from service.observability.metrics import Metrics
from service.serving.catalogue import Contents, open_catalogue, trusted_keys
from service.serving.encoding import PIXELS
from service.serving.jobs import resolve_jobs
from service.serving.provenance import Provenance
from service.settings import Settings
from service.verify.png_file import parse_png

_PATIENCE = 2.0  # seconds for which a server may be away


class NotHereError(Exception):
    """The model that an image names is not to be had; the message says what is."""


class NotDrawableError(Exception):
    """The model is there, and cannot draw what the file says; the message says why."""


class Redrawn(NamedTuple):
    """The image, and what drew it.

    Attributes:
        rgba: uint8 [H, W, 4].
        tag: name:version:digest:graph.
        class_name: of its class; None: it has none.
        by: engine or server, for people.
    """

    rgba: npt.NDArray[np.uint8]
    tag: str
    class_name: str | None
    by: str


async def redraw_here(settings: Settings, wanted: Provenance) -> Redrawn:
    """Draw it with the bundle that the folder of models has, by the engine of the settings.

    Raises:
        NotHereError, NotDrawableError: see there.
        BundleError, EngineError, ComputeError: the model cannot be opened, or does not draw.
    """
    name = wanted.bundle.partition(":")[0]
    folders = {folder.name: folder for folder in list_bundles(settings.models)}
    if name not in folders:
        there = ", ".join(folders)
        raise NotHereError(f"{settings.models} has no model {name}, only {there}")
    bundle = load_bundle(folders[name], trusted_keys(settings))
    if bundle.tag != wanted.bundle:
        raise NotHereError(f"{settings.models} has {bundle.tag}")
    async with open_catalogue(Contents([bundle]), settings, Metrics()) as catalogue:
        model = catalogue.models[name]
        try:
            jobs = resolve_jobs(bundle.manifest, **_arguments(wanted), n=1, media_type=PIXELS)
        except RefusedError as error:
            raise NotDrawableError(str(error)) from error
        (image,) = await model.submit(jobs)
    rgba = np.full((*image.pixels.shape[:2], 4), 255, np.uint8)
    rgba[:, :, :3] = image.pixels
    return Redrawn(rgba, model.tag, image.class_name, f"{model.engine.name} {model.engine.version}")


async def redraw_there(url: str, key: str | None, wanted: Provenance) -> Redrawn:
    """Have a server draw it.

    Raises:
        NotHereError, NotDrawableError: see there.
        ClientError: there is no server, or it wants another key, or it does not draw.
        PngError: what it answers is no image.
    """
    async with AsyncClient(url, key=key, patience=_PATIENCE) as client:
        cards = {f"{one.name}:{one.version}:{one.digest}": one for one in await client.models()}
        if wanted.bundle not in cards:
            raise NotHereError(f"{url} has {', '.join(cards)}")
        try:
            image = await client.generate(**_arguments(wanted), model=wanted.bundle)
        except AnswerError as error:
            if error.status != 422:
                raise
            raise NotDrawableError(str(error)) from error
    classes, label = cards[wanted.bundle].classes, image.class_label
    name = None if label is None else classes[label]
    return Redrawn(parse_png(url, image.content).rgba(), image.model, name, url)


def _arguments(wanted: Provenance) -> dict[str, Any]:
    return wanted.model_dump(exclude={"model"})
