"""/generate: a class and a seed in, pictures out. POST draws; GET is the same, and cacheable."""

import asyncio
import re
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Body, Query, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, StrictStr

from service.bundle import SEED_MAX
from service.encoding import JPEG, NPY, PNG, WEBP, ZIP
from service.errors import ProblemError, responses
from service.generation import Model, Order, Picture
from service.refusals import DeadlineError
from service.routes.answers import GenerateResponse, answer, choose_form, entity_tag, file_type
from service.routes.disconnect import ClientDisconnectedError, UnlessDisconnected
from service.routes.lean import LeanRoute
from service.security import RateLimitedError, charge
from service.settings import Settings
from service.tracing import RequestTrace

router = APIRouter(route_class=LeanRoute)
cacheable_router = APIRouter()

T = TypeVar("T")

_CLIENT_LEFT = 499  # nobody reads it; it tells such requests apart in metrics and logs
_LONGEST_DEADLINE_MS = 3_600_000
_HOUR, _YEAR = 3600, 365 * 24 * 3600  # seconds
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The pictures, in the form that the Accept header prefers.",
        "content": dict.fromkeys((PNG, WEBP, JPEG, NPY, ZIP), _BINARY),
        "model": GenerateResponse,  # the schema of application/json
    },
    **responses(400, 401, 403, 404, 406, 408, 413, 415, 422, 429, 503, 504),
}


_EXACT = 2**53  # above it a float may not be the number that was written


def _whole(value: object) -> object:
    """Take 7.0 for 7, as JSON Schema and the languages without integers do."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        return int(value)
    return value


def _digits(value: object) -> object:
    """Take digits only: 7, and not what Python also reads as 7, each another URL to cache."""
    if isinstance(value, str) and not re.fullmatch(r"-?[0-9]{1,20}", value, re.ASCII):
        raise ValueError("must be a whole number in digits")
    return value


Digits = Annotated[int, BeforeValidator(_digits)]
WholeNumber = Annotated[StrictInt, BeforeValidator(_whole)]


class GenerateRequest(BaseModel):
    """What to draw. Everything may be left out; the answer reports what was chosen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: StrictStr | None = Field(
        default=None,
        description="Which model; needed only where several are served. `name:version:digest`, "
        "as X-Model reports it, means these very weights or none.",
    )
    class_label: WholeNumber | StrictStr | None = Field(
        default=None,
        description="Class index, or class name in any case. Left out: each picture's seed "
        "modulo the number of classes.",
        examples=["Dress", 3],
    )
    seed: WholeNumber | None = Field(
        default=None,
        description="The same model, class and seed give the same bytes. Seeds that are equal "
        "modulo 2^32 give the same noise. Left out: a random seed.",
        # Described here, checked by the domain, whose message says the range.
        json_schema_extra={"minimum": 0, "maximum": SEED_MAX},
        examples=[7],
    )
    n: WholeNumber = Field(
        default=1, ge=1, description="How many pictures; picture i has the seed `seed` + i."
    )


_ANYTHING = GenerateRequest()


class GenerateQuery(BaseModel):
    """What to draw, as a query; the seed is required, so that the answer is a pure function."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(default=None, description="As in POST.")
    class_label: str | None = Field(default=None, description="Class index or name, as in POST.")
    seed: Digits = Field(
        description="As in POST.", json_schema_extra={"minimum": 0, "maximum": SEED_MAX}
    )
    n: Digits = Field(default=1, ge=1, description="As in POST.")


@router.post("/generate", summary="Draw pictures", response_class=Response, responses=_RESPONSES)
async def generate(
    request: Request, body: Annotated[GenerateRequest, Body()] = _ANYTHING
) -> Response:
    """Draw pictures, each in a single step of the network.

    `Accept` chooses the form: image/png (the default), image/webp or image/jpeg for one picture,
    application/json (the default for several), application/zip or application/x-npy (uint8
    [n, height, width, channels]) for any number. `X-Deadline-Ms: 50` asks for an answer within
    50 ms or a 504. The headers X-Seed, X-Class-Label and X-Model say how to draw the (first)
    picture again.
    """
    deadline = _deadline(request)
    model, form, orders = _resolve(request, body.model, body.class_label, body.seed, body.n)
    _charge(request, model, len(orders))
    model.admit(len(orders), deadline)  # before anything is set up: under overload most end here
    pictures = await _unless_left(request, model.generate(orders, deadline, request.state.trace))
    return await answer(model, pictures, form)


@cacheable_router.get(
    "/generate",
    summary="Draw pictures, cacheable",
    response_class=Response,
    responses={**_RESPONSES, 304: {"description": "The client's copy is still right."}},
)
async def generate_cacheable(
    request: Request, query: Annotated[GenerateQuery, Query()]
) -> Response:
    """Draw the pictures that these parameters name.

    The same as POST, with the seed required. The answer carries an ETag and may be kept for an
    hour, or for ever if `model` is `name:version:digest`; If-None-Match answers 304 without
    drawing, and requests for the same pictures at the same time draw them once.
    """
    deadline = _deadline(request)
    model, form, orders = _resolve(request, query.model, query.class_label, query.seed, query.n)
    etag = entity_tag(model, orders, form)
    settings: Settings = request.app.state.settings
    # With keys, a shared cache must not hand one client's answer to others.
    scope = "private" if settings.keys else "public"
    # Without its digest in the URL, a model may be another one after the next deployment.
    seconds = _YEAR if query.model == model.bundle.tag else _HOUR
    caching = {
        "ETag": etag,
        "Cache-Control": f"{scope}, max-age={seconds}, immutable",
        "Vary": "Accept",
    }
    if _matches(request, etag):
        model.metrics.cache_hit("not_modified")
        return Response(status_code=304, headers=caching)
    _charge(request, model, len(orders))
    trace: RequestTrace = request.state.trace
    pictures = await _unless_left(request, _share(model, etag, orders, deadline, trace))
    response = await answer(model, pictures, form)
    response.headers.update(caching)
    return response


def _resolve(
    request: Request, name: str | None, class_label: int | str | None, seed: int | None, n: int
) -> tuple[Model, str, list[Order]]:
    """The model, the form of the answer and the orders that a request means.

    Raises the domain's errors, and ProblemError: 406, 413.
    """
    form = choose_form(request, n)
    model = request.app.state.catalogue.resolve(name)
    request.state.model = model.name
    settings: Settings = request.app.state.settings
    most = min(settings.max_images, settings.queue_size)
    if n > most:
        raise ProblemError(413, "too-many-images", f"n is at most {most} here, not {n}", most=most)
    return model, form, model.orders(class_label, seed, n, file_type(form))


def _charge(request: Request, model: Model, n: int) -> None:
    try:
        charge(request, n)
    except RateLimitedError:
        model.metrics.reject("rate_limited")
        raise


async def _share(
    model: Model, etag: str, orders: list[Order], deadline: float | None, trace: RequestTrace
) -> list[Picture]:
    """Draw the pictures, or wait for a request that is drawing the very same ones.

    The deadline is each request's own, so it does not go along with the shared work.
    """
    if shared := model.flights.flying(etag):
        model.metrics.cache_hit("shared")
    else:
        model.admit(len(orders), deadline)
    try:
        async with asyncio.timeout_at(deadline):
            pictures = await model.flights.run(etag, lambda: model.generate(orders, trace=trace))
    except TimeoutError:
        raise DeadlineError("the picture was not drawn in time") from None
    if shared:
        trace.drawn_by({picture.batch for picture in pictures})
    return pictures


async def _unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, or cancel it and answer 499 if the client leaves."""
    try:
        async with UnlessDisconnected(request.receive):
            return await work
    except ClientDisconnectedError:
        raise ProblemError(_CLIENT_LEFT, "client-left", "the client left") from None


def _deadline(request: Request) -> float | None:
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


def _matches(request: Request, etag: str) -> bool:
    """Whether If-None-Match names our answer (RFC 9110, section 13.1.2: weak comparison)."""
    sent = ", ".join(request.headers.getlist("if-none-match"))
    tags = {tag.strip().removeprefix("W/") for tag in sent.split(",")}
    return etag in tags or "*" in tags
