"""Measuring networks: protocols, several processes, and the command a person types."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.checkpoints import save_network
from distill.commands import evaluate as commands
from distill.commands.reference import reference
from distill.data.datasets import load_dataset
from distill.data.images import to_pixels
from distill.errors import UserError
from distill.evaluation.classifier import save_classifier, train_extractor
from distill.evaluation.evaluate import collect_feature_stats, measure
from distill.evaluation.feature_extractor import FeatureExtractor, FeatureModule
from distill.evaluation.frechet import statistics
from distill.evaluation.inception import SHA256
from distill.evaluation.measurement import Measurement, load_measurement, save_measurement
from distill.evaluation.protocol import PROTOCOLS, summary
from distill.evaluation.reference import make_reference
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from service.bundle import latents, sha256_file

BIN = Path(sys.executable).parent


class Moody(FeatureModule):
    """Mean and spread of an image's pixels; sure of one of two classes by the first."""

    dimensions = 2

    def extract(self, pixels, probabilities):
        x = pixels.float().flatten(1)
        sure = torch.stack([x.mean(1), 255 - x.mean(1)], dim=1) / 255
        return torch.stack([x.mean(1), x.std(1)], dim=1), sure if probabilities else None


MOODY = FeatureExtractor("moody", Moody(), "m" * 64)
CONFIG = {
    "img_resolution": 8, "img_channels": 1, "label_dim": 2, "model_channels": 8,
    "channel_mult": (1,), "num_blocks": 1, "attn_resolutions": (),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set, a classifier of it, and an untrained generator and teacher of its shape."""
    folder = tmp_path_factory.mktemp("evaluate")
    stream = np.random.RandomState(0)
    for name, shade in (("bright", 150), ("dark", 0)):
        (folder / "data" / name).mkdir(parents=True)
        for i in range(200):
            pixels = (stream.randint(0, 100, (8, 8)) + shade).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "data" / name / f"{i}.png")
    dataset = load_dataset(folder / "data", resolution=8)
    save_classifier(folder / "shades.safetensors", train_extractor("shades", dataset, None, 2))
    torch.manual_seed(0)
    few_step = {"sigma_init": 2.5, "steps": 4}
    for name, more in (("generator", {"sigma_init": 2.5}), ("teacher", {}), ("four", few_step)):
        role = "teacher" if name == "teacher" else "generator"
        metadata = {"role": role, "classes": ["bright", "dark"], "images_seen": 1, **more}
        network = Denoiser(EdmConfig(**CONFIG)).eval()
        save_network(folder / f"{name}.safetensors", network, metadata)
    return folder


@pytest.fixture(scope="module")
def network():
    return Denoiser(EdmConfig(**CONFIG)).eval()


def labels_shine(z, labels):
    """A "sampler" whose images show their noise, and their class by their shade."""
    return 0.2 * z + (labels[:, :1, None, None] - 0.5)


def test_images_come_from_the_served_seeds_and_from_class_after_class(network):
    (observed,) = collect_feature_stats(labels_shine, network, [MOODY], 30, first_seed=7, batch=8,
                                   metrics=["kid", "is"])  # fmt: skip
    z = torch.from_numpy(latents(range(7, 37), (1, 8, 8)))
    classes = torch.nn.functional.one_hot(torch.arange(30) % 2, 2).float()
    pixels = to_pixels(labels_shine(z, classes)).permute(0, 3, 1, 2)
    expected = MOODY.extract(pixels, probabilities=True)
    np.testing.assert_array_equal(np.concatenate(observed.features), expected.features)
    np.testing.assert_array_equal(np.concatenate(observed.probabilities), expected.probabilities)
    assert observed.hits is None, "its classes need not be the network's"
    merged = observed.moments.statistics()
    np.testing.assert_allclose(merged.sigma, statistics(expected.features).sigma)


def test_a_plain_distance_keeps_no_features(network):
    (observed,) = collect_feature_stats(labels_shine, network, [MOODY], 300)
    assert observed.features == observed.probabilities == ()
    assert observed.moments.count == 300


def test_what_a_reference_lacks_is_said(folder, network):
    dataset = load_dataset(folder / "data", resolution=8)
    bare = make_reference(dataset, MOODY, keep_features=False)
    whole = make_reference(dataset, MOODY)
    with pytest.raises(UserError, match=r"moody brings no statistics.*--data.*--reference"):
        measure(labels_shine, network, MOODY, 64)
    with pytest.raises(UserError, match=r"kid and pr need .*--keep-features"):
        measure(labels_shine, network, MOODY, 64, reference=bare, metrics=["pr", "kid"])
    every = measure(labels_shine, network, MOODY, 64, reference=whole, metrics=["pr", "kid", "is"])
    plain = measure(labels_shine, network, MOODY, 64, reference=bare)
    assert set(plain) == {"distance"}
    assert plain["distance"] == every["distance"]
    assert {"precision", "recall", "kernel_distance", "class_score"} < set(every)


def test_protocols_are_those_of_the_papers():
    trials = [
        {"distance": d, "accuracy": a, "kernel_distance": d, "kernel_distance_std": 9.0}
        for d, a in ((3.0, 0.5), (1.0, 0.6), (2.0, 0.7))
    ]
    assert summary("edm", trials) == trials[1]
    assert summary("sid", trials) == pytest.approx(
        {"distance": 2, "distance_std": 1, "accuracy": 0.6, "accuracy_std": 0.1,
         "kernel_distance": 2, "kernel_distance_std": 1}
    )  # fmt: skip
    assert [PROTOCOLS[name].trials for name in ("one", "edm", "sid")] == [1, 3, 10]


def test_only_fids_own_network_makes_a_fid():
    metadata = {
        "role": "teacher", "network_sha256": "n", "reference": "r", "images": 256,
        "first_seed": 0, "evaluations": 35, "distance": 1.5,
    }  # fmt: skip
    fid = Measurement(features="inception-2015-12-05", features_sha256=SHA256, **metadata)
    other = Measurement(features="inception-2015-12-05", features_sha256="f", **metadata)
    assert fid.names["distance"] == "FID"
    assert other.names["distance"] == "Fréchet distance over inception-2015-12-05 features"
    assert not fid.is_comparable(other)


def test_measurements_of_before_are_read(tmp_path):
    """As version 0.1.0 wrote them."""
    network = tmp_path / "n.safetensors"
    network.write_bytes(b"weights")
    metadata = {
        "role": "teacher", "network_sha256": sha256_file(network), "features": "fashion-cnn",
        "features_sha256": "f", "reference": "60000 training images", "images": 10000,
        "first_seed": 0, "evaluations": 35, "distance": 4.5, "accuracy": 0.8,
        "real_distance": 0.06, "real_accuracy": 0.9,
    }  # fmt: skip
    (tmp_path / "n.quality.json").write_text(json.dumps(metadata))
    old = load_measurement(network, "teacher")
    assert (old.protocol, old.trials, old.others) == ("one", [], [])
    save_measurement(network, old.model_copy(update={"others": [old]}))
    assert load_measurement(network, "teacher").others == [old]


@pytest.fixture
def evaluate(folder, capsys):
    """The command, in this process: what it printed as JSON, and the table above it."""

    def evaluate(role="generator", **options):
        options = {"features": [str(folder / "shades.safetensors")], "images": 256} | options
        capsys.readouterr()
        commands.evaluate(folder / f"{role}.safetensors", device="cpu", **options)
        told = capsys.readouterr()
        return json.loads(told.out), told.err

    return evaluate


@pytest.mark.long
def test_two_processes_find_what_one_finds(folder, evaluate):
    npz, shades = folder / "shades.npz", folder / "shades.safetensors"
    reference(npz, str(shades), folder / "data", 8, keep_features=True, device="cpu")
    one, told = evaluate(reference=[npz], metrics="kid,pr,is", batch=100, images=300)
    assert "precision over shades features" in told
    line = [
        BIN / "torchrun", "--standalone", "--nproc-per-node", 2, "--no-python",
        BIN / "sid-distill", "evaluate", folder / "generator.safetensors", "--features", shades,
        "--reference", npz, "--metrics", "kid,pr,is", "--batch", 100, "--images", 300,
        "--device", "cpu",
    ]  # fmt: skip
    (folder / "generator.quality.json").unlink()
    two = subprocess.run(
        list(map(str, line)),
        capture_output=True, text=True, timeout=250, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    assert two.stdout.count('"role"') == 1, "only one process talks"
    written = json.loads((folder / "generator.quality.json").read_text())
    for name, value in one.items():
        same = pytest.approx(value, rel=1e-9) if isinstance(value, float) else value
        assert written[name] == same, name


def test_several_networks_look_at_the_same_images(folder, evaluate):
    shades = str(folder / "shades.safetensors")
    result, told = evaluate(features=[shades, shades], protocol="edm")
    (other,) = result["others"]
    assert other["distance"] == result["distance"] == min(t["distance"] for t in result["trials"])
    assert len({trial["distance"] for trial in result["trials"]}) == 3, "other seeds, other figures"
    assert "distances of the trials" in told
    # Trial 1 is what anyone gets who asks for its seeds.
    alone, _ = evaluate(first_seed=256)
    assert alone["distance"] == pytest.approx(result["trials"][1]["distance"], rel=1e-9)


def test_the_data_themselves_will_do_for_a_reference(folder, evaluate):
    result, _ = evaluate(data=folder / "data", metrics="pr", protocol="sid")
    assert result["reference"] == "400 images of data"
    assert len(result["trials"]) == 10
    assert {"precision_std", "distance_std"} <= result.keys()
    own, _ = evaluate()
    assert own["distance"] == pytest.approx(result["trials"][0]["distance"], rel=1e-6)


def test_a_teacher_is_sampled_in_as_many_steps_as_asked_for(folder, evaluate):
    result, _ = evaluate("teacher", steps=2)
    assert (result["role"], result["evaluations"]) == ("teacher", 3)
    assert result["features_sha256"] == sha256_file(folder / "shades.safetensors")
    measured = load_measurement(folder / "teacher.safetensors", "teacher")
    assert measured.distance == result["distance"]


def test_eulers_sampler_takes_one_evaluation_a_step(evaluate):
    by_heun, _ = evaluate("teacher", steps=2)
    by_euler, _ = evaluate("teacher", steps=3, sampler_name="euler")
    assert (by_heun["sampler"], by_euler["sampler"]) == ("heun", "euler")
    assert by_heun["evaluations"] == by_euler["evaluations"] == 3
    assert by_heun["distance"] != by_euler["distance"], "other steps, other images"


def test_a_generator_of_several_steps_takes_as_many_evaluations(folder, evaluate):
    result, told = evaluate("four")
    assert (result["evaluations"], "4 network evaluations each" in told) == (4, True)
    fresh, told = evaluate("four", renoise="fresh")
    assert fresh["distance"] != result["distance"]
    assert evaluate("four", renoise="fresh")[0] == fresh, "it is drawn from each image's own noise"
    assert "not kept" in told
    kept = load_measurement(folder / "four.safetensors", "generator")
    assert kept.distance == result["distance"]
    with pytest.raises(UserError, match="is a generator: it takes 4 steps, leave out --steps"):
        evaluate("four", steps=5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"renoise": "fresh"}, "no generator of several steps"),
        ({"renoise": "new"}, "no renoise 'new': choose of same, fresh"),
        ({"metrics": "fid"}, "no metric fid: choose of kid, pr, is"),
        ({"protocol": "best"}, "no protocol 'best': choose of one, edm, sid"),
        ({"steps": 5}, "takes one step"),
        ({"sampler_name": "euler"}, "takes one step, leave out --sampler"),
        ({"role": "teacher", "sampler_name": "ddim"}, "no sampler 'ddim': choose of heun, euler"),
        ({"metrics": "pr"}, "pr need each real image's features"),
        ({"reference": [Path("missing.npz")]}, "no reference at missing.npz"),
        ({"features": ["detector.pt"]}, "no file detector.pt"),
        ({"features": []}, "no shipped feature extractor"),
    ],
)
def test_what_cannot_be_measured_is_said(options, said, evaluate):
    with pytest.raises(UserError, match=said):
        evaluate(**options)
