"""LitServe: a worker process that batches, behind FastAPI processes.

COMPARE_FAST_QUEUE=1 passes fast_queue=True, which is meant to put ZeroMQ between the two. In
LitServe 0.2.19 it changes nothing: LitServer hands TransportConfig a keyword that does not exist
(`transport_config` for `transport_type`), pydantic drops it, and the multiprocessing queue stays.
"""

import os
from typing import Any

import compare_work as work
import litserve
from fastapi import Response

FAST_QUEUE = os.environ.get("COMPARE_FAST_QUEUE") == "1"


class Api(litserve.LitAPI):
    """Decode each, draw together, answer each."""

    def setup(self, device: str) -> None:  # noqa: ARG002 (LitServe's signature)
        self.painter = work.Painter()

    def decode_request(self, request: dict[str, Any]) -> work.Job:
        return self.painter.check(request)

    def batch(self, inputs: list[work.Job]) -> list[work.Job]:
        return inputs

    def predict(self, jobs: list[work.Job]) -> list[bytes]:
        return self.painter.paint(jobs)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="image/png")


def main() -> None:
    api = Api(
        max_batch_size=work.MAX_BATCH_SIZE,
        batch_timeout=work.WINDOW_SECONDS,
        api_path=work.ROUTE,
    )
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=work.WORKERS,
        fast_queue=FAST_QUEUE,
    )
    # No num_api_servers: LitServe's own default, as many HTTP processes as workers.
    server.run(
        host="127.0.0.1",
        port=work.PORT,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )


if __name__ == "__main__":
    main()
