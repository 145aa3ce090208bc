"""The emoji data set: what is drawn, what is left out, and what a person is told."""

import json
import subprocess
import sys
import zipfile

import pytest
import typer
from typer.testing import CliRunner

from distill import emoji as module
from distill.commands.emoji import emoji
from distill.data import load_dataset
from distill.emoji import SETS, Icon, draw, fetch_icons, one_tone_each, read_icons
from distill.errors import UserError

RED = '<path fill="#ff0000" d="M0 0h{0}v{0}H0z"/>'
TONES = ("", "-light", "-medium-light", "-medium", "-medium-dark", "-dark")
STATED = {"fluent-emoji-flat": 32, "noto": 128, "twemoji": 36}  # each set's own size of a drawing


def write_set(folder, source, suffix):
    """One fruit, one person in six tones, one old drawing and one swatch, all red squares."""
    side = STATED[source]
    people = [f"cook{tone}{suffix if tone else ''}" for tone in TONES]
    people += [f"man{tone}{suffix}-beard" for tone in TONES[1:]]
    names = ["red-apple", *people, "old-apple", "skin"]
    (folder / source).mkdir(parents=True)
    contents = {
        "icons": {
            "icons": {name: {"body": RED.format(side)} for name in names},
            "width": side,
            "height": side,
            "aliases": {"apple": {"parent": "red-apple"}},
        },
        "metadata": {
            "categories": {
                "Food & Drink": ["red-apple"],
                "People & Body": people,
                "Component": ["skin"],
            }
        },
        "info": {
            "name": source,
            "author": {"name": "A", "url": "https://a.example"},
            "license": {"title": "MIT", "url": "https://b.example"},
        },
    }
    for name, content in contents.items():
        (folder / source / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture
def icons(tmp_path):
    folder = tmp_path / "@iconify-json"
    for source in SETS:
        write_set(folder, source, "" if source == "fluent-emoji-flat" else "-skin-tone")
    return folder


def run(*arguments):
    app = typer.Typer()
    app.command()(emoji)
    return CliRunner().invoke(app, list(map(str, arguments)))


def square(side, colour="#ff0000"):
    body = f'<path fill="{colour}" d="M0 0h{side}v{side}H0z"/>'
    return Icon(
        "noto",
        "square",
        "Symbols",
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8">{body}</svg>',
    )


def test_icons_with_a_category_are_read_in_the_order_of_the_data_set(icons):
    read = read_icons(icons)
    assert {icon.category for icon in read} == {"Food & Drink", "People & Body"}
    assert len(read) == 3 * (1 + 6 + 5)
    assert [icon.path for icon in read] == sorted(icon.path for icon in read)
    assert read[0].path == "Food & Drink/fluent-emoji-flat-red-apple.png"


def test_one_skin_tone_of_each_person_stays(icons):
    kept = one_tone_each(read_icons(icons))
    people = [icon for icon in kept if icon.category == "People & Body"]
    assert len(kept) == 3 * (1 + 2)
    assert sorted(icon.source for icon in people) == sorted(2 * list(SETS))
    assert one_tone_each(reversed(read_icons(icons))) == kept, "whatever order they come in"


def test_all_tones_get_their_share():
    names = [f"person{i}{tone}" for i in range(300) for tone in TONES]
    kept = one_tone_each(Icon("noto", name, "People & Body", "") for name in names)
    assert len(kept) == 300
    for tone in TONES[1:]:
        stem = [icon for icon in kept if icon.name.lstrip("person0123456789") == tone]
        assert 25 < len(stem) < 80, tone


def test_a_name_that_only_resembles_a_tone_is_another_icon():
    names = ("Symbols", "light-bulb"), ("People & Body", "darker"), ("People & Body", "dark-horse")
    icons = [Icon("noto", name, category, "") for category, name in names]
    assert sorted(one_tone_each(icons), key=id) == sorted(icons, key=id)


def test_an_icon_is_drawn_on_white():
    pytest.importorskip("resvg_py")
    image = draw(square(4), 8)
    assert (image.mode, image.size) == ("RGB", (8, 8))
    assert image.getpixel((3, 3)) == (255, 0, 0)
    assert image.getpixel((4, 4)) == (255, 255, 255)


def test_an_edge_within_a_pixel_is_averaged():
    pytest.importorskip("resvg_py")
    assert draw(square(1.5, "#000000"), 8).getpixel((1, 0)) == pytest.approx((128, 128, 128), abs=1)


def test_the_command_writes_a_data_set(icons, tmp_path):
    pytest.importorskip("resvg_py")
    out = tmp_path / "new" / "emoji.zip"
    result = run("--icons", icons, "--out", out, "--size", 16)
    assert result.exit_code == 0, result.output
    assert "9 pictures" in result.output
    dataset = load_dataset(out, resolution=16)
    assert dataset.classes == ("Food & Drink", "People & Body")
    assert dataset.images.shape == (9, 3, 16, 16)
    assert dataset.labels.tolist() == [0] * 3 + [1] * 6
    assert (dataset.images[:, 0] == 255).all(), "each set's own size of a drawing is respected"
    assert (dataset.images[:, 1:] == 0).all()
    with zipfile.ZipFile(out) as archive:
        licences = archive.read("LICENCES.txt").decode().splitlines()
    assert licences[0] == "fluent-emoji-flat by A (https://a.example): MIT (https://b.example)"
    assert len(licences) == 3
    assert [file.name for file in out.parent.iterdir()] == ["emoji.zip"], "nothing is left behind"


def test_the_same_icons_give_the_same_bytes(icons, tmp_path):
    pytest.importorskip("resvg_py")
    files = [tmp_path / "a.zip", tmp_path / "b.zip"]
    for file in files:
        assert run("--icons", icons, "--out", file, "--all-tones").exit_code == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    assert len(load_dataset(files[0], resolution=32)) == 36


def test_a_missing_set_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no .*fluent-emoji-flat/icons\.json: --icons names a"):
        read_icons(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"icons": {}}'])
def test_a_damaged_set_is_named(icons, content):
    (icons / "noto" / "icons.json").write_text(content)
    with pytest.raises(UserError, match=r"noto.*(cannot be read|not an icon set)"):
        read_icons(icons)


def test_an_icon_that_cannot_be_drawn_is_named_and_leaves_no_file(icons, tmp_path):
    pytest.importorskip("resvg_py")
    file = icons / "twemoji" / "icons.json"
    content = json.loads(file.read_text())
    content["icons"]["red-apple"]["body"] = "<unclosed"
    file.write_text(json.dumps(content))
    out = tmp_path / "emoji.zip"
    result = run("--icons", icons, "--out", out)
    assert isinstance(result.exception, UserError)
    assert "twemoji's red-apple cannot be drawn" in str(result.exception)
    assert not list(tmp_path.glob("emoji.zip*"))


def test_without_resvg_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(UserError, match="pip install resvg-py"):
        draw(square(8), 8)


def test_without_npm_one_line_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(module.shutil, "which", lambda _name: None)
    with pytest.raises(UserError, match=r"npm is not installed: install it, or name .*--icons"):
        fetch_icons(tmp_path)


def test_npm_is_asked_for_pinned_versions(monkeypatch, tmp_path):
    commands = []

    def npm(command, **_options):
        commands.append(command)
        return subprocess.CompletedProcess(command, int(len(commands) > 1), "", "npm error 404\n")

    monkeypatch.setattr(module.shutil, "which", lambda _name: "/bin/npm")
    monkeypatch.setattr(module.subprocess, "run", npm)
    assert fetch_icons(tmp_path) == tmp_path / "node_modules" / "@iconify-json"
    assert "@iconify-json/noto@1.2.9" in commands[0]
    assert "--ignore-scripts" in commands[0]
    with pytest.raises(UserError, match="npm could not fetch the icon sets: npm error 404"):
        fetch_icons(tmp_path)
