"""`sid-distill publish`: whatever `run` has trained is published, under the licence it has."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.main import get_command

import distill
from distill.checkpoints import load_network, save_network
from distill.cli import app
from distill.errors import UserError
from distill.export.onnx import export_onnx
from distill.licences import licence_of_both
from distill.methods.registry import METHODS
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from distill.recipe import RECIPES, load_recipe
from service.app import create_app
from service.bundle import BundleError, load_bundle
from service.bundle.signature import fingerprint
from service.settings import Settings
from tests.distill.command_line import sid_distill
from tests.distill.tiny_recipe import tiny_recipe
from tests.latents import write_autoencoder
from tests.reference_numbers import FIXTURES
from tests.service.client import Client

RELEASED = "CC-BY-NC-SA-4.0"
PRETRAINED = Path(distill.__file__).parent / "pretrained"
SMALL_RUN = ("--images", 2, "--batch", 2, "--precision", "float32", "--features", "none")


def toy():
    torch.manual_seed(0)
    config = EdmConfig(
        img_resolution=8, img_channels=1, label_dim=3, augment_dim=9, model_channels=8,
        channel_mult=(1,), num_blocks=1, attn_resolutions=(), dropout=0.1,
    )  # fmt: skip
    network = Denoiser(config)
    with torch.no_grad():  # an untrained network's output layer is near zero: wake it up
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def save_toy(path, **metadata):
    save_network(path, toy(), {"role": "teacher", "classes": ["a", "b", "c"]} | metadata)
    return path


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """The toy as a generator, exported once, for exporting takes seconds."""
    folder = tmp_path_factory.mktemp("graphs")
    for name in ("model.onnx", "model.cpu.onnx"):
        export_onnx(toy(), 2.5, folder / name, cpu="cpu" in name)
    return folder


@pytest.fixture
def publish_toy(graphs, tmp_path, monkeypatch):
    """A function that publishes the toy under the facts in a network's header."""

    def exported(_network, _sigma_init, path, **_options):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(graphs / path.name, path)

    monkeypatch.setattr("distill.export.publish.export_onnx", exported)

    def publish(network, *options):
        _, metadata = load_network(network)
        metadata.pop("latents", None)  # the toy draws pixels
        save_network(network, toy(), metadata)
        said = sid_distill(
            "publish", network, "--name", "toy", "--models", tmp_path / "models", *options
        )
        return load_bundle(tmp_path / "models" / "toy").manifest, said

    return publish


def distil(folder, *options, **metadata):
    """The generator that `run` makes of the toy as a teacher with these facts."""
    teacher = save_toy(folder / "teacher.safetensors", **metadata)
    sid_distill("run", "--teacher", teacher, "--out", folder, *SMALL_RUN, *options)
    return folder / "network.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", sorted(file.stem for file in RECIPES.glob("*.toml")))
def test_what_a_shipped_recipe_has_distilled_is_published(tmp_path, publish_toy, recipe):
    # The start level is the exported graph's, whatever the recipe's.
    options = ["--recipe", recipe, "--sigma-init", 2.5]
    if METHODS[load_recipe(recipe).method].needs_images:
        for name in "abc":
            (tmp_path / "images" / name).mkdir(parents=True)
            Image.new("L", (8, 8), 10 * ord(name) % 256).save(tmp_path / "images" / name / "0.png")
        options += ["--data", tmp_path / "images"]
    latents = {}
    if load_recipe(recipe).autoencoder:
        autoencoder = write_autoencoder(tmp_path / "a.safetensors", latent_channels=1, factor=2)
        latents = {"latents": {"autoencoder": "a", "scale": [1.0], "bias": [0.0]}}
        options += ["--autoencoder", autoencoder]
    generator = distil(tmp_path, *options, **latents)
    manifest, _ = publish_toy(generator, "--licence", "MIT")
    assert manifest.training["recipe"] == recipe
    assert manifest.training.get("generator_betas") == {"ffhq64": "[0.9, 0.999]"}.get(recipe)


@pytest.mark.slow
def test_what_was_distilled_with_every_option_of_run_is_published(tmp_path, publish_toy):
    options = {
        "--microbatch": 1, "--lr": 1e-6, "--fake-lr": 1e-6, "--cooldown": 2, "--alpha": 1.2,
        "--t-max": 700, "--weighting": "none", "--sigma-init": 2.5, "--augment": 0.1,
        "--steps": 1, "--renoise": "same", "--dropout": 0.2, "--class-frequencies": "1,2,0.5",
        "--ema-halflife": 10, "--seed": 2**63,
        "--device": "cpu", "--compile": "off", "--recipe": "ffhq64", "--method": "sid",
        "--stop": "images",
    }  # fmt: skip
    elsewhere = {
        "--out",
        "--teacher",
        "--generator",
        "--reference",
        "--data",
        "--autoencoder",
        "--background",
        "--shard",
        "--no-cuda-graph",
        *SMALL_RUN,
    }
    command = get_command(app).commands["run"]
    known = {name for option in command.params for name in option.opts} - {"--help"}
    assert known <= elsewhere.union(options), "an option that this test does not know"
    generator = distil(tmp_path, *(part for option in options.items() for part in option))
    manifest, _ = publish_toy(generator, "--licence", "MIT")
    assert manifest.training["class_frequencies"] == "[1.0, 2.0, 0.5]"
    assert manifest.training["seed"] == 2**63


@pytest.mark.slow
@pytest.mark.parametrize("stated", [None, "CC-BY-4.0"])
def test_a_student_of_an_imported_teacher_inherits_its_licence(tmp_path, publish_toy, stated):
    options = [] if stated is None else ["--licence", stated]
    pickle = FIXTURES / "ddpmpp.pkl"
    sid_distill("import", pickle, "--name", "grey", "--out", tmp_path, *options)
    teacher, run = tmp_path / "grey.safetensors", tmp_path / "run"
    sid_distill("run", "--teacher", teacher, "--out", run, *SMALL_RUN)
    for network in (teacher, run / "network.safetensors"):
        assert load_network(network)[1]["licence"] == (stated or RELEASED)
    assert json.loads((tmp_path / "grey.json").read_text())["licence"] == (stated or RELEASED)
    save_toy(run / "network.safetensors", **metadata_of(run) | {"classes": ["a", "b", "c"]})
    manifest, said = publish_toy(run / "network.safetensors")
    assert manifest.licence == (stated or RELEASED)
    assert f"licence: {stated or RELEASED}\n" in said


def metadata_of(run):
    return load_network(run / "network.safetensors")[1]


def test_a_student_of_a_released_file_inherits_its_licence_without_an_import(tmp_path):
    pickle = FIXTURES / "ddpmpp.pkl"
    sid_distill("run", "--teacher", pickle, "--out", tmp_path / "run", *SMALL_RUN)
    assert metadata_of(tmp_path / "run")["licence"] == RELEASED


def test_headers_from_before_they_held_a_licence_say_where_they_come_from(tmp_path):
    for metadata, licence in (
        ({"source": "edm.pkl", "source_sha256": "0"}, RELEASED),
        ({"recipe": "fashion", "data": "fashion-mnist, 60000 images"}, "Apache-2.0"),
        ({"recipe": "fashion", "data": "photos, 60000 images"}, None),
        ({"recipe": "fashion", "data": "photos of fashion-mnist, 60000 images"}, None),
        ({}, None),
    ):
        network = save_toy(tmp_path / "n.safetensors", **metadata)
        assert load_network(network)[1].get("licence") == licence
    for shipped in PRETRAINED.glob("*.safetensors"):
        licence = "CC0-1.0" if "avatars" in shipped.stem else "Apache-2.0"
        assert load_network(shipped)[1]["licence"] == licence


def test_a_licence_that_is_not_known_is_asked_for(tmp_path, publish_toy):
    generator = save_toy(tmp_path / "own.safetensors", role="generator", sigma_init=2.5)
    for options, said in (
        ((), r"the licence of .*own\.safetensors is not known: say --licence"),
        (("--licence", " "), "--licence is empty"),
    ):
        with pytest.raises(UserError, match=said) as refused:
            publish_toy(generator, *options)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "models").exists()
    manifest, _ = publish_toy(generator, "--licence", "CC0-1.0")
    assert manifest.licence == "CC0-1.0"


def test_a_licence_that_is_told_stands_beside_the_inherited_one(tmp_path, publish_toy):
    metadata = {"role": "generator", "sigma_init": 2.5, "licence": RELEASED}
    generator = save_toy(tmp_path / "n.safetensors", **metadata)
    manifest, said = publish_toy(generator, "--licence", "LicenseRef-own")
    assert manifest.licence == "LicenseRef-own"
    assert manifest.training["licence"] == RELEASED
    assert f"licence: LicenseRef-own, as told; its own file says {RELEASED}\n" in said


def test_what_forbids_commercial_use_is_never_published_under_what_permits_it(
    tmp_path, publish_toy
):
    metadata = {"role": "generator", "sigma_init": 2.5, "licence": RELEASED}
    generator = save_toy(tmp_path / "n.safetensors", **metadata)
    for licence in ("Apache-2.0", "MIT", "CC-BY-SA-4.0", "free for all", "NCSA"):
        with pytest.raises(UserError, match=f"--licence {licence} does not fit: .* {RELEASED}"):
            publish_toy(generator, "--licence", licence)
    assert not (tmp_path / "models").exists()
    manifest, _ = publish_toy(generator, "--licence", "CC-BY-NC-4.0")
    assert manifest.licence == "CC-BY-NC-4.0"
    publish_toy(generator)
    with Client(create_app(Settings(models=tmp_path / "models", threads=1))) as client:
        card = client.get("/models/toy").json()
        listed = client.get("/models").json()["models"]
    assert card["licence"] == RELEASED
    assert [model["licence"] for model in listed] == [RELEASED]


@pytest.mark.parametrize(
    ("teacher", "start", "both"),
    [
        ("MIT", RELEASED, RELEASED),
        (None, RELEASED, RELEASED),
        ("MIT", "Apache-2.0", "MIT"),
        ("CC-BY-NC-4.0", RELEASED, "CC-BY-NC-4.0"),
        (None, "MIT", None),
        ("for non-commercial research", None, "for non-commercial research"),
    ],
)
def test_a_student_has_the_stricter_licence_of_its_teacher_and_its_start(teacher, start, both):
    assert licence_of_both(teacher, start) == both


def test_a_run_that_starts_from_a_released_generator_inherits_its_licence(tmp_path):
    start = save_toy(
        tmp_path / "start.safetensors", role="generator", sigma_init=2.5, licence=RELEASED
    )
    generator = distil(tmp_path, "--generator", start, licence="MIT")
    assert load_network(generator)[1]["licence"] == RELEASED


RECIPE = tiny_recipe(
    licence="CC-BY-4.0",
    teacher={"total_images": 2, "batch": 2},
    sid={"total_images": 2},
)


@pytest.mark.parametrize(
    ("data", "licence"), [("", "CC-BY-4.0"), ("photos", "CC-BY-4.0"), ("others", None)]
)
def test_a_recipes_licence_is_of_networks_trained_on_its_own_data(tmp_path, data, licence):
    """Of others the same recipe says nothing: a copy of a shipped one licenses nobody's images."""
    named = f'description = "tiny"\ndata = "{data}"' if data else 'description = "tiny"'
    teacher = teach(tmp_path, RECIPE.replace('description = "tiny"', named))
    assert metadata_of(teacher.parent).get("licence") == licence


def teach(folder, recipe):
    """The teacher that a recipe makes of one image in a data set called 'photos'."""
    (folder / "mine.toml").write_text(recipe)
    (folder / "photos").mkdir()
    Image.new("L", (8, 8), 99).save(folder / "photos" / "a.png")
    options = ("--data", folder / "photos", "--out", folder / "teacher")
    sid_distill("teacher", "--recipe", folder / "mine.toml", *options)
    return folder / "teacher" / "network.safetensors"


def test_what_a_recipe_says_of_its_images_is_what_the_catalogue_shows(tmp_path, publish_toy):
    teacher = teach(tmp_path, RECIPE.replace('"tiny"', '"Photos, 8x8 grey"'))
    run = ("run", "--teacher", teacher, "--out", tmp_path / "run", "--recipe", "fashion")
    sid_distill(*run, *SMALL_RUN, "--sigma-init", 2.5)
    generator = tmp_path / "run" / "network.safetensors"
    _, metadata = load_network(generator)
    save_toy(generator, **metadata | {"classes": ["a", "b", "c"]})
    manifest, said = publish_toy(generator)
    assert (manifest.description, manifest.licence) == ("Photos, 8x8 grey", "CC-BY-4.0")
    assert "description" not in manifest.training
    assert "--description" not in said
    manifest, _ = publish_toy(generator, "--description", "Mine", "--licence", "MIT")
    assert (manifest.description, manifest.licence) == ("Mine", "MIT")


def test_images_of_ones_own_get_no_words_of_a_shipped_recipe(tmp_path, publish_toy):
    about = 'data = "fashion-mnist"\n' + RECIPE
    _, metadata = load_network(teach(tmp_path, about))
    assert not {"licence", "description"} & metadata.keys()
    generator = save_toy(tmp_path / "own.safetensors", role="generator", sigma_init=2.5)
    manifest, said = publish_toy(generator, "--licence", "LicenseRef-private")
    assert manifest.description == ""
    assert "says nothing about this model: publish it again with --description" in said


def test_the_shipped_fashion_recipe_licenses_its_own_data_only():
    recipe = load_recipe("fashion")
    assert recipe.licence_for("fashion-mnist") == "Apache-2.0"
    assert recipe.licence_for("photos") is None


def test_a_bundle_is_signed_and_one_that_is_no_more_is_warned_of(tmp_path, publish_toy):
    signing = pytest.importorskip("tests.service.signing")
    folder, public = tmp_path / "models" / "toy", signing.KEY.public_key().public_bytes_raw()
    (tmp_path / "key.pem").write_bytes(signing.private_pem(signing.KEY))
    generator = save_toy(tmp_path / "own.safetensors", role="generator", sigma_init=2.5)
    options = ("--licence", "MIT", "--sign", tmp_path / "key.pem")
    _, printed = publish_toy(generator, *options)
    name = fingerprint(public)
    assert f"signed by the key {name}\n" in printed
    assert load_bundle(folder, {public}).signed_by == name
    (tmp_path / "key.pem").write_text("hello")
    with pytest.raises(UserError, match=r"key\.pem: not a private key in PEM form"):
        publish_toy(generator, *options)
    assert load_bundle(folder, {public}).manifest.version == 1
    _, printed = publish_toy(generator, "--licence", "MIT")
    assert "warning: the version before was signed and this one is not" in printed
    with pytest.raises(BundleError, match="not signed"):
        load_bundle(folder, {public})
