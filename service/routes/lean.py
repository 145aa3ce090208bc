"""A route that costs less than FastAPI's own, for the one request that comes a thousand times.

FastAPI solves a graph of dependencies for every request, which took 45 of the 145 us of a
request on the reference machine (docs/results.md). A `POST` with one JSON body needs none of it:
the body goes straight into its pydantic model. Everything else of the route (its place in the
OpenAPI document, the error handlers, the middleware) is FastAPI's.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from service.errors import ProblemError


class LeanRoute(APIRoute):
    """A route whose endpoint is `(request: Request, body: SomeModel) -> Response`.

    An empty body stands for `SomeModel()`. A body that is not JSON is a ProblemError (400, 415),
    one of another schema a RequestValidationError, as in any FastAPI route.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Read the body, validate it and call the endpoint, whose response is final."""
        endpoint: Callable[[Request, BaseModel], Coroutine[Any, Any, Response]] = (
            self.dependant.call  # type: ignore[assignment]
        )
        (parameter,) = self.dependant.body_params
        model: type[BaseModel] = parameter.field_info.annotation  # type: ignore[assignment]

        async def handle(request: Request) -> Response:
            content = await request.body()
            return await endpoint(request, _parse(request, content, model))

        return handle


def _parse(request: Request, content: bytes, model: type[BaseModel]) -> BaseModel:
    if not content:
        return model()
    sent = request.headers.get("content-type", "none")
    media_type = sent.partition(";")[0].strip().lower()
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        detail = f"the body's content-type must be application/json, not {sent}"
        raise ProblemError(415, "unsupported-media-type", detail)
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        if errors[0]["type"] == "json_invalid":
            reason = errors[0]["ctx"]["error"]
            raise ProblemError(400, "malformed", f"the body is not JSON: {reason}") from None
        located = [{**item, "loc": ("body", *item["loc"])} for item in errors]
        raise RequestValidationError(located) from None
