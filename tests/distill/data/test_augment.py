"""Augmentation: labels say what was done, what is spared stays exact, directions are right."""

import math

import pytest
import torch

from distill.data.augment import AUGMENT_DIM, augment


def blob(x, y, size=32):
    """A bright spot at (x, y), in units of half a width from the middle, x right and y down."""
    places = (torch.arange(size) + 0.5) / size * 2 - 1
    squared = (places[None, :] - x) ** 2 + (places[:, None] - y) ** 2
    return torch.exp(-squared / 0.02)


def centre(image, near):
    """Where an image's brightness near a place lies: (x, y) in the units of `blob`."""
    size = image.shape[-1]
    places = (torch.arange(size) + 0.5) / size * 2 - 1
    squared = (places[None, :] - near[0]) ** 2 + (places[:, None] - near[1]) ** 2
    image = image * (squared < 0.35**2)  # farther away are reflections beyond the border
    total = image.sum().clamp(min=1e-6)
    return torch.stack([image.sum(0) @ places / total, image.sum(1) @ places / total])


def stretched(place, amount, axis):
    """A place after a stretch by 2^(0.2 amount) along an axis, and a squeeze across it."""
    along = torch.tensor([math.cos(axis), math.sin(axis)])
    across = torch.tensor([-math.sin(axis), math.cos(axis)])
    longer, shorter = 2 ** (0.2 * amount), 2 ** (-0.2 * amount)
    return (place @ along) * longer * along + (place @ across) * shorter * across


def test_labels_tell_what_happened_to_each_image():
    torch.manual_seed(0)
    x, y = 0.3, 0.15
    images = blob(x, y).repeat(400, 1, 1, 1)
    augmented, labels = augment(images, 0.3)
    assert labels.shape == (400, AUGMENT_DIM)
    followed = 0
    for image, label in zip(augmented, labels.tolist(), strict=True):
        mirror, flip, scale, cos, sin, stretch_x, stretch_y, shift_x, shift_y = label
        # Angles are counter-clockwise as seen, and y points down.
        place = torch.tensor([x * (1 - 2 * mirror), y * (1 - 2 * flip)])
        place = place * 2 ** (0.2 * scale)
        turn = torch.tensor([[cos + 1, sin], [-sin, cos + 1]])
        place = turn @ place
        stretch, axis = math.hypot(stretch_x, stretch_y), math.atan2(-stretch_y, stretch_x)
        # The paper's label does not tell a stretch along an axis from a squeeze: (w, r) is
        # (-w, r + pi). Either may have happened.
        places = [stretched(place, amount, axis) for amount in (stretch, -stretch)]
        places = [p + 0.25 * torch.tensor([shift_x, shift_y]) for p in places]
        if max(p.abs().max() for p in places) < 0.5:
            assert min((centre(image[0], p) - p).abs().max() for p in places) < 0.03, label
            followed += 1
    assert followed > 200


def test_what_is_spared_keeps_its_pixels():
    torch.manual_seed(1)
    images = torch.randn(300, 3, 8, 8)
    augmented, labels = augment(images, 0.1)
    spared = (labels == 0).all(dim=1)
    mirrored = (labels[:, 0] == 1) & (labels[:, 1:] == 0).all(dim=1)
    assert 50 < spared.sum() < 150
    assert torch.equal(augmented[spared], images[spared])
    assert torch.equal(augmented[mirrored], images[mirrored].flip(3))
    assert labels[:, 0].mean() == pytest.approx(0.5, abs=0.1)


def test_each_augmentation_comes_with_its_probability():
    torch.manual_seed(2)
    _, labels = augment(torch.zeros(20_000, 1, 4, 4), 0.12)
    share = (labels != 0).float().mean(dim=0)
    expected = torch.tensor([0.5, 0.06, 0.12, 0.12, 0.12, 0.12, 0.12, 0.12, 0.12])
    torch.testing.assert_close(share, expected, rtol=0, atol=0.01)


def test_shapes_types_and_channels_last_are_kept():
    images = torch.rand(4, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    augmented, labels = augment(images, 1.0)
    assert (augmented.shape, augmented.dtype) == (images.shape, torch.float32)
    assert labels.dtype == torch.float32
    assert augmented.isfinite().all()
    assert augmented.abs().max() < 1.5
