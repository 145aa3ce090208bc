"""The examples of a micro-batch: the rows that were meant, on the device, always in one place."""

import pytest
import torch

from distill.training.examples import Examples

IMAGES = torch.arange(20 * 12).to(torch.uint8).view(20, 3, 2, 2)
LABELS = torch.arange(20) % 3
ON_A_CARD = pytest.mark.gpu


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_A_CARD)])
@pytest.mark.parametrize("has_room", [True, False])
def test_a_batch_is_of_the_rows_that_were_meant(device, has_room, monkeypatch):
    """Whether the examples lie on the device or stay in the host's memory."""
    monkeypatch.setattr("distill.training.examples._has_room", lambda *_: has_room)
    examples = Examples([IMAGES, LABELS], 4, torch.device(device))
    places = [batch.data_ptr() for batch in examples.batch]
    for indices in (torch.tensor([19, 0, 7, 7]), torch.tensor([1, 2, 3, 4])):
        examples.load(indices)
        images, labels = examples.batch
        assert images.device.type == device
        assert torch.equal(images.cpu(), IMAGES[indices])
        assert torch.equal(labels.cpu(), LABELS[indices])
    assert [batch.data_ptr() for batch in examples.batch] == places


@ON_A_CARD
def test_a_card_takes_no_more_than_half_of_what_it_has_left(monkeypatch):
    for left, on_card in ((2 * (IMAGES.nbytes + LABELS.nbytes), True), (IMAGES.nbytes, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, left=left: (left, left))
        examples = Examples([IMAGES, LABELS], 4, torch.device("cuda"))
        assert all(rows.is_cuda == on_card for rows in examples._rows)
