"""Many connections: what is beyond the limit is told so, and the server goes on."""

import re
import resource
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from service.http.connections import Room
from service.http.protocol import bounded
from tests.service.http.test_protocol import GET, OFFERS, App, Peer
from tests.service.http.test_protocol import serving as serving_app
from tests.service.test_process import serving
from tests.service.waiting import until

# The limit on open files.

MAKE_ROOM = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
from service.http.connections import make_room
try:
    print(make_room({wanted}), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "says"),
    [
        (1024, 1024, None, "896 1024"),
        (256, 2000, None, "1872 2000"),
        (256, 20_000, None, "10000 10128"),
        (256, 20_000, 500, "500 628"),
        (2000, 20_000, 500, "500 2000"),
        (64, 64, None, "16 64"),
        (64, 256, 1000, "ConnectionsError SID_MAX_CONNECTIONS=1000: .* 256 files.* 128 conn"),
    ],
)
def test_the_limit_follows_from_the_files_that_may_be_open(soft, hard, wanted, says):
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < hard:
        pytest.skip("this machine allows fewer")
    code = MAKE_ROOM.format(soft=soft, hard=hard, wanted=wanted)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert re.match(says, done.stdout)


def test_what_does_not_fit_is_one_line(models):
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--models", str(models)]
    done = subprocess.run(
        ["sh", "-c", f"ulimit -n 256; SID_MAX_CONNECTIONS=5000 exec {' '.join(command)}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: SID_MAX_CONNECTIONS=5000: this process may open 256 files"
    )
    assert done.stderr.count("\n") == 1


# Beyond the limit.


@pytest.fixture
def crowded():
    """A server of two connections that are both taken: its address, they, what was counted."""
    refused: list[None] = []
    statuses: list[int] = []
    room = Room(2, lambda: refused.append(None))
    protocol = bounded(10, room=room, count_refusal=statuses.append)
    with serving_app(App(), protocol) as address, ExitStack() as stack:
        peers = [Peer(address) for _ in range(2)]
        for peer in peers:
            stack.enter_context(peer.socket)
            peer.send(GET % b"wait")
        yield address, peers, refused, statuses


def test_a_request_beyond_the_limit_is_refused_in_clear_words_and_counted(crowded):
    address, _, refused, statuses = crowded
    for offer in (b"", OFFERS["h2c"]):
        peer = Peer(address)
        peer.send(GET[:-2] % b"a" + offer + b"\r\n")
        assert peer.problem() == (503, "too-many-connections")
        assert peer.ended()
    assert (len(refused), statuses) == (2, [503, 503])


def test_a_refusal_says_when_to_come_back(crowded):
    peer = Peer(crowded[0])
    peer.send(GET % b"a")
    assert peer.answer()[1]["retry-after"] == "1"


@pytest.mark.parametrize("path", [b"livez", b"readyz", b"metrics?x=y"])
def test_probes_are_answered_even_so_once(crowded, path):
    peer = Peer(crowded[0])
    peer.send((GET % path) * 2)
    status, headers, _ = peer.answer()
    assert (status, headers["connection"]) == (200, "close")
    assert peer.ended()
    assert crowded[2] == []


def test_those_who_only_take_a_place_beyond_it_make_way(crowded):
    address, _, refused, _ = crowded
    idle = [Peer(address) for _ in range(100)]
    for _ in range(5):
        peer = Peer(address)
        peer.send(GET % b"livez")
        assert peer.answer()[0] == 200
    assert len(refused) > 80
    assert idle


def test_a_place_that_becomes_free_is_taken(crowded):
    address, peers, _, _ = crowded
    peers[0].file.close()
    peers[0].socket.close()

    def served() -> bool:
        peer = Peer(address)
        peer.send(GET % b"a")
        return peer.answer()[0] == 200

    until(served)


# A real server.


@pytest.mark.slow
def test_a_flood_of_idle_connections_stops_no_probe_and_is_in_the_metrics(models, tmp_path):
    log = tmp_path / "log"
    with serving(models, log=log, SID_MAX_CONNECTIONS="40") as (_, url), ExitStack() as stack:
        address = ("127.0.0.1", int(url.rsplit(":")[-1]))
        for _ in range(200):
            stack.enter_context(socket.create_connection(address))
        assert httpx.get(f"{url}/livez").status_code == 200
        refused = httpx.post(f"{url}/generate", json={})
        assert refused.status_code == 503
        assert refused.json()["type"].endswith(":too-many-connections")
        metrics = httpx.get(f"{url}/metrics").text
        assert re.search(r"^sid_connections_limit 40\.0$", metrics, re.M)
        assert 40 <= float(re.search(r"^sid_connections (\S+)$", metrics, re.M)[1]) < 60
        assert float(re.search(r"^sid_connections_refused_total (\S+)$", metrics, re.M)[1]) > 100
        assert 'sid_requests_total{model="",route="other",status="503"} 1.0' in metrics
        stack.close()
        until(lambda: httpx.post(f"{url}/generate", json={}).status_code == 200)
    assert log.read_text().count("too many connections") == 1


@pytest.mark.slow
def test_running_out_of_files_is_logged_and_passes(models, tmp_path):
    log = tmp_path / "log"
    with serving(models, log=log) as (process, url), httpx.Client(base_url=url) as before:
        assert before.get("/livez").status_code == 200
        usual = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        files = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (files, usual[1]))
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/livez")
        until(lambda: "out of file descriptors" in log.read_text())
        assert before.get("/livez").status_code == 200, "who is connected notices nothing"
        time.sleep(1.5)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, usual)
        assert httpx.get(f"{url}/livez").status_code == 200
    assert log.read_text().count("out of file descriptors") == 1


@pytest.mark.slow
def test_how_long_a_connection_may_idle_and_how_large_a_head_may_be_are_settings(models):
    settings = {"SID_KEEP_ALIVE_SECONDS": "2", "SID_MAX_HEAD_BYTES": "40000"}
    with serving(models, **settings) as (_, url):
        peer = Peer(("127.0.0.1", int(url.rsplit(":")[-1])))
        for size in (10, 39_000):
            peer.send(b"GET /livez HTTP/1.1\r\nhost: test\r\nx: %b\r\n\r\n" % (b"y" * size))
            assert peer.answer()[0] == 200
        started = time.monotonic()
        assert peer.ended()
        assert 1 < time.monotonic() - started < 30
        peer = Peer(("127.0.0.1", int(url.rsplit(":")[-1])))
        peer.send(b"GET /livez HTTP/1.1\r\nhost: test\r\nx: %b\r\n\r\n" % (b"y" * 41_000))
        assert peer.problem() == (431, "head-too-large")


def test_by_default_a_connection_idles_longer_than_proxies_keep_theirs(settings):
    assert settings.keep_alive_seconds > 60
