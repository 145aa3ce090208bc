"""BentoML: adaptive batching in the HTTP process itself (`bentoml serve bentoml_app:Images`).

A batchable API takes and gives lists, so that one request for one image needs something in
front. BentoML's guide puts a second service there, which costs a process and a hop over a socket
(`bentoml serve bentoml_app:Front`). The first is kinder: an input and an output specification turn
the one body into a list of one, and back.

There is no window to set: the dispatcher learns how long to wait. max_latency_ms is a bound and no
window (what is expected to take longer is answered 503), so it is set out of the way.
"""

from typing import Any

import bentoml
import compare_work as work
from _bentoml_sdk.io_models import IODescriptor
from starlette.responses import Response


class One(IODescriptor):
    """One job as a list of one."""

    jobs: list[Any]

    @classmethod
    async def from_http_request(cls, request: Any, serde: Any) -> "One":  # noqa: ARG003
        return cls(jobs=[await request.json()])


class Png(IODescriptor):
    """A list of one image as a PNG answer."""

    @classmethod
    async def to_http_response(cls, obj: list[bytes], serde: Any) -> Response:  # noqa: ARG003
        return Response(obj[0], media_type="image/png")


# No server of the comparison writes a line a request.
COMMON: dict[str, Any] = {"traffic": {"timeout": 60}, "logging": {"access": {"enabled": False}}}
BATCHING: dict[str, Any] = {
    "batchable": True,
    "max_batch_size": work.MAX_BATCH_SIZE,
    "max_latency_ms": 10_000,
}


@bentoml.service(workers=work.WORKERS, threads=1, **COMMON)
class Images:
    """Painter and HTTP in one process, one batch at a time."""

    def __init__(self) -> None:
        self.painter = work.Painter()

    @bentoml.api(route=work.ROUTE, input_spec=One, output_spec=Png, **BATCHING)
    def generate(self, jobs: list[Any]) -> list[bytes]:
        return self.painter.paint([self.painter.check(job) for job in jobs])

    @bentoml.api(**BATCHING)
    def paint(self, jobs: list[Any]) -> list[Any]:
        return self.painter.paint([self.painter.check(job) for job in jobs])


@bentoml.service(workers=1, **COMMON)
class Front:
    """The guide's way: a front service that sends lists of one to the batching service."""

    images = bentoml.depends(Images)

    @bentoml.api(route=work.ROUTE, output_spec=Png)
    async def generate(self, class_label: int, seed: int) -> Any:
        return await self.images.to_async.paint([{"class_label": class_label, "seed": seed}])
