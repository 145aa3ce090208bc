"""A training step waits for nothing from the device: it runs here where every wait is an error.

On a CUDA card the host waits where it reads a value back, where a shape depends on data, and
where ordinary host memory is copied to the card. A CPU does all of that without a sign, so a
dispatch mode looks at each operation, those of the backward pass too.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distill.data.augment import AUGMENT_DIM
from distill.data.datasets import Dataset
from distill.methods.dmd import Dmd
from distill.methods.pairs import Pairs
from distill.methods.regression import RegressionTraining
from distill.methods.sid import Sid, SidConfig
from distill.methods.sida import Sida, SidaConfig
from distill.methods.teacher import TeacherTraining
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from distill.training.distillation import Distillation
from distill.training.distributed import DistributedContext
from distill.training.examples import Examples
from distill.training.method import HalfStep
from distill.training.nonfinite import masked_sum, nonfinite_samples
from distill.training_config import RegressionConfig, TeacherConfig

CPU = DistributedContext(torch.device("cpu"))
LOOP = {
    "total_images": 64, "batch": 8, "microbatch": 4, "lr": 1e-3, "ema_halflife": 40,
    "checkpoint_every": 64,
}  # fmt: skip

READ_BACK = {"_local_scalar_dense", "item", "is_nonzero", "equal", "allclose"}
SHAPED_BY_DATA = {
    "nonzero", "argwhere", "masked_select", "bincount", "unique_dim", "unique_consecutive",
    "unique_dim_consecutive", "_unique", "_unique2", "repeat_interleave.Tensor",
}  # fmt: skip
# Checks its weights on the host before it draws.
CHECKED_ON_THE_HOST = {"multinomial"}
# What torch makes of numbers, lists and arrays of Python's: it lies on the host.
MADE_OF_HOST_MEMORY = {"lift_fresh", "lift_fresh_copy"}
FORBIDDEN = READ_BACK | SHAPED_BY_DATA | CHECKED_ON_THE_HOST | MADE_OF_HOST_MEMORY


class WaitedError(AssertionError):
    """An operation that waits for a CUDA card."""


class NoWaiting(TorchDispatchMode):
    """Raises at each operation that waits, and counts the others."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet, overload = func._schema.name.removeprefix("aten::"), func._overloadname
        self.seen.add(packet)
        if packet in FORBIDDEN or f"{packet}.{overload}" in FORBIDDEN:
            raise WaitedError(str(func))
        indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
        masks = [one for one in indices if getattr(one, "dtype", None) is torch.bool]
        if masks and "index" in packet:
            raise WaitedError(f"{func} by a mask")
        return func(*args, **(kwargs or {}))


def network(classes, augment_dim=0, dropout=0.1, architecture="ddpmpp"):
    return EdmConfig(
        architecture=architecture, img_resolution=8, img_channels=3, label_dim=classes,
        augment_dim=augment_dim, model_channels=8, channel_mult=(1, 2), num_blocks=1,
        attn_resolutions=(4,), dropout=dropout,
    )  # fmt: skip


def ramp(classes):
    pixels = torch.arange(30 * 192).remainder(255).to(torch.uint8).view(30, 3, 8, 8)
    names = tuple(map(str, range(classes)))
    return Dataset("ramp", pixels, torch.arange(30) % max(classes, 1), names)


def make_teacher(classes, augmented=0.5, precision="float32", architecture="ddpmpp"):
    config = TeacherConfig(augment=augmented, precision=precision, **LOOP)
    shape = network(classes, AUGMENT_DIM if augmented else 0, architecture=architecture)
    return TeacherTraining(shape, config, ramp(classes), CPU)


def make_sid(classes, augmented=0.5, frequencies=None, precision="float32", method=Sid, **few_step):
    config = method.section(
        augment=augmented, class_frequencies=frequencies, precision=precision, **LOOP, **few_step
    )
    return Distillation(method(config), Denoiser(network(classes, AUGMENT_DIM)), CPU)


def make_dmd(classes, **options):
    return make_sid(classes, method=Dmd, **options)


def make_sida(classes, augmented=0.5, precision="float32", mean_over="microbatch"):
    """Its generator rests in the first step, and the second is of SiD alone."""
    config = SidaConfig(
        augment=augmented, precision=precision, mean_over=mean_over, frozen_images=4, sid_images=9,
        **LOOP,
    )  # fmt: skip
    teacher = Denoiser(network(classes, AUGMENT_DIM))
    return Distillation(Sida(config), teacher, CPU, dataset=ramp(classes))


def make_regression(classes):
    shape = network(classes, AUGMENT_DIM)
    pixels = torch.arange(30 * 192).remainder(255).to(torch.uint8).view(30, 3, 8, 8)
    config = RegressionConfig(pairs=30, **LOOP)
    return RegressionTraining(Denoiser(shape), Pairs(shape, 0, pixels), config, CPU)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (make_teacher, {"classes": 3}),
        (make_teacher, {"classes": 0}),
        (make_teacher, {"classes": 3, "augmented": 0, "precision": "bfloat16"}),
        (make_teacher, {"classes": 3, "architecture": "ncsnpp"}),
        (make_teacher, {"classes": 3, "architecture": "adm"}),
        (make_sid, {"classes": 3}),
        (make_sid, {"classes": 0}),
        (make_sid, {"classes": 3, "frequencies": (1, 0, 2)}),
        (make_sid, {"classes": 3, "augmented": 0, "precision": "bfloat16"}),
        (make_dmd, {"classes": 3}),
        (make_dmd, {"classes": 0, "augmented": 0, "precision": "bfloat16"}),
        (make_sid, {"classes": 3, "steps": 4}),
        (make_sid, {"classes": 0, "augmented": 0, "steps": 2, "renoise": "fresh"}),
        (make_sida, {"classes": 3}),
        (make_sida, {"classes": 0, "mean_over": "sample"}),
        (make_sida, {"classes": 3, "augmented": 0, "precision": "bfloat16"}),
        (make_regression, {"classes": 3}),
        (make_regression, {"classes": 0}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "-".join(map(str, value.values())),
)
def test_a_step_waits_for_nothing(make, options):
    training = make(**options)
    with NoWaiting() as mode:
        for step in range(2):
            training.step(8 * step)
    # It saw the forward pass, the backward pass, Adam, and the average.
    assert {"convolution", "convolution_backward", "_fused_adam_", "_foreach_lerp_"} <= mode.seen


def read_number(loss):
    return loss * loss.sum().item()


def read_to_decide(loss):
    return loss if loss.sum() > 0 else -loss


def select_by_mask(loss):
    return loss[loss.detach().flatten(1).isfinite().all(dim=1)]


def put_by_mask(loss):
    return loss.clone().index_put((loss.detach() > 0,), torch.zeros(()))


def copy_from_the_host(loss):
    return loss * torch.tensor(2.0, device=loss.device)


def check_classes(loss):
    torch.nn.functional.one_hot(torch.zeros(4, dtype=torch.int64, device=loss.device), 3)
    return loss


@pytest.mark.parametrize(
    "wait",
    [
        read_number, read_to_decide, select_by_mask, put_by_mask, copy_from_the_host,
        check_classes,
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_wait_is_found(wait, where, monkeypatch):
    """Wherever one is planted: else the test above proves nothing."""

    def planted(left_out, loss, output):
        if where == "forward":
            loss = wait(loss)
        else:
            output.register_hook(lambda gradient: wait(gradient) and None)
        return masked_sum(left_out, loss, output)

    monkeypatch.setattr("distill.methods.denoising.masked_sum", planted)
    training = make_sid(3)
    with NoWaiting(), pytest.raises(WaitedError):
        training.step(0)


def half_step(classes, frequencies=None, section=SidConfig, steps=1):
    """What a method is given, on a device that holds no data at all."""
    device = torch.device("meta")
    config = section(augment=0.5, steps=steps, **LOOP)
    nets = [Denoiser(network(classes, AUGMENT_DIM)).to(device) for _ in range(3)]
    tensors = [ramp(classes).images.to(device), ramp(classes).labels.to(device)]
    examples = Examples(tensors, config.images_per_call, device)
    return HalfStep(*nets, config, device, frequencies, examples, ramp(classes))


@pytest.mark.parametrize(("classes", "steps"), [(0, 1), (3, 1), (3, 4)])
@pytest.mark.parametrize("name", ["fake_score_loss", "generator_loss"])
@pytest.mark.parametrize("method", [Sid, Sida, Dmd])
def test_losses_need_no_value_and_nothing_of_the_host(method, name, classes, steps):
    """torch's meta device knows shapes alone: to read from it, by whatever way, is an error."""
    frequencies = torch.rand(classes, dtype=torch.float64, device="meta") if classes else None
    half = half_step(classes, frequencies, method.section, steps)
    learns = method(half.config)
    with NoWaiting():
        learns.begin_step(0, half.device)
        getattr(learns, name)(half).total.backward()
    with pytest.raises((RuntimeError, NotImplementedError)):
        nonfinite_samples(half.draw_inputs()[0]).tolist()
