"""The programs behind the avatars' figures, at toy size."""

import re
import sys

import torch
from PIL import Image

from distill.checkpoints import save_network
from distill.evaluation.classifier import save_classifier, train_extractor
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from tests.compare import colour_spread, halved_colours
from tests.distill.evaluation.test_features import discs

COLOURS = [(230, 40, 40), (40, 200, 60), (50, 70, 230), (230, 210, 60)]


def write(folder, dataset):
    for number, (image, label) in enumerate(zip(dataset.images, dataset.labels, strict=True)):
        place = folder / dataset.classes[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{number}.png")
    return folder


def test_images_that_lost_half_of_their_colours_score_worse(tmp_path, monkeypatch, capsys):
    train, test = discs(400, COLOURS, seed=1), discs(400, COLOURS, seed=2)
    extractor = train_extractor("discs", train, None, epochs=3, thumbnail=4)
    save_classifier(tmp_path / "discs.safetensors", extractor)
    arguments = ["--features", tmp_path / "discs.safetensors", "--images", 400]
    arguments += ["--data", write(tmp_path / "a", train), "--test", write(tmp_path / "b", test)]
    monkeypatch.setattr(sys, "argv", ["halved_colours", *map(str, arguments)])
    halved_colours.main()
    floor, halved = re.findall(r"distance ([0-9.]+)", capsys.readouterr().out)
    assert float(halved) > 2 * float(floor)


def test_the_spread_is_printed_for_teachers_and_generators(tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    network = Denoiser(
        EdmConfig(
            img_resolution=8, img_channels=3, label_dim=2, model_channels=8, channel_mult=(1,),
            num_blocks=1, attn_resolutions=(),
        )
    )  # fmt: skip
    metadata = {"classes": ["a", "b"], "sigma_init": 2.5}
    files = []
    for role in ("teacher", "generator"):
        files.append(str(tmp_path / f"{role}.safetensors"))
        save_network(tmp_path / f"{role}.safetensors", network, metadata | {"role": role})
    monkeypatch.setattr(sys, "argv", ["colour_spread", *files])
    colour_spread.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(re.search(r"whole 0\.\d+  cells 0\.\d+", line) for line in lines)
