"""Bundles: what is published is what is served, and anything else is refused by name."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.bundle import (
    BundleError,
    ClassLabelError,
    GoldenImage,
    Manifest,
    list_bundles,
    load_bundle,
    load_manifest,
    noise_and_class,
    sha256_file,
    write_manifest,
)
from tests.bundles import CLOTHES, write_bundle


@pytest.fixture
def tiny(models: Path) -> Path:
    return models / "tiny"


def edit(folder: Path, **changes) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_bundle_is_read_as_it_was_written(tiny):
    bundle = load_bundle(tiny)
    assert bundle.manifest.classes == CLOTHES
    assert bundle.manifest.latent_shape == (1, 8, 8)
    assert bundle.graph("model.onnx") == tiny / "1" / "model.onnx"
    digest = hashlib.sha256((tiny / "manifest.json").read_bytes()).hexdigest()
    assert bundle.digest == digest[:12]
    assert bundle.tag == f"tiny:1:{bundle.digest}"


def test_writing_a_manifest_replaces_it_whole_and_leaves_nothing_beside_it(tiny):
    before = load_manifest(tiny)
    write_manifest(tiny, before.model_copy(update={"description": "Another."}))
    assert load_manifest(tiny) == before.model_copy(update={"description": "Another."})
    assert sorted(path.name for path in tiny.iterdir()) == ["1", "config.pbtxt", "manifest.json"]


def test_a_truncated_file_is_refused_by_name(tiny):
    graph = tiny / "1" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"1/model\.onnx: .*truncated or changed"):
        load_bundle(tiny)


def test_a_missing_file_is_refused_by_name(tiny):
    (tiny / "1" / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"1/model\.onnx: No such file"):
        load_bundle(tiny)


def test_a_missing_manifest_is_refused_by_name(tiny):
    (tiny / "manifest.json").unlink()
    with pytest.raises(BundleError, match=r"manifest\.json: No such file"):
        load_bundle(tiny)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null"])
def test_a_manifest_that_is_no_manifest_is_refused_in_one_line(tiny, content):
    (tiny / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json: ") as caught:
        load_bundle(tiny)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", 3),
        ("requires", "all"),
        ("name", "Ti ny"),
        ("version", 0),
        ("images", [8, 8, 2]),
        ("images", [8, 8]),
        ("images", [8, "8", 1]),
        ("images", [8, 0, 1]),
        ("classes", ["a", " A"]),
        ("classes", ["a", " "]),
        ("sigma_init", 0),
        ("steps", 0),
        ("steps", "2"),
        ("seed_contract", "other"),
        ("files", {"../x": "0" * 64, "1/model.onnx": "0" * 64}),
        ("files", {"/etc/passwd": "0" * 64}),
        ("files", {"1\\model.onnx": "0" * 64}),
        ("files", {"1/model\0.onnx": "0" * 64, "1/model.onnx": "0" * 64}),
        ("files", {"manifest.json": "0" * 64}),
        ("files", {"1/model.onnx": "abc"}),
        ("licence", ""),
        ("golden", {"max_difference": 1, "max_differing_share": 0.1, "images": []}),
    ],
)
def test_a_field_that_breaks_the_schema_is_named(tiny, field, value):
    edit(tiny, **{field: value})
    with pytest.raises(BundleError, match=rf"manifest\.json: {field}"):
        load_bundle(tiny)


def test_a_manifest_says_its_steps_where_there_are_several(models, tiny):
    assert load_bundle(tiny).manifest.steps == 1
    assert "steps" not in json.loads((tiny / "manifest.json").read_text())
    folder = write_bundle(models, "twice", steps=2)
    assert json.loads((folder / "manifest.json").read_text())["steps"] == 2
    assert load_bundle(folder).manifest.steps == 2


def test_a_manifest_must_list_the_graph_of_its_version(tiny):
    edit(tiny, version=2)
    with pytest.raises(BundleError, match=r"files must hold 2/model\.onnx or 2/model\.plan"):
        load_bundle(tiny)


def test_a_golden_image_must_be_of_a_class_of_the_model(tiny):
    edit(tiny, classes=["only"])
    with pytest.raises(BundleError, match="class_label 2 is out of range"):
        load_bundle(tiny)


def test_a_graph_in_an_unknown_precision_is_verified_and_left_alone(models):
    """Such as int8 from before it left, or what a later version writes."""
    folder = write_bundle(models, "many", graphs=["model.bfloat16.onnx"])
    manifest = load_bundle(folder).manifest
    (folder / "1" / "model.int8.onnx").write_bytes(b"eight bits")
    digest = sha256_file(folder / "1" / "model.int8.onnx")
    graphs = manifest.model_dump()["graphs"]
    other = graphs["model.bfloat16.onnx"] | {"precision": "int8"}
    edit(
        folder,
        files=manifest.files | {"1/model.int8.onnx": digest},
        graphs=graphs | {"model.int8.onnx": other},
    )
    assert set(load_bundle(folder).manifest.graphs) == {"model.bfloat16.onnx"}
    (folder / "1" / "model.int8.onnx").write_bytes(b"seven bits")
    with pytest.raises(BundleError, match=r"model\.int8\.onnx: not the file that was published"):
        load_bundle(folder)


def test_a_folder_must_be_named_like_its_model(tiny):
    with pytest.raises(BundleError, match="'tiny', but its folder is 'other'"):
        load_bundle(tiny.rename(tiny.with_name("other")))


def test_models_are_listed_by_name_and_other_folders_ignored(models):
    write_bundle(models, "a-first", classes=[])
    (models / "notes").mkdir()
    assert [folder.name for folder in list_bundles(models)] == ["a-first", "tiny"]


def test_a_publish_under_way_is_no_model_yet(models):
    (models / "tiny").rename(models / ".tiny.partial")
    with pytest.raises(BundleError, match="no model in it"):
        list_bundles(models)


@pytest.mark.parametrize("create", [True, False])
def test_a_folder_without_models_says_what_to_do(tmp_path, create):
    folder = tmp_path / "empty"
    if create:
        folder.mkdir()
    with pytest.raises(BundleError, match="--models DIR"):
        list_bundles(folder)


@pytest.mark.parametrize("label", [2, "Dress", " dress ", "DRESS", "2"])
def test_a_class_is_found_by_index_and_by_name(tiny, label):
    assert load_manifest(tiny).resolve_class(label) == 2


@pytest.mark.parametrize("label", [3, -1, "3", "-1", "Coat", "", "1.0", "²", "9" * 5000])
def test_an_unknown_class_is_refused_with_range_and_names(tiny, label):
    with pytest.raises(ClassLabelError, match=r"0 to 2 \(T-shirt/top, Trouser, Dress\)"):
        load_manifest(tiny).resolve_class(label)


def named(*classes: str) -> Manifest:
    """A manifest with these classes; of the rest no test here asks anything."""
    return Manifest(
        name="digits", version=1, inputs=noise_and_class((1, 8, 8), has_classes=True),
        images=(8, 8, 1), classes=list(classes), sigma_init=1.0,
        files={"1/model.onnx": "0" * 64}, licence="none", description="",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("classes", "label", "index"),
    [
        (["1", "0"], "1", 1),  # an index wins over a name
        (["1", "2", "3"], "2", 2),
        (["1", "2", "3"], " 2 ", 2),
        (["1", "2", "3"], "3", 2),  # no index: a name
        (["2019", "2020", "2021"], "2020", 1),
        (["-1", "0", "1"], "-1", 0),
        (["01", "02", "03"], "02", 1),  # no index is written so: a name
        (["01", "02", "03"], "2", 2),
        (["a", "b", "c"], "02", 2),  # no name either: digits
        (["0.5", "1.0", "2"], "1.0", 1),
        (["a", "Cafe\u0301", "b"], "caf\u00e9", 1),  # a folder's name as macOS writes it
    ],
)
def test_a_number_is_an_index_if_there_is_one_else_a_name(classes, label, index):
    manifest = named(*classes)
    assert manifest.resolve_class(label) == index
    if re.fullmatch("-?[1-9][0-9]*", label):
        assert manifest.resolve_class(int(label)) == index


@given(st.lists(st.from_regex(r"[ +-]?[0-9]{1,3}|[ab]", fullmatch=True), min_size=1, max_size=12))
def test_an_index_is_never_misread_whatever_the_names(names):
    names = list({name.strip(): name for name in names if name.strip()}.values())
    manifest = named(*names)
    misleading = manifest.misleading_names()
    for index, name in enumerate(manifest.classes):
        assert manifest.resolve_class(index) == manifest.resolve_class(str(index)) == index
        assert manifest.resolve_class(manifest.unmistakable(index)) == index
        assert (name in misleading) == (manifest.unmistakable(index) != name)


def test_an_unconditional_model_has_no_class(models):
    write_bundle(models, "plain", classes=[])
    with pytest.raises(ClassLabelError, match="plain is unconditional"):
        load_manifest(models / "plain").resolve_class(0)


def test_many_class_names_are_cut_short(models):
    write_bundle(models, "many", classes=[f"class {i}" for i in range(1000)], golden=False)
    with pytest.raises(ClassLabelError, match=r"0 to 999 .*class 19, \.\.\.\)$"):
        load_manifest(models / "many").resolve_class(1000)


@pytest.mark.parametrize("channels", [1, 3])
def test_golden_pixels_survive_the_png(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 5, channels), dtype=np.uint8)
    image = GoldenImage.from_pixels(pixels, class_label=0, seed=1)
    assert np.array_equal(image.pixels(), pixels)


def test_golden_images_tolerate_what_they_state_and_no_more(tiny):
    golden = load_manifest(tiny).golden
    assert golden is not None
    reference = golden.images[0]
    pixels = reference.pixels().copy()
    assert golden.mismatch(reference, pixels) is None
    pixels[0, 0] ^= 1
    assert golden.mismatch(reference, pixels) is None  # one of 64 values, by one level
    pixels[0] ^= 1
    assert "differ from the golden image" in golden.mismatch(reference, pixels)
    far = reference.pixels().copy()
    far[0, 0] ^= 128
    assert "by up to 128 levels" in golden.mismatch(reference, far)
    assert "shape" in golden.mismatch(reference, far[:4])


@pytest.mark.parametrize("png", ["", "####", "AAAA"])
def test_a_golden_image_must_be_a_png(png):
    with pytest.raises(ValidationError, match="not a PNG file"):
        GoldenImage(class_label=None, seed=0, png=png)


def test_a_manifest_does_not_change(tiny):
    manifest = load_manifest(tiny)
    with pytest.raises(ValidationError):
        manifest.version = 2
    assert isinstance(manifest, Manifest)
