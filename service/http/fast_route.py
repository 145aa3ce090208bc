"""A route that costs less than FastAPI's own, for the one request that comes a thousand times.

FastAPI's way to an endpoint (its middleware, its routers, a graph of dependencies) took about a
quarter of the event loop's time for a small image (docs/results.md). A POST with one JSON body
needs none of it: the body goes straight into its pydantic model, the response straight out.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from service.exceptions import RefusedError
from service.http.problems import UNKNOWN_FIELD, MalformedError, internal_error, problem_for


class UnsupportedMediaTypeError(RefusedError):
    """The request's body is of a media type that is not read."""

    status, kind = 415, "unsupported-media-type"


class FastRoute(APIRoute):
    """A route whose endpoint is `(request: Request, body: SomeModel) -> Response`.

    An empty body stands for `{}`. A body that is not JSON is a MalformedError or an
    UnsupportedMediaTypeError, one of another schema a RequestValidationError, as in any FastAPI
    route. The route has its place in the OpenAPI document like any other; `FastRoutes` leads to it
    past FastAPI.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Read the body, validate it and call the endpoint, whose response is final."""
        endpoint: Callable[[Request, BaseModel], Coroutine[Any, Any, Response]] = (
            self.dependant.call  # type: ignore[assignment]
        )
        (parameter,) = self.dependant.body_params
        model: type[BaseModel] = parameter.field_info.annotation  # type: ignore[assignment]

        async def handle(request: Request) -> Response:
            return await endpoint(request, _parse(request, await _read(request), model))

        return handle


class FastRoutes:
    """ASGI: leads requests for fast routes straight there, and all others to the application.

    Args:
        app: the rest of the application.
        routes: the fast routes, all of plain paths without parameters.
    """

    def __init__(self, app: ASGIApp, routes: list[FastRoute]) -> None:
        self._app = app
        self._routes = {
            (method, route.path): (route, route.get_route_handler())
            for route in routes
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        route_and_handler = self._routes.get((scope.get("method", ""), scope.get("path", "")))
        if route_and_handler is None:
            await self._app(scope, receive, send)
            return
        route, handle = route_and_handler
        scope["route"] = route
        request = Request(scope, receive)
        try:
            response = await handle(request)
        except Exception as error:
            problem = problem_for(request, error)
            if problem is None:
                # Answered here, as FastAPI does, so that what wraps this adds its headers.
                await internal_error()(scope, receive, send)
                raise
            response = problem
        await response(scope, receive, send)


async def _read(request: Request) -> bytes:
    body = b""
    while (message := await request.receive())["type"] == "http.request":
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return body


def _parse(request: Request, content: bytes, model: type[BaseModel]) -> BaseModel:
    if content:
        _check_type(request)
    try:
        return model.model_validate_json(content or b"{}")
    except ValidationError as error:
        errors = error.errors(include_url=False)
        if errors[0]["type"] == "json_invalid":
            reason = errors[0]["ctx"]["error"]
            raise MalformedError(f"the body is not JSON: {reason}") from None
        located = [{**item, "loc": ("body", *item["loc"])} for item in errors]
        for item in located:
            if item["type"] == UNKNOWN_FIELD:
                item["ctx"] = {"known": list(model.model_fields)}
        raise RequestValidationError(located) from None


def _check_type(request: Request) -> None:
    content_type = request.headers.get("content-type", "none")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        detail = f"the body's content-type must be application/json, not {content_type}"
        raise UnsupportedMediaTypeError(detail)
