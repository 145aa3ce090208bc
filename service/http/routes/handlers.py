"""From a request for pictures to the pictures: what every route that draws does alike."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from service.http.disconnect import ClientDisconnectedError, UnlessDisconnected
from service.http.problems import ProblemError
from service.http.routes.requests import GenerateQuery, GenerateRequest
from service.http.security import RateLimitedError, charge
from service.serving.jobs import ImageJob, Picture, resolve_jobs
from service.serving.served_model import ServedModel
from service.settings import Settings

T = TypeVar("T")

_CLIENT_LEFT = 499  # nobody reads it; it tells such requests apart in metrics and logs
_LONGEST_DEADLINE_MS = 3_600_000


def resolve(
    request: Request, asked: GenerateRequest | GenerateQuery, media_type: str
) -> tuple[ServedModel, list[ImageJob]]:
    """The model and the jobs that a request means, each to be encoded as `media_type`.

    Raises the domain's errors, and ProblemError: 413.
    """
    model = request.app.state.catalogue.resolve(asked.model)
    request.state.model = model.name
    settings: Settings = request.app.state.settings
    n, most = asked.n, min(settings.max_images, settings.queue_size)
    if n > most:
        raise ProblemError(413, "too-many-images", f"n is at most {most} here, not {n}", most=most)
    return model, resolve_jobs(
        model.bundle.manifest,
        asked.class_label,
        asked.seed,
        n,
        media_type,
        asked.toward,
        asked.mix,
        asked.inputs,
    )


async def draw(
    request: Request, model: ServedModel, jobs: list[ImageJob], deadline: float | None
) -> list[Picture]:
    """Charge the client, and draw for as long as it waits. Raises what `unless_left` raises."""
    charge_for(request, model, len(jobs))
    return await unless_left(request, model.submit(jobs, deadline, request.state.trace))


def charge_for(request: Request, model: ServedModel, n: int) -> None:
    """Charge the client for n pictures (see security.charge), and count a refusal."""
    try:
        charge(request, n)
    except RateLimitedError:
        model.metrics.reject("rate_limited")
        raise


async def unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, or cancel it and answer 499 if the client leaves."""
    try:
        async with UnlessDisconnected(request.receive):
            return await work
    except ClientDisconnectedError:
        raise ProblemError(_CLIENT_LEFT, "client-left", "the client left") from None


def deadline_of(request: Request) -> float | None:
    """When the answer is wanted, on the event loop's clock, from X-Deadline-Ms."""
    sent = request.headers.get("x-deadline-ms")
    if sent is None:
        return None
    try:
        milliseconds = float(sent)
    except ValueError:
        milliseconds = 0
    if not 0 < milliseconds <= _LONGEST_DEADLINE_MS:
        detail = f"X-Deadline-Ms must be a number above 0, to {_LONGEST_DEADLINE_MS}, not {sent!r}"
        raise ProblemError(400, "malformed", detail)
    return asyncio.get_running_loop().time() + milliseconds / 1000
