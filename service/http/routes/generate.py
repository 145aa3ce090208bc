"""/generate: a class and a seed in, images out. POST draws; GET is the same, and cacheable."""

import asyncio
from collections import Counter
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request, Response

from service.http.disconnect import CancelOnDisconnect
from service.http.fast_route import FastRoute
from service.http.problems import InvalidRequestError, responses
from service.http.routes import tags
from service.http.routes.handlers import charge_client, deadline_of, draw, priority_of, resolve
from service.http.routes.requests import GenerateQuery, GenerateRequest
from service.http.routes.responses import (
    GenerateResponse,
    answer,
    choose_form,
    entity_tag,
    file_media_type,
)
from service.observability.tracing import RequestTrace
from service.priority import Priority
from service.serving.encoding import JPEG, NPY, PNG, WEBP, ZIP
from service.serving.exceptions import DeadlineError
from service.serving.jobs import ImageJob, ImageResult
from service.serving.served_model import ServedModel
from service.settings import Settings

router = APIRouter(route_class=FastRoute, tags=[tags.IMAGES])
cacheable_router = APIRouter(tags=[tags.IMAGES])

_HOUR, _YEAR = 3600, 365 * 24 * 3600  # seconds
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The images, in the form that the Accept header prefers.",
        "content": dict.fromkeys((PNG, WEBP, JPEG, NPY, ZIP), _BINARY),
        "model": GenerateResponse,  # the schema of application/json
    },
    **responses(400, 401, 403, 404, 406, 408, 413, 415, 422, 429, 503, 504),
}


_ANYTHING = GenerateRequest()


@router.post("/generate", summary="Draw images", response_class=Response, responses=_RESPONSES)
async def generate(
    request: Request, body: Annotated[GenerateRequest, Body()] = _ANYTHING
) -> Response:
    """Draw images, each in one call of the model's graph.

    `Accept` chooses the form: image/png (the default), image/webp or image/jpeg for one image,
    application/json (the default for several), application/zip or application/x-npy (uint8
    [n, height, width, channels]) for any number. `X-Deadline-Ms: 50` asks for an answer within
    50 ms or a 504. `X-Priority: bulk`, or `background`, lets others go first, who ask for
    `interactive` or for nothing; an API key may have less than it asks for, and X-Priority of the
    answer says what it had, if not `interactive`. The headers X-Seed, X-Class-Label and X-Model
    say how to draw the (first) image again.
    """
    deadline, priority = deadline_of(request), priority_of(request)
    form = choose_form(request, body.n)
    model, jobs = resolve(request, body, file_media_type(form))
    return await answer(model, await draw(request, model, jobs, deadline, priority), form)


@cacheable_router.get(
    "/generate",
    summary="Draw images, cacheable",
    response_class=Response,
    responses={**_RESPONSES, 304: {"description": "The client's copy is still right."}},
)
async def generate_cacheable(
    request: Request, query: Annotated[GenerateQuery, Query()]
) -> Response:
    """Draw the images that these parameters name.

    The same as POST, with the seed required. A label of the model's `inputs` is a parameter of
    its own, `input.style=3`; a vector has no place in an address: POST takes it.

    The answer carries an ETag and may be kept for an hour, or for ever if `model` is
    `name:version:digest:graph`; If-None-Match answers 304 without drawing, and requests for the
    same images at the same time draw them once, with the highest priority of any of them.
    """
    _refuse_repeats(request)
    deadline, priority = deadline_of(request), priority_of(request)
    form = choose_form(request, query.n)
    model, jobs = resolve(request, query, file_media_type(form))
    etag = entity_tag(model, jobs, form)
    settings: Settings = request.app.state.settings
    # With keys, a shared cache must not hand one client's answer to others.
    scope = "private" if settings.keys else "public"
    # Without its tag in the URL, a model may be another one after the next deployment, or have
    # another graph on the next server.
    lasting = f"max-age={_YEAR}, immutable" if query.model == model.tag else f"max-age={_HOUR}"
    caching = {"ETag": etag, "Cache-Control": f"{scope}, {lasting}", "Vary": "Accept"}
    if _matches(request, etag):
        model.metrics.cache_hit("not_modified")
        return Response(status_code=304, headers=caching)
    charge_client(request, model, len(jobs), priority)
    trace: RequestTrace = request.state.trace
    async with CancelOnDisconnect(request.receive):
        images = await _share(model, etag, jobs, deadline, trace, priority)
    response = await answer(model, images, form)
    response.headers.update(caching)
    return response


def _refuse_repeats(request: Request) -> None:
    """Which of two seeds is meant, nobody knows; raises InvalidRequestError for such a query."""
    times = Counter(name for name, _ in request.query_params.multi_items())
    for name, count in times.items():
        if count > 1:
            detail = f"{name}: given {count} times: give it once"
            raise InvalidRequestError(detail, errors={name: detail.partition(": ")[2]})


async def _share(
    model: ServedModel,
    etag: str,
    jobs: list[ImageJob],
    deadline: float | None,
    trace: RequestTrace,
    priority: Priority,
) -> list[ImageResult]:
    """Draw the images, or wait for a request that is drawing the very same ones.

    The deadline is each request's own, so it does not end the shared work. The priority is the
    highest that any has had: who joins may raise it, and who leaves does not lower it.
    """
    if shared := model.in_flight.is_running(etag):
        model.metrics.cache_hit("shared")
        model.promote(etag, priority)
    try:
        async with asyncio.timeout_at(deadline):
            images = await model.in_flight.run(
                etag,
                lambda: model.submit(jobs, deadline, trace, priority=priority, shared=etag),
            )
    except TimeoutError:
        raise DeadlineError("the image was not drawn in time") from None
    if shared:
        trace.drawn_by({image.batch for image in images})
    return images


def _matches(request: Request, etag: str) -> bool:
    """Whether If-None-Match names our answer (RFC 9110, section 13.1.2: weak comparison)."""
    header = ", ".join(request.headers.getlist("if-none-match"))
    tags = {tag.strip().removeprefix("W/") for tag in header.split(",")}
    return etag in tags or "*" in tags
