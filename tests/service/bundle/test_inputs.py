"""What a graph takes, as the manifest lists it: kinds, shapes, and the values of requests."""

import json

import pytest

from service.bundle import (
    BundleError,
    InputError,
    load_manifest,
)
from tests.bundles import MIX, STYLE, write_bundle


@pytest.fixture
def folder(tmp_path):
    return write_bundle(tmp_path, extra=[STYLE, MIX])


def with_inputs(folder, inputs, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"inputs": inputs} | changes))
    return load_manifest(folder)


NOISE = {"name": "latents", "kind": "noise", "dtype": "float32", "shape": [4, 8, 8]}
CLASS = {"name": "class_labels", "kind": "class", "dtype": "int64", "shape": []}
LABEL = {"name": "style", "kind": "label", "dtype": "int64", "shape": [], "count": 5, "default": 1}
VECTOR = {"name": "mix", "kind": "vector", "dtype": "float32", "shape": [2], "default": [1, 0.5]}


def test_latents_are_of_the_noise_inputs_shape_whatever_the_images(tmp_path):
    folder = write_bundle(tmp_path, latent_shape=(4, 8, 8), resolution=64, channels=3)
    manifest = load_manifest(folder)
    assert manifest.latent_shape == (4, 8, 8)
    assert manifest.image_shape == (64, 64, 3)
    assert with_inputs(folder, [NOISE, CLASS], images=[48, 64, 3]).image_shape == (48, 64, 3)


def test_the_signature_is_the_graphs(folder):
    assert with_inputs(folder, [NOISE, CLASS, LABEL, VECTOR]).signature == {
        "latents": ("float32", (4, 8, 8)),
        "class_labels": ("int64", ()),
        "style": ("int64", ()),
        "mix": ("float32", (2,)),
        "images": ("uint8", (8, 8, 1)),
    }


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ([CLASS], "exactly one of them has to be of the kind noise"),
        ([NOISE, NOISE | {"name": "more"}, CLASS], "exactly one of them"),
        ([NOISE, CLASS, CLASS | {"name": "other"}], "at most one of them can be of the kind class"),
        ([NOISE], "classes are named, and inputs has none of the kind class"),
        ([NOISE, CLASS, LABEL | {"name": "latents"}], "two of them have the same name"),
        ([NOISE, CLASS, LABEL | {"name": "images"}], "none can be called images"),
        ([NOISE, CLASS, LABEL | {"name": 'a" }'}], r"inputs\.2\.label\.name"),
        (
            [NOISE, CLASS, LABEL | {"kind": "image"}],
            "inputs.2: .*'image' .* 'noise', 'class', 'label', 'vec",
        ),
        ([NOISE, CLASS, LABEL | {"default": 5}], "the default 5 is not below the count 5"),
        ([NOISE, CLASS, LABEL | {"count": "5"}], r"inputs\.2\.label\.count"),
        ([NOISE, CLASS, LABEL | {"count": 2**63}], r"inputs\.2\.label\.count"),
        ([NOISE, CLASS, LABEL | {"shape": [1]}], r"inputs\.2\.label\.shape"),
        ([NOISE, CLASS, LABEL | {"dtype": "int32"}], r"inputs\.2\.label\.dtype"),
        ([NOISE, CLASS, VECTOR | {"default": [1]}], "the default is none: mix takes a list of 2"),
        ([NOISE, CLASS, VECTOR | {"default": [1, 1e39]}], "the default is none"),
        ([NOISE, CLASS, VECTOR | {"shape": [2, 1]}], r"inputs\.2\.vector\.shape"),
        ([NOISE | {"shape": []}, CLASS], r"inputs\.0\.noise\.shape"),
        ([NOISE | {"shape": [4, 0, 8]}, CLASS], r"inputs\.0\.noise\.shape\.1"),
        ([NOISE | {"shape": [4, 8.0, 8]}, CLASS], r"inputs\.0\.noise\.shape\.1"),
    ],
)
def test_inputs_that_cannot_be_are_refused_saying_why(folder, inputs, says):
    with pytest.raises(BundleError, match=rf"manifest\.json: .*{says}"):
        with_inputs(folder, inputs)


def test_a_class_without_classes_is_refused(folder):
    with pytest.raises(BundleError, match="one of the kind class, and classes is empty"):
        with_inputs(folder, [NOISE, CLASS], classes=[], golden=None)


def test_what_is_not_named_has_its_default(folder):
    manifest = load_manifest(folder)
    assert manifest.resolve_inputs({}) == {"style": 1, "mix": (0.5, 0.5)}
    assert manifest.resolve_inputs({"style": 3.0}) == {"style": 3, "mix": (0.5, 0.5)}
    assert manifest.resolve_inputs({"mix": [1, 0.25]}) == {"style": 1, "mix": (1.0, 0.25)}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"style": 5}, r"style takes a whole number from 0 to 4 \(default 1\), not 5"),
        ({"style": -1}, "style takes"),
        ({"style": 1.5}, "style takes"),
        ({"style": True}, "style takes"),
        ({"style": "3"}, "style takes"),
        ({"style": None}, "style takes"),
        ({"style": float("nan")}, "style takes"),
        ({"style": float("inf")}, "style takes"),
        ({"mix": [1]}, r"mix takes a list of 2 numbers \(default \[0\.5, 0\.5\]\), not \[1\]"),
        ({"mix": 1}, "mix takes"),
        ({"mix": "ab"}, "mix takes"),
        ({"mix": [1, "1"]}, "mix takes"),
        ({"mix": [1, True]}, "mix takes"),
        ({"mix": [1, float("nan")]}, "mix takes"),
        ({"mix": [1, 1e39]}, "mix takes"),
        ({"mix": [1, 10**400]}, "mix takes"),
        ({"mix": [0.1] * 1000}, r"not \[0\.1, .{,64}\.\.\.$"),
        ({"colour": 1}, "no input 'colour' .* it has style, a whole .*; mix, a list of 2 numbers"),
        ({"a" * 1000: 1}, r"no input 'a{,64}\.\.\.' that"),
        ({"latents": 1}, "no input 'latents' that a request can name"),
        ({"class_labels": 1}, "no input 'class_labels'"),
    ],
)
def test_what_an_input_does_not_take_is_told_what_it_takes(folder, values, says):
    with pytest.raises(InputError, match=says):
        load_manifest(folder).resolve_inputs(values)


def test_a_long_default_is_not_told_in_full(folder):
    with_inputs(folder, [NOISE, CLASS, VECTOR | {"shape": [1000], "default": [0.1] * 1000}])
    with pytest.raises(InputError, match=r"list of 1000 numbers \(default \[0\.1") as refused:
        load_manifest(folder).resolve_inputs({"mix": [1]})
    assert len(str(refused.value)) < 200


def test_a_model_without_further_inputs_says_so(tmp_path):
    folder = write_bundle(tmp_path)
    assert load_manifest(folder).resolve_inputs({}) == {}
    with pytest.raises(InputError, match=r"tiny has no input 'style' .*: it has none"):
        load_manifest(folder).resolve_inputs({"style": 1})
