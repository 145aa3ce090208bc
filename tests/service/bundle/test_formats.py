"""Formats of the manifest: the older one is read, and fields of later releases are passed over."""

import json
from pathlib import Path

import pytest

from service.bundle import BundleError, ClassInput, NoiseInput, load_bundle, load_manifest
from tests.bundles import write_bundle

FORMAT_1 = Path(__file__).parents[2] / "fixtures" / "manifest_format_1.json"


@pytest.fixture
def format_1(tmp_path: Path) -> Path:
    """A folder with a manifest as it was written before there was a format 2."""
    folder = tmp_path / "fashion"
    folder.mkdir()
    (folder / "manifest.json").write_bytes(FORMAT_1.read_bytes())
    return folder


@pytest.fixture
def tiny(models: Path) -> Path:
    return models / "tiny"


def edit(folder: Path, change) -> None:
    """Have `change` edit the fields of a manifest in place."""
    path = folder / "manifest.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def as_format_1(fields: dict) -> None:
    height, _, channels = fields.pop("images")
    del fields["inputs"], fields["requires"]
    fields |= {"format": 1, "resolution": height, "channels": channels}


def test_format_1_becomes_the_same_object(format_1):
    manifest = load_manifest(format_1)
    assert manifest.format == 2
    assert manifest.inputs == [
        NoiseInput(name="latents", shape=(1, 28, 28)),
        ClassInput(name="class_labels"),
    ]
    assert manifest.images == (28, 28, 1)
    written = json.loads(FORMAT_1.read_text())
    for name in written.keys() - {"format", "resolution", "channels", "golden", "graphs"}:
        assert manifest.model_dump(mode="json")[name] == written[name]
    assert manifest.golden.images[3].pixels().shape == (28, 28, 1)


@pytest.mark.parametrize("classes", [["a", "b"], []])
def test_a_bundle_reads_the_same_in_both_formats_and_keeps_its_digest(tmp_path, classes):
    """The digest is that of the file as it lies there, so that a tag of format 1 stays right."""
    folder = write_bundle(tmp_path, classes=classes)
    new = load_bundle(folder)
    edit(folder, as_format_1)
    old = load_bundle(folder)
    assert old.manifest == new.manifest
    assert old.digest != new.digest


@pytest.mark.parametrize(
    ("field", "value"),
    [("resolution", "8"), ("resolution", 0), ("channels", 2), ("channels", None)],
)
def test_what_format_1_says_of_shapes_is_checked_by_its_own_names(format_1, field, value):
    edit(format_1, lambda fields: fields.update({field: value}))
    with pytest.raises(BundleError, match=rf"manifest\.json: {field}: "):
        load_manifest(format_1)


def test_a_format_of_a_later_release_is_refused_with_what_is_read(tiny):
    edit(tiny, lambda fields: fields.update(format=3))
    with pytest.raises(BundleError, match="format 3: this release reads 1 and 2") as refused:
        load_manifest(tiny)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("stated", [True, 1.0, 2.0, "2", None, [2], 10**400])
def test_a_format_is_1_or_2_as_a_whole_number(tiny, stated):
    edit(tiny, lambda fields: fields.update(format=stated))
    with pytest.raises(BundleError, match="this release reads 1 and 2") as refused:
        load_manifest(tiny)
    assert len(str(refused.value)) < len(str(tiny)) + 200


def add_everywhere(fields: object) -> None:
    """Add a field to every object of a manifest but the mappings whose keys are data."""
    if isinstance(fields, list):
        for one in fields:
            add_everywhere(one)
    elif isinstance(fields, dict):
        for name, value in fields.items():
            if name == "graphs":
                add_everywhere(list(value.values()))
            elif name not in ("files", "training"):
                add_everywhere(value)
        fields["later"] = {"more": [1]}


def test_fields_that_are_not_known_are_ignored_at_every_level(tmp_path):
    quality = {
        "distance": "d", "images": 1, "reference": "r", "generator": 1.0, "teacher": 1.0,
        "teacher_evaluations": 1,
    }  # fmt: skip
    folder = write_bundle(tmp_path, graphs=["model.bfloat16.onnx"], quality=quality)
    before = load_manifest(folder)
    edit(folder, add_everywhere)
    assert (folder / "manifest.json").read_text().count('"later"') == 9
    assert load_manifest(folder) == before


@pytest.mark.parametrize("path", ["later", "golden.images.later", "inputs.range", "files.x"])
def test_a_field_that_is_required_and_not_known_is_refused_by_name(tiny, path):
    edit(tiny, lambda fields: fields.update(requires=["inputs.kind", path]))
    with pytest.raises(BundleError, match=rf"requires .* understand {path}, and this release does"):
        load_manifest(tiny)


@pytest.mark.parametrize("path", [["name"], {"name": 1}, None, 1, "later." * 1000])
def test_what_is_required_and_no_path_is_refused_in_one_short_line(tiny, path):
    edit(tiny, lambda fields: fields.update(requires=[path]))
    with pytest.raises(BundleError, match=r"requires .* and this release does not") as refused:
        load_manifest(tiny)
    assert len(str(refused.value)) < len(str(tiny)) + 250


def test_it_is_refused_before_what_else_the_later_release_has_changed(tiny):
    edit(tiny, lambda fields: fields.update(requires=["later"], images="square", classes=None))
    with pytest.raises(BundleError, match="understand later,"):
        load_manifest(tiny)


def test_a_field_that_is_required_and_known_is_no_matter(tiny):
    required = ["golden.images.seed", "graphs.bounds.max_difference", "inputs.count", "quality"]
    edit(tiny, lambda fields: fields.update(requires=required))
    assert load_manifest(tiny).requires == required
