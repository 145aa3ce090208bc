"""The application: the one place where the parts are wired together."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from service.addresses import origins
from service.engines.threads import run_aside
from service.http import problems
from service.http.cors import CrossOrigin
from service.http.fast_route import FastRoute, FastRoutes
from service.http.middleware import ApiKeys, BodyLimit, RequestMetrics
from service.http.routes import client, generate, health, models, openai, playground, tags
from service.http.security import TokenBuckets, load_keys
from service.observability.metrics import Metrics
from service.observability.tracing import open_tracing
from service.serving.catalogue import load_contents, open_catalogue
from service.settings import Settings


def create_app(settings: Settings) -> FastAPI:
    """Make the application; its lifespan loads, opens and closes the models.

    The lifespan raises BundleError or EngineError when a model cannot be served, DefaultModelError
    when the default is none of them, TracingError when traces were asked for and cannot be made.

    Raises:
        KeysError: the file of API keys cannot be used.
    """
    metrics = Metrics()
    metrics.queue_limit.set(settings.queue_size)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        contents = await run_aside(load_contents, settings)
        async with (
            aclosing(open_tracing(settings.traces)) as app.state.tracing,
            open_catalogue(contents, settings, metrics) as app.state.catalogue,
        ):
            yield

    app = _Application(
        title="SiD Serve",
        summary="Images in a single step of the network, or in a few.",
        version=version("sid-serve"),
        openapi_tags=tags.TAGS,
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url=None,  # playground.install has these, from this machine, not from a network
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.state.settings = settings
    app.state.metrics = metrics
    app.state.keys = load_keys(settings.keys) if settings.keys else None
    app.state.buckets = TokenBuckets(settings.rate, settings.burst) if settings.rate else None
    problems.install(app)
    for router in (
        generate.router,
        generate.cacheable_router,
        models.router,
        openai.generation_router,
        openai.router,
        health.router,
        *([] if settings.metrics_port is not None else [health.metrics_router]),
        client.router,
    ):
        app.include_router(router)
    playground.install(app)
    return app


class _Application(FastAPI):
    """FastAPI behind our own middleware, and behind a short cut for the fast routes."""

    def build_middleware_stack(self) -> ASGIApp:
        """From the inside out: every answer is counted and has a request id."""
        fast = [route for route in generate.router.routes if isinstance(route, FastRoute)]
        stack: ASGIApp = FastRoutes(super().build_middleware_stack(), fast)
        stack = BodyLimit(stack, max_bytes=self.state.settings.max_body_bytes)
        if self.state.keys is not None:
            stack = ApiKeys(stack, keys=self.state.keys)
        if allowed := origins(self.state.settings.cors_origins):
            stack = CrossOrigin(stack, allowed)
        return RequestMetrics(stack, metrics=self.state.metrics, tracing=self.state.tracing)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection, without what FastAPI looks up for its own telemetry."""
        scope["app"] = self
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # uvicorn leaves the body of the answer out
        if self.middleware_stack is None:
            self.middleware_stack = self.build_middleware_stack()
        await self.middleware_stack(scope, receive, send)
