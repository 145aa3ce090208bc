"""Folders of latents: what stands in them, what is drawn of them, and what is refused."""

import resource
import subprocess
import sys

import numpy as np
import pytest
import torch

from distill.autoencoders import latent_space_of, load_autoencoder
from distill.data.datasets import Dataset
from distill.data.latents import read_latents, read_record
from distill.data.latents_writer import write_latents
from distill.errors import UserError
from distill.training.microbatches import seed_rng
from tests.latents import write_autoencoder

IMAGES = torch.randint(
    256, (11, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_autoencoder(tmp_path_factory.mktemp("autoencoder") / "tiny.safetensors", factor=4)


def write(out, file, images=IMAGES, resolution=16):
    autoencoder, metadata = load_autoencoder(file)

    def read(consume):
        for image in images.permute(0, 2, 3, 1).numpy():
            consume(image)
        return Dataset("noise", images[:0], torch.arange(len(images)) % 2, ("a", "b"), "noise")

    space = latent_space_of(autoencoder, metadata)
    write_latents(out, read, autoencoder.encoder, resolution, file.stem, space, batch=4)
    return autoencoder


def test_it_holds_the_moments_of_the_encoder_and_their_statistics(file, tmp_path):
    autoencoder = write(tmp_path / "latents", file)
    with torch.no_grad():
        moments = autoencoder.encoder(IMAGES.float() / 255)
    stored = np.load(tmp_path / "latents" / "moments.npy", mmap_mode="r")
    assert stored.shape == (11, 8, 4, 4)
    torch.testing.assert_close(torch.from_numpy(np.array(stored)), moments)
    record = read_record(tmp_path / "latents")
    mean, deviation = moments.double().chunk(2, dim=1)
    variance = mean.var(dim=(0, 2, 3), correction=0) + (deviation**2).mean(dim=(0, 2, 3))
    assert record.mean == pytest.approx(mean.mean(dim=(0, 2, 3)).tolist())
    assert record.std == pytest.approx(variance.sqrt().tolist())


def test_what_a_network_learns_has_mean_0_and_deviation_a_half(file, tmp_path):
    write(tmp_path / "latents", file)
    space = read_record(tmp_path / "latents").measured_space(file)
    dataset = read_latents(tmp_path / "latents", space)
    assert (len(dataset), dataset.shape, dataset.classes) == (11, (4, 4, 4), ("a", "b"))
    torch.manual_seed(0)
    drawn = torch.cat([dataset.to_images(dataset.rows) for _ in range(400)])
    assert drawn.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0] * 4, abs=0.02)
    assert drawn.std(dim=(0, 2, 3)).tolist() == pytest.approx([0.5] * 4, abs=0.02)


def test_draws_repeat_with_the_seed_of_a_micro_batch_and_differ_otherwise(file, tmp_path):
    write(tmp_path / "latents", file)
    dataset = read_latents(
        tmp_path / "latents", read_record(tmp_path / "latents").measured_space(file)
    )

    def draw(images_seen, microbatch=0):
        seed_rng(0, images_seen, 0, microbatch)
        return dataset.to_images(dataset.rows[:4])

    assert torch.equal(draw(64), draw(64))
    assert not torch.equal(draw(64), draw(128))
    assert not torch.equal(draw(64), draw(64, 1))


def test_a_digest_tells_latents_and_their_scale_apart(file, tmp_path):
    write(tmp_path / "a", file)
    write(tmp_path / "b", file)
    write(tmp_path / "c", file, IMAGES.flip(0))
    space = read_record(tmp_path / "a").measured_space(file)
    first, same, other = (read_latents(tmp_path / name, space).digest() for name in "abc")
    assert first == same != other
    scaled = space.model_copy(update={"bias": (0.0,) * 4})
    assert read_latents(tmp_path / "a", scaled).digest() != first


@pytest.mark.parametrize("name", ["moments.npy", "labels.npy"])
def test_a_damaged_folder_is_refused(file, tmp_path, name):
    write(tmp_path / "latents", file)
    space = read_record(tmp_path / "latents").measured_space(file)
    damaged = tmp_path / "latents" / name
    damaged.write_bytes(damaged.read_bytes()[:-5])
    with pytest.raises(UserError, match="latents is damaged"):
        read_latents(tmp_path / "latents", space)


def test_images_that_do_not_fit_are_refused_and_nothing_is_left(file, tmp_path):
    with pytest.raises(UserError, match="have 16x16 pixels: say --resolution 16"):
        write(tmp_path / "latents", file, resolution=32)
    grey = write_autoencoder(tmp_path / "grey.safetensors", img_channels=1, factor=4)
    with pytest.raises(UserError, match="the images are colour, the autoencoder is for grey ones"):
        write(tmp_path / "latents", grey)
    assert [path.name for path in tmp_path.iterdir()] == ["grey.safetensors"]
    write(tmp_path / "latents", file)
    with pytest.raises(UserError, match="latents exists"):
        write(tmp_path / "latents", file)


def test_a_disk_without_room_is_one_line_and_nothing_is_left(file, tmp_path):
    script = (
        "import sys, resource, pathlib; from tests.distill.data.test_latents import write\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))\n"
        "from distill.errors import UserError\n"
        "try: write(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
        "except UserError as error: print(error)\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    command = [sys.executable, "-c", script, str(tmp_path / "latents"), str(file)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "there is no room for these latents, which take 512 bytes an image" in printed
    assert not list(tmp_path.iterdir())
