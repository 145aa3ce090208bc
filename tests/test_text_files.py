"""Text files as Windows writes them are read; those in another encoding are named in one line."""

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.analysis.curve import read_curve
from distill.analysis.run_folder import run_metadata
from distill.commands.import_ import _names
from distill.commands.run import _numbers
from distill.errors import UserError
from distill.recipe import RECIPES, load_recipe
from service.bundle import BundleError, load_manifest
from service.bundle.text import TextError, decode_text
from service.http.security import KeysError, load_keys, new_key
from tests.bundles import write_bundle

MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
ALICE = new_key("alice")

# The file's name, what reads it, a text and what must come of it.
READERS = [
    ("mine.toml", lambda path: load_recipe(str(path)).model_dump(exclude={"file"}),
     (RECIPES / "fashion.toml").read_text(), load_recipe("fashion").model_dump(exclude={"file"})),
    ("names.txt", lambda path: _names(str(path)), "cat\ndög\n", ["cat", "dög"]),
    ("often.txt", lambda path: _numbers(str(path)), "1\n2.5\n", [1, 2.5]),
    ("often.csv", lambda path: _numbers(str(path)), "1, 2.5", [1, 2.5]),
    ("keys", lambda path: load_keys(path).find(ALICE.secret.encode()).name,
     f"# let in\n{ALICE.line}\n", "alice"),
]  # fmt: skip
IDS = [name for name, *_ in READERS]


@pytest.mark.parametrize("encoding", MARKS)
@pytest.mark.parametrize(("name", "read", "text", "expected"), READERS, ids=IDS)
def test_a_file_with_a_byte_order_mark_is_read(tmp_path, name, read, text, expected, encoding):
    content = MARKS[encoding] + text.replace("\n", "\r\n").encode(encoding)
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == expected


@pytest.mark.parametrize("content", ["# café\n".encode("cp1252"), "a\n".encode("utf-16-le")])
@pytest.mark.parametrize(("name", "read", "text", "expected"), READERS, ids=IDS)
def test_another_encoding_is_named_in_one_line(tmp_path, name, read, text, expected, content):  # noqa: ARG001
    (tmp_path / name).write_bytes(content)
    with pytest.raises((UserError, KeysError)) as raised:
        read(tmp_path / name)
    assert f"{name}: not UTF-8 text (byte 0x" in str(raised.value)
    assert "in line 1): save it as UTF-8" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_a_run_wrote_of_itself_survives_an_editor(tmp_path):
    (tmp_path / "curve.jsonl").write_bytes(codecs.BOM_UTF8 + b'{"images_seen": 1, "distance": 2}')
    assert read_curve(tmp_path).distances.tolist() == [2]
    (tmp_path / "run.json").write_bytes('{"recipe": "mine"}'.encode("utf-16"))
    assert run_metadata(tmp_path) == {"recipe": "mine"}
    (tmp_path / "curve.jsonl").write_bytes(b'{"images_seen": 1, "distance": 2}\n{"caf\xe9": 1}')
    with pytest.raises(UserError, match="line 2, is damaged: remove that line"):
        read_curve(tmp_path)
    (tmp_path / "run.json").write_bytes(b'"caf\xe9"')
    with pytest.raises(UserError, match=r"run\.json is no JSON"):
        run_metadata(tmp_path)


def test_a_manifest_with_a_byte_order_mark_is_read(tmp_path):
    bundle = write_bundle(tmp_path / "tiny")
    file = bundle / "manifest.json"
    expected, text = load_manifest(bundle), file.read_text()
    file.write_bytes(codecs.BOM_UTF8 + text.encode())
    assert load_manifest(bundle) == expected
    file.write_bytes(text.encode("utf-16"))
    assert load_manifest(bundle) == expected
    file.write_bytes(text.replace("{", "{ é", 1).encode("latin-1"))
    with pytest.raises(BundleError, match=r"manifest\.json: not UTF-8 text \(byte 0xe9 in line 1"):
        load_manifest(bundle)


@given(st.text(st.characters(exclude_characters="\0\ufeff\r", exclude_categories=["Cs"])))
def test_what_was_written_is_read(text):
    for encoding, mark in MARKS.items():
        assert decode_text(mark + text.encode(encoding)) == text
    assert decode_text(text.encode()) == text


@given(st.binary())
def test_any_bytes_are_text_or_are_told_to_be_none(data):
    try:
        text = decode_text(data)
    except TextError:
        return
    assert not {"\0", "\ufeff", "\r"} & set(text)


def test_the_line_of_a_wrong_byte_is_told():
    with pytest.raises(TextError, match="byte 0xe9 in line 3"):
        decode_text(b"a\nb\r\n caf\xe9")
    with pytest.raises(TextError, match=r"not UTF-16 text .byte 0x00 in line 2"):
        decode_text("a\n".encode("utf-16") + b"\0\xd8a")


def test_a_mark_in_the_middle_of_class_names_is_no_part_of_one():
    assert _names("\ufeffcat,\ufeffdog") == ["cat", "dog"]


def test_a_thousand_frequencies_are_no_files_name():
    assert _numbers(",".join(["0.001"] * 1000)) == [0.001] * 1000
    assert len(_names(",".join(["name"] * 1000)) or []) == 1000
