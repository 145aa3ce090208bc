"""Errors over HTTP: each one, whatever its cause, is an application/problem+json (RFC 9457).

Domain code raises its own exceptions and knows no HTTP; the table here gives each its status.
"""

import json
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from service.bundle import ClassLabelError, InputError, SeedError
from service.http.security import BurstError, RateLimitedError
from service.serving.catalogue import ModelRequiredError, UnknownModelError
from service.serving.exceptions import ClosedError, ComputeError, DeadlineError, QueueFullError
from service.serving.jobs import WalkError
from service.serving.supervision import EngineDownError

PROBLEM = "application/problem+json"
OPENAI_PREFIX = "/v1/"
_RETRY_AFTER_SECONDS = 1  # for errors that know no better


class Problem(BaseModel):
    """The body of every error; some types add members of their own."""

    type: str = Field(description="Which kind of problem: stable, for programs.")
    title: str = Field(description="The kind, in words.")
    status: int
    detail: str = Field(description="What was wrong this time, what was expected, what to do.")


class ProblemError(Exception):
    """An error that a route answers with.

    Args:
        status: HTTP status.
        kind: the last part of the problem's type.
        detail: a sentence for the person who sent the request.
        headers: additional headers.
        members: additional members of the body.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        **members: object,
    ) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail = status, kind, detail
        self.headers, self.members = dict(headers or {}), members


# exception -> status, kind, what to say when the exception itself says nothing
_DOMAIN: dict[type[Exception], tuple[int, str, str]] = {
    UnknownModelError: (404, "model-not-found", ""),
    ModelRequiredError: (422, "model-required", ""),
    ClassLabelError: (422, "class-out-of-range", ""),
    SeedError: (422, "seed-out-of-range", ""),
    InputError: (422, "input-not-taken", ""),
    WalkError: (422, "walk-nowhere", ""),
    BurstError: (413, "above-burst", ""),
    RateLimitedError: (429, "rate-limited", ""),
    QueueFullError: (429, "queue-full", ""),
    ClosedError: (503, "draining", "the server is shutting down; try another, or again later"),
    EngineDownError: (503, "engine-down", "the model's engine is down; try again later"),
    ComputeError: (503, "engine-failed", "the engine failed to draw the picture; try again later"),
    DeadlineError: (504, "deadline", ""),
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe error answers for a route's OpenAPI entry."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {PROBLEM: {"schema": Problem.model_json_schema()}},
        }
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Have the application answer every exception with a problem."""
    for known in (*_DOMAIN, ProblemError, RequestValidationError, HTTPException):
        app.add_exception_handler(known, _known_error)
    app.add_exception_handler(Exception, _unexpected_error)


def problem_for(request: Request, error: Exception) -> Response | None:
    """The answer for an exception that is meant for the client; None for any other."""
    known = _as_problem(request, error)
    if known is None:
        return None
    if request.url.path.startswith(OPENAI_PREFIX):
        known.members["error"] = _openai_error(known)
    return problem(known.status, known.kind, known.detail, known.headers, **known.members)


def problem(
    status: int, kind: str, detail: str, headers: Mapping[str, str] | None = None, **members: object
) -> Response:
    """The answer for an error, which is an ASGI application too, so that middleware can send it."""
    body = {
        "type": f"urn:sid-serve:problem:{kind}",
        "title": kind.replace("-", " ").capitalize(),
        "status": status,
        "detail": detail,
        **members,
    }
    # ASCII, because a detail may quote what was sent: a lone surrogate has no UTF-8 form.
    content = json.dumps(body, ensure_ascii=True).encode("ascii")
    return Response(content, status, dict(headers or {}), media_type=PROBLEM)


def _as_problem(request: Request, error: Exception) -> ProblemError | None:
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, RequestValidationError):
        return _validation_problem(error)
    if isinstance(error, HTTPException):
        return _http_problem(request, error)
    for domain_error, (status, kind, detail) in _DOMAIN.items():
        if isinstance(error, domain_error):
            said, headers = detail or str(error), _retry_after(status, error)
            return ProblemError(status, kind, said, headers=headers)
    return None


def _openai_error(known: ProblemError) -> dict[str, str | None]:
    """What tools that speak OpenAI's API show of an error, as a member of the problem."""
    kind = "server_error" if known.status >= 500 else "invalid_request_error"
    kind = "rate_limit_error" if known.status == 429 else kind
    return {"message": known.detail, "type": kind, "param": None, "code": known.kind}


async def _known_error(request: Request, error: Exception) -> Response:
    response = problem_for(request, error)
    assert response is not None, "a handler was installed for an error without an answer"
    return response


def _retry_after(status: int, error: Exception) -> dict[str, str]:
    if status not in (429, 503):
        return {}
    seconds = getattr(error, "retry_after", _RETRY_AFTER_SECONDS)
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def _validation_problem(error: RequestValidationError) -> ProblemError:
    """Bodies and queries that are not of the schema."""
    found = error.errors()
    fields: dict[str, str] = {}
    for item in found:
        field = ".".join(str(part) for part in item["loc"][1:2]) or "body"
        message = "no such field" if item["type"] == "extra_forbidden" else item["msg"]
        fields[field] = f"{fields[field]}; or {message}" if field in fields else message
    detail = "; ".join(f"{field}: {message}" for field, message in fields.items())
    return ProblemError(422, "invalid-request", detail, errors=fields)


def _http_problem(request: Request, error: HTTPException) -> ProblemError:
    """What Starlette and FastAPI raise themselves: no such path, wrong method, unreadable body."""
    phrase = HTTPStatus(error.status_code).phrase
    details = {
        400: f"the request cannot be read: {error.detail}",
        404: f"there is nothing at {request.url.path}; see /docs",
        405: f"{request.url.path} does not answer {request.method}",
    }
    detail = details.get(error.status_code, error.detail)
    kind = "malformed" if error.status_code == 400 else phrase.lower().replace(" ", "-")
    headers = dict(error.headers or {})
    if error.status_code == 405:  # Starlette names the methods of the first route at that path
        headers["Allow"] = ", ".join(_allowed_methods(request))
    return ProblemError(error.status_code, kind, detail, headers=headers)


def _allowed_methods(request: Request) -> list[str]:
    found = set()
    for method in ("DELETE", "GET", "PATCH", "POST", "PUT"):
        scope = {**request.scope, "method": method}
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes):
            found |= {method, "HEAD"} if method == "GET" else {method}
    return sorted(found)


def internal_error() -> Response:
    """The answer for an exception that nothing handled; what it was stays in the log."""
    return problem(500, "internal-error", "the server failed; its log says why")


async def _unexpected_error(_: Request, __: Exception) -> Response:
    # Only what RequestTelemetry does not see. Starlette raises it again after this answer.
    return internal_error()
