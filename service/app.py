"""The application: the one place where the parts are wired together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from service import errors
from service.catalogue import load_bundles, open_catalogue
from service.middleware import RequestTelemetry
from service.routes import generate, health, models
from service.settings import Settings
from service.telemetry import Telemetry


def create_app(settings: Settings) -> FastAPI:
    """Make the application; its lifespan loads, opens and closes the models.

    The lifespan raises BundleError or EngineError when a model cannot be served.
    """
    telemetry = Telemetry()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        bundles = load_bundles(settings.models)
        async with open_catalogue(bundles, settings, telemetry) as app.state.catalogue:
            yield

    app = FastAPI(
        title="SiD Serve",
        summary="Pictures in a single step of the network.",
        version=version("sid-serve"),
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.telemetry = telemetry
    errors.install(app)
    app.add_middleware(RequestTelemetry, telemetry=telemetry)
    for module in (generate, models, health):
        app.include_router(module.router)
    return app
