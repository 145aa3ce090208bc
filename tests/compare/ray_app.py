"""Ray Serve: an HTTP front, and replicas with @serve.batch.

RAY_SERVE_THROUGHPUT_OPTIMIZED=1 and RAY_SERVE_ENABLE_HA_PROXY=1 are the high-throughput switches
of Ray's own guide; compare.py sets them except for its row `ray-plain`.

COMPARE_BLOCKING=1 draws on the replica's event loop instead of in a thread.
"""

import asyncio
import os
import signal
import threading

import compare_work as work
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

BLOCKING = os.environ.get("COMPARE_BLOCKING") == "1"


@serve.deployment(
    num_replicas=work.WORKERS,
    max_ongoing_requests=256,
    graceful_shutdown_timeout_s=1,
    logging_config={"enable_access_log": False, "log_level": "WARNING"},
)
class Images:
    """One session, one batch at a time."""

    def __init__(self) -> None:
        self.painter = work.Painter()

    @serve.batch(max_batch_size=work.MAX_BATCH_SIZE, batch_wait_timeout_s=work.WINDOW_SECONDS)
    async def paint(self, jobs: list[work.Job]) -> list[bytes]:
        if BLOCKING:
            return self.painter.paint(jobs)
        return await asyncio.to_thread(self.painter.paint, jobs)

    async def __call__(self, request: Request) -> Response:
        job = self.painter.check(await request.json())
        return Response(await self.paint(job), media_type="image/png")


def main() -> None:
    ray.init(
        # Replicas ask for a processor each; a logical one here, the kernel shares the real ones.
        num_cpus=max(2, work.WORKERS),
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
    )
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())  # after init, which sets its own
    serve.start(http_options={"host": "127.0.0.1", "port": work.PORT})
    serve.run(Images.bind(), route_prefix="/")
    stop.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
