"""From a request for images to the images: what every route that draws does alike."""

import asyncio

from fastapi import Request

from service.exceptions import RefusedError
from service.http.disconnect import CancelOnDisconnect
from service.http.problems import MalformedError
from service.http.routes.requests import GenerateQuery, GenerateRequest
from service.http.security import charge, priority_for
from service.priority import PRIORITY_NAMES, Priority
from service.serving.jobs import ImageJob, ImageResult, resolve_jobs
from service.serving.served_model import ServedModel
from service.settings import Settings

_LONGEST_DEADLINE_MS = 3_600_000


class TooManyImagesError(RefusedError):
    """One request asks for more images than one may."""

    status, kind, param = 413, "too-many-images", "n"


def resolve(
    request: Request, parameters: GenerateRequest | GenerateQuery, media_type: str
) -> tuple[ServedModel, list[ImageJob]]:
    """The model and the jobs that a request means, each to be encoded as `media_type`.

    Raises what `resolve_jobs` raises, UnknownModelError, ModelRequiredError and TooManyImagesError.
    """
    model = request.app.state.catalogue.resolve(parameters.model)
    request.state.model = model.name
    settings: Settings = request.app.state.settings
    n, most = parameters.n, min(settings.max_images, settings.queue_size)
    if n > most:
        raise TooManyImagesError(f"n is at most {most} here, not {n}", most=most)
    return model, resolve_jobs(
        model.bundle.manifest,
        parameters.class_label,
        parameters.seed,
        n,
        media_type,
        parameters.toward,
        parameters.mix,
        parameters.inputs,
    )


async def draw(
    request: Request,
    model: ServedModel,
    jobs: list[ImageJob],
    deadline: float | None,
    priority: Priority,
) -> list[ImageResult]:
    """Charge the client, and draw for as long as it waits.

    Raises what `charge_client` and `ServedModel.submit` raise, and ClientLeftError.
    """
    charge_client(request, model, len(jobs), priority)
    drawing = model.submit(jobs, deadline, request.state.trace, priority=priority)
    async with CancelOnDisconnect(request.receive):
        return await drawing


def charge_client(request: Request, model: ServedModel, n: int, priority: Priority) -> None:
    """Charge the client for n images (see security.charge), and count a refusal."""
    try:
        charge(request, n)
    except RefusedError as error:
        model.metrics.reject(error, priority)
        raise


def deadline_of(request: Request) -> float | None:
    """When the answer is wanted, on the event loop's clock, from X-Deadline-Ms."""
    header = request.headers.get("x-deadline-ms")
    if header is None:
        return None
    try:
        milliseconds = float(header)
    except ValueError:
        milliseconds = 0
    if not 0 < milliseconds <= _LONGEST_DEADLINE_MS:
        detail = (
            f"X-Deadline-Ms must be a number above 0, to {_LONGEST_DEADLINE_MS}, not {header!r}"
        )
        raise MalformedError(detail)
    return asyncio.get_running_loop().time() + milliseconds / 1000


def priority_of(request: Request) -> Priority:
    """The priority that X-Priority asks for, or that of the client's key if that is lower.

    What is not interactive is named in the request's state, for the log and the answer: who asks
    for more than the key has is told.

    Raises:
        MalformedError: there is no such priority.
    """
    state = request.scope["state"]
    ceiling: Priority = state.get("ceiling", Priority.INTERACTIVE)
    header = request.headers.get("x-priority")
    if header is None and ceiling is Priority.INTERACTIVE:
        return ceiling
    if (priority := priority_for(header, ceiling)) is None:
        raise MalformedError(f"X-Priority must be {PRIORITY_NAMES}, not {header!r}")
    if priority is not Priority.INTERACTIVE:
        state["priority"] = str(priority)
    return priority
