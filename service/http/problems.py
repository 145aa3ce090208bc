"""Errors over HTTP: each one, whatever its cause, is an application/problem+json (RFC 9457).

Every refusal is a class of its own (service/exceptions.py), and is answered as its attributes say.
"""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from service.exceptions import RefusedError

PROBLEM = "application/problem+json"
OPENAI_PREFIX = "/v1/"
UNKNOWN_FIELD = "extra_forbidden"
"""Pydantic's type of the error; ours has `known` in its context, the names that there are."""


class Problem(BaseModel):
    """The body of every error; some types add members of their own."""

    type: str = Field(description="Which kind of problem: stable, for programs.")
    title: str = Field(description="The kind, in words.")
    status: int
    detail: str = Field(description="What was wrong this time, what was expected, what to do.")


class MalformedError(RefusedError):
    """What was sent cannot be read as what it should be."""

    status, kind = 400, "malformed"


class NotFoundError(RefusedError):
    """There is nothing at that path."""

    status, kind = 404, "not-found"


class MethodNotAllowedError(RefusedError):
    """What is at that path does not answer that method."""

    status, kind = 405, "method-not-allowed"


class InvalidRequestError(RefusedError):
    """A body or a query that is not of the schema."""

    status, kind = 422, "invalid-request"


class InternalError(RefusedError):
    """An exception that nothing handled; what it was stays in the log."""

    status, kind = 500, "internal-error"


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
    for error_type in (RefusedError, RequestValidationError, HTTPException):
        app.add_exception_handler(error_type, _known_error)
    app.add_exception_handler(Exception, _unexpected_error)


def problem_for(request: Request, error: Exception) -> Response | None:
    """The answer for an exception that is meant for the client; None for any other.

    The request's state keeps the problem's kind, for the log.
    """
    if isinstance(error, RequestValidationError):
        error = _invalid_request(error)
    elif isinstance(error, HTTPException):
        error = _of_starlette(request, error)
    if not isinstance(error, RefusedError):
        return None
    request.scope.setdefault("state", {})["problem"] = error.kind
    if request.url.path.startswith(OPENAI_PREFIX):
        if error.param and error.status == 413:
            error.status = 400  # as OpenAI's API says it; its libraries do not know 413
        return problem(error, error=_openai_error(error))
    return problem(error)


def problem(
    refusal: RefusedError, headers: Mapping[str, str] | None = None, **members: object
) -> Response:
    """The answer for a refusal, which is an ASGI application too, so that middleware can send it.

    Args:
        refusal: what is answered.
        headers, members: further ones than those of the refusal itself.
    """
    sent = {**refusal.headers, **(headers or {})}
    if refusal.status in (429, 503):
        sent["Retry-After"] = str(refusal.retry_seconds)
    body = {
        "type": f"urn:sid-serve:problem:{refusal.kind}",
        "title": refusal.kind.replace("-", " ").capitalize(),
        "status": refusal.status,
        "detail": _detail(refusal),
        **refusal.members,
        **members,
    }
    # ASCII, because a detail may quote what was sent: a lone surrogate has no UTF-8 form.
    content = json.dumps(body, ensure_ascii=True).encode("ascii")
    return Response(content, refusal.status, sent, media_type=PROBLEM)


def _detail(refusal: RefusedError) -> str:
    return refusal.public or str(refusal)


def _openai_error(problem: RefusedError) -> dict[str, str | None]:
    """What tools that speak OpenAI's API show of an error, as a member of the problem."""
    kind = "server_error" if problem.status >= 500 else "invalid_request_error"
    kind = "rate_limit_error" if problem.status == 429 else kind
    return {
        "message": _detail(problem),
        "type": kind,
        "param": problem.param or None,
        "code": problem.kind,
    }


async def _known_error(request: Request, error: Exception) -> Response:
    response = problem_for(request, error)
    assert response is not None, "a handler was installed for an error without an answer"
    return response


def _invalid_request(error: RequestValidationError) -> InvalidRequestError:
    """All that is wrong, and of a field that is unknown the known ones, which its error lists."""
    fields: dict[str, str] = {}
    known: list[str] = []
    for item in error.errors():
        field = ".".join(str(part) for part in item["loc"][1:2]) or "body"
        message = item["msg"]
        if item["type"] == UNKNOWN_FIELD:
            known = item["ctx"]["known"]
            nearest = get_close_matches(field.lower(), known, n=1)
            message = f"no such field, perhaps {nearest[0]}" if nearest else "no such field"
        fields[field] = f"{fields[field]}; or {message}" if field in fields else message
    detail = "; ".join(f"{field}: {message}" for field, message in fields.items())
    if known:
        detail += f"; the fields are {', '.join(known)}"
    refusal = InvalidRequestError(detail, errors=fields)
    refusal.param = next((field for field in fields if field != "body"), "")
    return refusal


def _of_starlette(request: Request, error: HTTPException) -> RefusedError:
    """What Starlette and FastAPI raise themselves: no such path, wrong method, unreadable body."""
    path, headers = request.url.path, dict(error.headers or {})
    if error.status_code == 404:
        return NotFoundError(f"there is nothing at {path}; see /docs", headers=headers)
    if error.status_code == 405:  # Starlette names the methods of the first route at that path
        headers["Allow"] = ", ".join(_allowed_methods(request))
        return MethodNotAllowedError(f"{path} does not answer {request.method}", headers=headers)
    if error.status_code == 400:
        return MalformedError(f"the request cannot be read: {error.detail}", headers=headers)
    other = RefusedError(str(error.detail), headers=headers)
    other.status = error.status_code
    other.kind = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
    return other


def _allowed_methods(request: Request) -> list[str]:
    methods = set()
    for method in ("DELETE", "GET", "PATCH", "POST", "PUT"):
        scope = {**request.scope, "method": method}
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes):
            methods |= {method, "HEAD"} if method == "GET" else {method}
    return sorted(methods)


def internal_error() -> Response:
    """The answer for an exception that nothing handled; what it was stays in the log."""
    return problem(InternalError("the server failed; its log says why"))


async def _unexpected_error(_: Request, __: Exception) -> Response:
    # Only what RequestMetrics does not see. Starlette raises it again after this answer.
    return internal_error()
