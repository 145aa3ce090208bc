"""The playground in a real browser (Debian's Chromium), over the real server."""

import io
import itertools
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from service.http.security import new_key
from tests.bundles import A_WHILE, write_bundle
from tests.fresh_venv import fresh_venv, run_in
from tests.service.test_process import serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="needs Chromium (Debian: chromium)"),
]

PIXELS = """async (image) => {
    await image.decode();
    const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight).getContext("2d");
    canvas.drawImage(image, 0, 0);
    return Array.from(canvas.getImageData(0, 0, image.naturalWidth, image.naturalHeight).data);
}"""

expect.set_options(timeout=60_000)  # how long a browser takes is a matter of what else runs

OPENING_SEED = 276
WORDS = [f"{one}{two}" for one in "abcdefghijklmnopqrstuvwxyz" for two in range(40)][:1000]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # One for the module and no longer: while it lives, asyncio cannot run in this thread.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    context.set_default_timeout(60_000)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page; that nothing complains on its console is part of every test that asks for it."""
    page = context.new_page()
    complaints = watched(page)
    yield page
    assert complaints == []


def watched(page: Page) -> list[str]:
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return complaints


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("playground")
    models = folder / "models"
    write_bundle(models, classes=["Trouser", "O'Brien & sons", "Dress"])
    write_bundle(models, "colour", channels=3, resolution=16, steps=2)
    write_bundle(models, "plain", classes=[])
    write_bundle(models, "digits", classes=["1", "2", "3"])
    write_bundle(models, "words", classes=WORDS)
    (models / "DEFAULT").write_text("tiny")
    with serving(models, log=folder / "log") as (_, url):
        yield url


def drawn(url: str, **asked: object) -> bytes:
    answer = httpx.get(f"{url}/generate", params=asked)
    assert answer.status_code == 200, answer.text
    return answer.content


def assert_staged(page: Page, file: bytes) -> None:
    """The large image is that of a PNG file, pixel for pixel."""
    assert_shows(page.locator("#stage-image"), file)


def assert_shows(image: Locator, file: bytes) -> None:
    expected = list(Image.open(io.BytesIO(file)).convert("RGBA").tobytes())
    assert image.evaluate(PIXELS) == expected


def radio(page: Page, name: str) -> Locator:
    """The entry of a class in the list."""
    return page.get_by_role("radio", name=name, exact=True)


def opened(page: Page, url: str, query: str = "") -> Page:
    page.goto(f"{url}/{query}")
    expect(page.locator("#summary")).to_contain_text("images in")
    expect(page.locator("#stage-timing .engine").first).to_be_visible()
    return page


def test_it_opens_on_images_and_says_what_they_took(page, url):
    opened(page, url, "?model=tiny")
    expect(page.locator("#tiles img")).to_have_count(24)
    expect(page.locator("#tagline")).to_contain_text("One step")
    assert re.search(r"24 images in \S+ ms", page.inner_text("#summary"))
    for took in page.locator("#tiles .took").all():
        assert re.fullmatch(r"[0-9.]+ ms", took.inner_text())
        assert "queue" in took.get_attribute("title")
    assert re.search(
        r"queue [0-9.]+ ms.*engine [0-9.]+ ms.*file [0-9.]+ ms",
        page.inner_text("#stage-timing"),
        re.S,
    )
    assert_staged(page, drawn(url, model="tiny", seed=OPENING_SEED))


@pytest.mark.long
def test_the_images_of_a_network_of_latents_are_shown_as_its_decoder_makes_them(
    page, latent_models, tmp_path
):
    with serving(latent_models, log=tmp_path / "log") as (_, url):
        opened(page, url, "?model=latent")
        expect(page.locator("#tiles img")).to_have_count(24)
        assert_staged(page, drawn(url, model="latent", seed=OPENING_SEED))
        assert page.locator("#stage-image").evaluate("image => image.naturalWidth") == 16


def test_class_seed_and_model_are_picked_and_stand_in_the_address(page, url):
    opened(page, url)
    page.select_option("#model", "tiny")
    radio(page, "O'Brien & sons").check()
    page.fill("#seed", "18446744073709551615")
    expect(page.locator("#stage-caption")).to_have_text("O'Brien & sons, seed 18446744073709551615")
    assert_staged(page, drawn(url, model="tiny", class_label=1, seed=2**64 - 1))
    shared = page.url
    other = page.context.new_page()
    other.goto(shared)
    expect(other.locator("#stage-caption")).to_have_text(
        "O'Brien & sons, seed 18446744073709551615"
    )
    expect(radio(other, "O'Brien & sons")).to_be_checked()


def test_classes_named_by_digits_stay_what_was_chosen_over_a_reload(page, url):
    opened(page, url, "?model=digits&seed=5")
    for index, name in enumerate(["1", "2", "3"]):
        radio(page, name).check()
        expect(page.locator("#stage-caption")).to_have_text(f"{name}, seed 5")
        assert_staged(page, drawn(url, model="digits", class_label=index, seed=5))
        page.reload()
        expect(page.locator("#stage-caption")).to_have_text(f"{name}, seed 5")
        expect(radio(page, name)).to_be_checked()
        opened(page, url, f"?model=digits&seed=5&class_label={index}")
        expect(page.locator("#stage-caption")).to_have_text(f"{name}, seed 5")


def test_it_starts_on_the_default_model_and_its_opening_image(page, url):
    opened(page, url)
    assert page.input_value("#model") == "tiny"
    assert "model=tiny" in page.url
    assert_staged(page, drawn(url, seed=OPENING_SEED))


def test_each_class_has_a_small_image_that_the_browser_keeps(page, url):
    answers = []
    page.on("response", lambda answer: answers.append(answer))
    opened(page, url, "?model=tiny&seed=3")
    tag = httpx.get(f"{url}/models/tiny").json()["tag"]
    for index, name in enumerate(["Trouser", "O'Brien & sons", "Dress"]):
        image = page.locator("#class-list label", has=radio(page, name)).locator("img")
        expect(image).to_have_attribute("src", re.compile("^blob:"))
        expected = drawn(url, class_label=index, seed=OPENING_SEED)
        assert_shows(image, expected)
    pinned = [one for one in answers if parse_qs(urlsplit(one.url).query).get("model") == [tag]]
    assert len(pinned) == 3
    assert {one.headers["cache-control"] for one in pinned} == {
        "public, max-age=31536000, immutable"
    }
    radio(page, "Dress").check()
    page.fill("#seed", str(OPENING_SEED))  # the small image, large
    expect(page.locator("#stage-caption")).to_have_text(f"Dress, seed {OPENING_SEED}")
    assert_staged(page, expected)


def test_classes_are_chosen_by_keyboard(page, url):
    opened(page, url, "?model=tiny&seed=5")
    radio(page, "Any, by seed").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(radio(page, "O'Brien & sons")).to_be_focused()
    expect(page.locator("#stage-caption")).to_have_text("O'Brien & sons, seed 5")
    expect(page.get_by_role("group", name="Class")).to_be_visible()


def test_a_thousand_classes_are_drawn_as_they_come_into_view_and_found_by_name(page, url):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    opened(page, url, "?model=words&class_label=m7&seed=5&n=12")
    expect(radio(page, "m7")).to_be_in_viewport()  # though it stands in the middle
    image = page.locator("#class-list label", has=radio(page, "m7")).locator("img")
    expect(image).to_have_attribute("src", re.compile("^blob:"))
    last = page.locator("#class-list label").last
    page.locator("#class-list").evaluate("list => list.scrollTo(0, list.scrollHeight)")
    expect(last.locator("img")).to_have_attribute("src", re.compile("^blob:"))
    assert sum("/generate?" in one for one in asked) < 150

    page.fill("#class-search", " Q3")
    expect(page.locator("#class-found")).to_have_text("11 of 1000 classes")  # q3, q30 to q39
    radio(page, "q33").check()
    expect(page.locator("#stage-caption")).to_have_text("q33, seed 5")
    page.fill("#class-search", "nothing like it")
    expect(page.locator("#class-found")).to_have_text("0 of 1000 classes")
    expect(radio(page, "Any, by seed")).to_be_visible()


def test_a_model_without_classes_and_one_in_colour_are_drawn_too(page, url):
    opened(page, url, "?model=plain")
    expect(page.locator("#classes")).to_be_hidden()
    assert_staged(page, drawn(url, model="plain", seed=OPENING_SEED))
    page.select_option("#model", "colour")
    expect(page.locator("#classes")).to_be_visible()
    expect(page.locator("#about")).to_contain_text("onnxruntime")
    expect(page.locator("#tagline")).to_have_text("2 steps of the network draw an image.")


def test_an_address_that_makes_no_sense_opens_on_what_there_is(page, url):
    opened(page, url, "?seed=abc&n=9999&toward=-1&mix=7")
    assert page.input_value("#seed") == str(OPENING_SEED)
    expect(radio(page, "Any, by seed")).to_be_checked()


@pytest.mark.parametrize(
    ("query", "said", "way_on"),
    [
        ("?model=nope&class_label=Dress&seed=5", "no model “nope”", "Draw with tiny"),
        ("?model=tiny&class_label=<script>&seed=5", "no class “<script>”", "Draw any class"),
        ("?model=tiny&class_label=length&seed=5", "no class “length”", "Draw any class"),
        pytest.param(
            *("?model=plain&class_label=Dress&seed=5", "plain has no class “Dress”"),
            "Draw any class",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_link_to_what_is_gone_says_so_and_shows_nothing_else(page, url, query, said, way_on):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{url}/{query}")
    expect(page.locator("#notice")).to_contain_text(said)
    page.wait_for_load_state("networkidle")
    expect(page.locator("#stage-image")).to_be_hidden()
    expect(page.locator("#stage-caption")).to_have_text("No image")
    expect(page.locator("#tiles li")).to_have_count(0)
    expect(page.get_by_role("radio", checked=True)).to_have_count(0)
    assert not [one for one in asked if "/generate?" in one and "seed=5" in one]
    for button in ("#download", "#copy-curl", "#copy-python", "#share", "#play"):
        expect(page.locator(button)).to_be_disabled()
    assert Axe().run(page).violations_count == 0

    page.get_by_role("button", name=way_on).click()
    expect(page.locator("#notice")).to_be_hidden()
    model = "plain" if "plain" in query else "tiny"
    expect(page.locator("#stage-caption")).to_contain_text("seed 5")
    assert_staged(page, drawn(url, model=model, seed=5))
    expect(page.locator("#tiles img")).to_have_count(24)
    page.go_back()  # to the link
    expect(page.locator("#notice")).to_contain_text(said)
    expect(page.locator("#stage-image")).to_be_hidden()
    page.select_option("#model", "colour")
    expect(page.locator("#notice")).to_be_hidden()
    expect(page.locator("#stage-image")).to_be_visible()
    expect(page.locator("#share")).to_be_enabled()


def test_back_and_forward_return_to_the_images_before_and_after(page, url):
    opened(page, url, "?model=tiny&seed=5")
    caption, tile = page.locator("#stage-caption"), page.locator("#tiles .seed").first
    radio(page, "Dress").check()
    expect(caption).to_have_text("Dress, seed 5")
    page.locator("#seed").select_text()
    page.keyboard.type("4321")  # one thing, though each digit draws
    expect(caption).to_have_text("Dress, seed 4321")
    page.keyboard.press("Tab")
    page.select_option("#model", "digits")
    expect(caption).to_contain_text("seed 4321")
    expect(radio(page, "Any, by seed")).to_be_checked()  # digits has no Dress
    expect(tile).to_have_text("4322")

    page.go_back()
    expect(caption).to_have_text("Dress, seed 4321")
    expect(page.locator("#model")).to_have_value("tiny")
    expect(radio(page, "Dress")).to_be_checked()
    assert_staged(page, drawn(url, model="tiny", class_label="Dress", seed=4321))
    page.go_back()
    expect(caption).to_have_text("Dress, seed 5")
    expect(page.locator("#seed")).to_have_value("5")
    expect(tile).to_have_text("6")
    page.go_back()
    expect(radio(page, "Any, by seed")).to_be_checked()
    assert_staged(page, drawn(url, model="tiny", seed=5))
    page.go_forward()
    expect(caption).to_have_text("Dress, seed 5")


def test_a_slider_that_is_dragged_and_a_key_that_is_held_are_one_step_back(page, url):
    opened(page, url, "?model=tiny&seed=0")
    caption = page.locator("#stage-caption")
    page.locator("#scrubber").scroll_into_view_if_needed()
    box = page.locator("#scrubber").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 10, middle)
    page.mouse.down()
    for share in (0.2, 0.4, 0.6, 0.8):
        page.mouse.move(box["x"] + share * box["width"], middle)
    page.mouse.up()
    scrubbed = page.input_value("#seed")
    assert int(scrubbed) > 500
    page.locator("h1").click()
    for _ in range(5):
        page.keyboard.down("ArrowRight")  # from the second on, it repeats
    page.keyboard.up("ArrowRight")
    expect(caption).to_contain_text(f"seed {int(scrubbed) + 5}")
    page.go_back()
    expect(page.locator("#seed")).to_have_value(scrubbed)
    expect(caption).to_contain_text(f"seed {scrubbed}")
    page.go_back()
    expect(caption).to_have_text(re.compile("seed 0$"))
    assert_staged(page, drawn(url, model="tiny", seed=0))


def test_fast_scrubbing_ends_on_the_last_image(page, url):
    opened(page, url, "?model=tiny&class_label=Dress&seed=3&toward=8")
    page.click("#play")  # so that some steps are there already, and others are not
    page.click("#play")
    for step in (*range(33), *range(32, 11, -1)):
        page.locator("#mix").evaluate(
            "(mix, step) => { mix.value = step; mix.dispatchEvent(new Event('input')); }", step
        )
    expect(page.locator("#stage-caption")).to_have_text("Dress, seed 3, 38 % of the way to 8")
    page.wait_for_timeout(300)  # whatever was still under way
    expected = drawn(url, model="tiny", class_label="Dress", seed=3, toward=8, mix=0.375)
    assert_staged(page, expected)


def test_dice_scrubber_and_arrow_keys_change_the_seed(page, url):
    opened(page, url, "?model=tiny&seed=1500")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#seed")).to_have_value("1501")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#stage-caption")).to_contain_text("seed 1499")
    page.locator("#scrubber").fill("20")
    expect(page.locator("#stage-caption")).to_contain_text("seed 1020")
    page.click("#dice")
    expect(page.locator("#stage-caption")).not_to_contain_text("seed 1020")
    seed = page.input_value("#seed")
    assert seed in page.url
    page.keyboard.press("ArrowRight")  # from the button too
    expect(page.locator("#seed")).to_have_value(str((int(seed) + 1) % 2**64))
    page.uncheck("#shortcuts")
    page.locator("h1").click()
    page.keyboard.press("r")
    expect(page.locator("#seed")).to_have_value(str((int(seed) + 1) % 2**64))


def test_what_is_no_seed_is_said_and_nothing_is_drawn(page, url):
    opened(page, url, "?model=tiny&seed=5")
    for wrong in ("-1", "abc", str(2**64)):
        page.fill("#seed", wrong)
        expect(page.locator("#seed")).to_have_attribute("aria-invalid", "true")
        expect(page.locator("#notice")).to_contain_text(
            "whole number from 0 to 18446744073709551615"
        )
    page.fill("#seed", "6")
    expect(page.locator("#stage-caption")).to_contain_text("seed 6")
    expect(page.locator("#notice")).to_be_hidden()


def test_a_walk_is_played_stopped_and_scrubbed(page, url):
    opened(page, url, "?model=tiny&class_label=Dress&seed=3&toward=8")
    page.click("#play")
    expect(page.locator("#play")).to_have_text("Pause")
    for share in ("100 %", "0 %"):  # there and back again
        page.wait_for_function(
            "share => document.getElementById('mix-shown').value === share", arg=share
        )
    page.click("#play")
    expect(page.locator("#play")).to_have_text("Play")
    assert "mix=" in page.url
    page.locator("#mix").fill("8")
    expect(page.locator("#stage-caption")).to_have_text("Dress, seed 3, 25 % of the way to 8")
    assert_staged(page, drawn(url, model="tiny", class_label="Dress", seed=3, toward=8, mix=0.25))


def test_play_without_a_second_seed_takes_a_random_one(page, url):
    opened(page, url, "?model=tiny&seed=3")
    page.locator("h1").click()
    page.keyboard.press("Space")
    expect(page.locator("#toward")).not_to_have_value("")
    expect(page.locator("#mix")).not_to_have_value("0")


def test_zoom_is_crisp_and_used_by_keyboard(page, url):
    opened(page, url, "?model=tiny&seed=40")
    tile = page.locator("#tiles button").nth(2)
    tile.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#zoom-title")).to_contain_text("seed 43")
    style = "element => getComputedStyle(element).imageRendering"
    assert page.locator("#zoom-image").evaluate(style) == "pixelated"
    page.keyboard.press("ArrowRight")
    expect(page.locator("#zoom-title")).to_contain_text("seed 44")
    page.keyboard.press("Escape")
    expect(page.locator("#zoom")).to_be_hidden()
    expect(tile).to_be_focused()
    tile.click()
    page.click("#zoom-use")
    expect(page.locator("#stage-caption")).to_contain_text("seed 43")


def test_from_the_gallery_one_walks_to_another_image(page, url):
    opened(page, url, "?model=tiny&seed=40")
    page.locator("#tiles button").nth(5).click()
    page.click("#zoom-walk")
    expect(page.locator("#toward")).to_have_value("46")
    expect(page.locator("#play")).to_have_text("Pause")


@pytest.mark.parametrize(
    ("width", "height"), [(375, 667), pytest.param(1280, 700, marks=pytest.mark.long)]
)
def test_walk_to_here_shows_the_walk(page, url, width, height):
    page.set_viewport_size({"width": width, "height": height})
    opened(page, url, "?model=words&seed=40")  # its many classes part image and walk
    page.locator("#tiles button").last.click()
    page.click("#zoom-walk")
    expect(page.locator("#toward")).to_have_value("64")
    for id in ("stage-image", "play", "mix"):
        expect(page.locator(f"#{id}")).to_be_in_viewport(ratio=1)
    expect(page.locator("#play")).to_be_focused()


def test_on_a_phone_the_image_stays_in_view_while_it_is_controlled(page, url):
    page.set_viewport_size({"width": 375, "height": 667})
    opened(page, url, "?model=tiny&class_label=Dress&seed=3&toward=8")
    for id in ("class-list", "seed", "scrubber", "play", "mix"):
        page.locator(f"#{id}").scroll_into_view_if_needed()
        expect(page.locator("#stage-image")).to_be_in_viewport(ratio=1)
    page.locator("#mix").fill("8")
    expect(page.locator("#stage-caption")).to_be_in_viewport(ratio=1)
    expect(page.locator("#stage-caption")).to_have_text("Dress, seed 3, 25 % of the way to 8")
    place = "id => document.getElementById(id).getBoundingClientRect()"
    for _ in range(8):  # backwards, what has the focus is not hidden beneath the image
        page.keyboard.press("Shift+Tab")
        focused = page.evaluate("document.activeElement.getBoundingClientRect().toJSON()")
        assert focused["top"] >= page.evaluate(place, "view")["bottom"] - 1
    page.locator("#tiles button").last.scroll_into_view_if_needed()  # the gallery has all the room
    expect(page.locator("#stage-image")).not_to_be_in_viewport()


def test_a_walk_is_ended(page, url):
    opened(page, url, "?model=tiny&class_label=Dress&seed=3&toward=8&mix=0.5")
    page.click("#play")
    page.get_by_role("button", name="End the walk").click()
    expect(page.locator("#stage-caption")).to_have_text("Dress, seed 3")
    assert_staged(page, drawn(url, model="tiny", class_label="Dress", seed=3))
    expect(page.locator("#play")).to_have_text("Play")
    expect(page.locator("#play")).to_be_focused()  # for what had the focus is gone
    expect(page.locator("#toward")).to_have_value("")
    expect(page.locator("#mix")).to_be_disabled()
    expect(page.locator("#end")).to_be_hidden()
    assert "toward" not in page.url
    page.go_back()
    expect(page.locator("#stage-caption")).to_contain_text("of the way to 8")


def test_tiles_tell_their_seeds(page, url):
    opened(page, url, "?model=tiny&class_label=Dress&seed=18446744073709551614&n=12")
    seeds = ["18446744073709551615", *map(str, range(11))]
    expect(page.locator("#tiles .seed")).to_have_text(seeds)
    for seed in seeds:
        expect(page.get_by_role("button", name=f"Dress, seed {seed}: zoom")).to_be_visible()
    sizes = "list => [list.scrollWidth, list.clientWidth]"
    wide, room = page.locator("#tiles li").first.evaluate(sizes)
    assert wide <= room  # twenty digits too


def test_pixels_are_crisp_or_smooth_as_chosen_and_kept(page, url):
    opened(page, url, "?model=tiny&seed=40")
    style = "element => getComputedStyle(element).imageRendering"
    image, tile = page.locator("#stage-image"), page.locator("#tiles img").first
    assert image.evaluate(style) == tile.evaluate(style) == "pixelated"
    page.get_by_role("checkbox", name="Smooth").check()
    assert image.evaluate(style) == tile.evaluate(style) == "auto"
    opened(page, url, "?model=tiny&seed=40")
    expect(page.get_by_role("checkbox", name="Smooth")).to_be_checked()
    assert page.locator("#stage-image").evaluate(style) == "auto"
    page.get_by_role("checkbox", name="Smooth").uncheck()
    assert page.locator("#stage-image").evaluate(style) == "pixelated"


def test_copied_moves_no_button(page, url):
    opened(page, url, "?model=tiny&seed=40")
    places = """() => Array.from(document.querySelectorAll(".actions button, .actions label"),
        (one) => JSON.stringify(one.getBoundingClientRect()))"""
    before = page.evaluate(places)
    for button in ("copy-curl", "copy-python", "share"):
        page.click(f"#{button}")
        expect(page.locator(f"#{button}")).to_have_text("Copied")
        assert page.evaluate(places) == before


def test_what_is_taken_along_draws_the_same_image(page, url, tmp_path):
    asked = {"model": "tiny", "class_label": "O'Brien & sons", "seed": 7, "toward": 8, "mix": 0.5}
    expected = drawn(url, **asked)
    opened(page, url, "?" + str(httpx.QueryParams(asked)))
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.path().read_bytes() == expected
    name = download.value.suggested_filename
    assert name == "o-brien-sons-7-toward-8-0.5.png"

    page.click("#copy-curl")
    expect(page.locator("#copy-curl")).to_have_text("Copied")
    subprocess.run(
        ["bash", "-c", page.evaluate("navigator.clipboard.readText()")], cwd=tmp_path, check=True
    )
    assert (tmp_path / name).read_bytes() == expected
    (tmp_path / name).unlink()

    page.click("#copy-python")
    expect(page.locator("#copy-python")).to_have_text("Copied")
    program = page.evaluate("navigator.clipboard.readText()")
    install = program.splitlines()[0].removeprefix("# pip ").split()
    assert page.locator("#client").evaluate("link => link.href") == install[-1]
    python = fresh_venv(tmp_path / "app")
    run_in(python, "-m", "pip", *install, cwd=tmp_path)
    run_in(python, "-c", program, cwd=tmp_path)
    assert (tmp_path / name).read_bytes() == expected

    page.click("#share")
    expect(page.locator("#share")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == page.url


def test_where_the_browser_forbids_copying_the_text_is_shown(page, url):
    page.add_init_script("delete Navigator.prototype.clipboard")  # as on a page without https
    opened(page, url, "?model=tiny&seed=7")
    page.click("#copy-curl")
    expect(page.locator("#text-area")).to_have_value(re.compile("^curl -o 7.png"))


def test_an_overloaded_server_is_waited_for(context, tmp_path):
    write_bundle(tmp_path / "models", turns=A_WHILE // 4)  # a slow browser overloads it too
    small = {"SID_QUEUE_SIZE": "1", "SID_MAX_BATCH_SIZE": "1", "SID_CONCURRENCY": "1"}
    with serving(tmp_path / "models", log=tmp_path / "log", **small) as (_, url):
        page = context.new_page()
        page.add_init_script("""addEventListener("DOMContentLoaded", () => new MutationObserver(
            () => (window.said ??= []).push(document.getElementById("notice").textContent)
        ).observe(document.getElementById("notice"), {childList: true}))""")
        page.goto(f"{url}/?n=24")
        expect(page.locator("#tiles img")).to_have_count(24)
        expect(page.locator("#notice")).to_be_hidden()
        refused = re.search(
            r'sid_rejections_total\{model="tiny",.*active",reason="queue_full"\} (\d+)',
            httpx.get(f"{url}/metrics").text,
        )
        assert int(refused[1]) > 0
        assert any("more to draw than it can take now" in text for text in page.evaluate("said"))


def test_a_server_that_is_gone_is_said_and_tried_again(context, tmp_path):
    write_bundle(tmp_path / "models")
    with serving(tmp_path / "models") as (_, url):
        page = opened(context.new_page(), url)
    page.fill("#seed", "77")
    expect(page.locator("#notice")).to_contain_text("The server cannot be reached.")
    expect(page.locator("#tiles .failed")).to_have_count(24)
    with serving(tmp_path / "models", "--port", str(urlsplit(url).port)):
        page.click("#notice button")
        expect(page.locator("#stage-caption")).to_contain_text("seed 77")
        page.locator("#tiles .failed button").first.click()
        expect(page.locator("#tiles img")).to_have_count(1)


def test_a_server_with_keys_asks_for_one(context, tmp_path):
    write_bundle(tmp_path / "models")
    made = new_key("alice")
    (tmp_path / "keys").write_text(made.line)
    with serving(tmp_path / "models", SID_KEYS=str(tmp_path / "keys")) as (_, url):
        page = context.new_page()
        page.goto(url)
        expect(page.locator("#key")).to_be_visible()
        expect(page.locator("#key-why")).to_contain_text("asks for an API key")
        page.keyboard.press("Escape")
        expect(page.locator("#notice")).to_contain_text("asks for an API key")
        page.click("#notice button")
        page.fill("#key-input", "wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-why")).to_contain_text("That API key is wrong")
        assert Axe().run(page).violations_count == 0
        page.keyboard.press("Escape")
        expect(page.locator("#notice")).to_contain_text("That API key is wrong")
        page.click("#notice button")
        expect(page.locator("#key-why")).to_contain_text("asks for an API key")  # it is forgotten
        page.fill("#key-input", made.secret)
        page.keyboard.press("Enter")
        expect(page.locator("#tiles img")).to_have_count(24)
        page.click("#copy-curl")
        copied = page.evaluate("navigator.clipboard.readText()")
        assert made.secret not in copied
        assert "X-API-Key: $SID_KEY" in shlex.split(copied)
        assert made.secret not in page.url


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1280, "light"),
        (320, "dark"),
        *(
            pytest.param(*one, marks=pytest.mark.long)
            for one in itertools.product([1280, 768, 375, 320], ["light", "dark"])
            if one not in {(1280, "light"), (320, "dark")}
        ),
    ],
)
def test_anybody_can_use_it(browser, url, scheme, width):
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    page = opened(context.new_page(), url, "?model=tiny&seed=3&toward=8&n=12")
    found = [Axe().run(page)]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#tiles button").first.click()
    found.append(Axe().run(page))
    page.click("#zoom-close")
    page.fill("#seed", "x")
    found.append(Axe().run(page))
    context.close()
    for result in found:
        assert result.violations_count == 0, result.generate_report()


def test_the_theme_is_chosen_and_kept(page, url):
    opened(page, url, "?model=tiny")
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(ground)
    page.click("#theme")
    dark = page.evaluate(ground)
    assert dark != light
    opened(page, url, "?model=tiny")
    assert page.evaluate(ground) == dark


@pytest.mark.parametrize("path", ["/?model=tiny", "/docs"])
def test_nothing_comes_from_anywhere_else(page, url, path):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url + path)
    page.wait_for_load_state("networkidle")
    assert asked
    foreign = [one for one in asked if not one.startswith((url, "blob:", "data:"))]
    assert foreign == []


def test_files_are_not_kept_beyond_an_upgrade_and_run_nothing_foreign(url):
    answer = httpx.get(f"{url}/")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    script = httpx.get(f"{url}/playground/main.js")
    assert script.headers["cache-control"] == "no-cache"
    again = httpx.get(
        f"{url}/playground/main.js", headers={"if-none-match": script.headers["etag"]}
    )
    assert again.status_code == 304
    assert httpx.get(f"{url}/playground/..%2fsettings.py").status_code == 404
