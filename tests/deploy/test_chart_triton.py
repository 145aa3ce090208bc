"""The chart's options of Triton, tried with the real server."""

import asyncio
from collections import Counter

import httpx
import pytest

from tests.bundles import write_bundle
from tests.service.test_process import serving
from tests.service.triton import triton_over

pytestmark = pytest.mark.slow
AGE_SECONDS = 0.5  # the chart's 20 s, in a hurry


def test_connections_that_come_of_age_cost_no_request(tmp_path):
    """Each gateway leaves them and looks up the servers anew, while it is under load."""
    write_bundle(tmp_path)

    async def draw(url):
        found = Counter()
        end = asyncio.get_running_loop().time() + 10 * AGE_SECONDS

        async def client(http, seed):
            while asyncio.get_running_loop().time() < end:
                seed += 16
                found[(await http.post("/generate", json={"seed": seed})).status_code] += 1

        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            await asyncio.gather(*(client(http, seed) for seed in range(16)))
        return found

    age = f"--grpc-max-connection-age={round(AGE_SECONDS * 1000)}"
    with (
        triton_over(tmp_path, age) as triton,
        serving(tmp_path, SID_TRITON=triton.address) as (_, url),
    ):
        found = asyncio.run(draw(url))
    assert set(found) == {200}, found
