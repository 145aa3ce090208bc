"""Probes and metrics, for the platform that runs the server."""

from typing import Literal

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from service.exceptions import RefusedError
from service.http.problems import responses
from service.http.routes import tags
from service.observability.metrics import Metrics
from service.serving.catalogue import Catalogue
from service.serving.exceptions import ClosedError

router = APIRouter(tags=[tags.OPERATION])
metrics_router = APIRouter(tags=[tags.OPERATION])
"""Apart, for /metrics may have a port of its own (service/http/metrics_port.py)."""


class NotReadyError(RefusedError):
    """A model does not draw its canary image."""

    status, kind = 503, "not-ready"


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """Every model answers."""

    status: Literal["ready"] = "ready"
    models: list[str]


@router.get("/livez", summary="Is the process alive?")
async def live() -> Alive:
    """Restart the process when this fails."""
    return Alive()


@router.get("/readyz", summary="Should it get traffic?", responses=responses(503))
async def ready(request: Request) -> Ready:
    """Every model drew its canary image, and the server is not shutting down."""
    catalogue: Catalogue = request.app.state.catalogue
    if catalogue.draining:
        raise ClosedError
    if failures := await catalogue.failures():
        raise NotReadyError("; ".join(failures.values()), models=failures)
    return Ready(models=list(catalogue.models))


@metrics_router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
async def metrics(request: Request) -> Response:
    """Counters and histograms in Prometheus' text format."""
    server_metrics: Metrics = request.app.state.metrics
    return Response(await server_metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
