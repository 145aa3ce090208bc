"""docs/avatars.md: every block of it runs, and Python and JavaScript agree on each user's image.

Over models/avatars, or, as long as that is not there, over a stand-in of its name and classes.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import sync_playwright

from distill.data.avatars import STYLES
from tests.bundles import write_bundle
from tests.service.test_process import serving

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "avatars.md").read_text()
BLOCKS = dict(re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
SHIPPED = ROOT / "models" / "avatars"
USERS = ["alice", "user-4711", "", "Zoë", "山田", "😀", "a b&c=d"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    models = tmp_path_factory.mktemp("avatars")
    if SHIPPED.is_dir():
        (models / "avatars").symlink_to(SHIPPED)
    else:
        write_bundle(models, "avatars", classes=list(STYLES), channels=3, resolution=64)
    write_bundle(models, "other")
    with serving(models, log=models / "log") as (_, url):
        yield url


@pytest.fixture(scope="module")
def program(url, tmp_path_factory) -> dict:
    """What the page's Python block defines, with the client that the server offers."""
    namespace: dict = {}
    wheel = tmp_path_factory.mktemp("client") / "client.whl"
    wheel.write_bytes(httpx.get(f"{url}/client", follow_redirects=True).content)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(wheel)
        exec(at(BLOCKS["python"], url), namespace)
    return namespace


def at(text: str, url: str) -> str:
    return text.replace("http://127.0.0.1:8000", url)


def test_it_says_that_the_model_is_not_there_exactly_as_long_as_it_is_not():
    assert ("is not in `models/` yet" in PAGE) == (not SHIPPED.is_dir())


def test_each_block_is_of_a_kind_that_is_run():
    assert list(BLOCKS) == ["python", "js", "bash", "html"]
    assert PAGE.count("\n```") == 2 * len(BLOCKS), "one block of each kind"


def test_the_address_is_for_ever_and_the_headers_are_those_of_the_table(url, program):
    answer = httpx.get(program["avatar_of"]("alice"))
    assert answer.status_code == 200
    assert answer.headers["x-model"] == program["tag"]
    assert f"the seed {answer.headers['x-seed']}," in PAGE
    assert len({program["seed_of"](user) for user in USERS}) == len(USERS)
    done = subprocess.run(
        ["bash", "-ec", at(BLOCKS["bash"], url)], capture_output=True, text=True, check=True
    )
    pinned, named = re.findall(r"^cache-control: (.*?)\r?$", done.stdout, re.I | re.M)
    assert f"| `Cache-Control` | `{pinned}` | `{named}` |" in PAGE
    assert done.stdout.count(f"etag: {answer.headers['etag']}") == 2
    assert (
        httpx.get(answer.url, headers={"if-none-match": answer.headers["etag"]}).status_code == 304
    )


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium (Debian: chromium)")
def test_javascript_makes_the_same_addresses_and_the_page_shows_the_image(url, program):
    seeds = [program["seed_of"](user) for user in USERS]
    addresses = [program["avatar_of"](user) for user in USERS]
    run = f"""async ([users, tag]) => {{
        {at(BLOCKS["js"], url)}
        return Promise.all(users.map(async (one) => [await seedOf(one), await avatarOf(one, tag)]));
    }}"""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        page = browser.new_page()
        page.goto(f"{url}/livez")
        assert page.evaluate(run, [USERS, program["tag"]]) == [
            list(one) for one in zip(seeds, addresses, strict=True)
        ]
        with page.expect_response(lambda answer: "/generate" in answer.url) as shown:
            page.set_content(at(BLOCKS["html"], url).replace("TAG", program["tag"]))
        image = page.get_by_role("img", name="Avatar of Alice")
        image.evaluate("image => image.decode()")
        assert image.evaluate("image => [image.naturalWidth, image.width]") == [64, 64]
        assert shown.value.headers["content-type"] == "image/png"
        assert shown.value.body() == httpx.get(addresses[0]).content
        browser.close()
