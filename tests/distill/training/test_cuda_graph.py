"""A step that is captured and replayed is the step that it was, whatever changes between steps.

CUDA graphs need a card; here `AtenRecorder` freezes a step in the same way.
"""

import math

import pytest
import torch
from PIL import Image
from torch.utils._pytree import tree_map

from distill.checkpoints import save_network
from distill.cli import app
from distill.data.datasets import Dataset
from distill.methods.pairs import Pairs
from distill.methods.regression import RegressionTraining
from distill.methods.sid import Sid, SidConfig
from distill.methods.sida import Sida, SidaConfig
from distill.methods.teacher import TeacherTraining
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from distill.training import cuda_graph
from distill.training.cuda_graph import EAGER_STEPS, StepGraphs, step_graphs
from distill.training.distillation import Distillation
from distill.training.distributed import DistributedContext
from distill.training.learner import Learner
from distill.training.phase import Phase
from distill.training_config import RegressionConfig, TeacherConfig
from tests.distill.tiny_recipe import tiny_recipe
from tests.distill.training.aten_recorder import AtenRecorder

CPU = DistributedContext(torch.device("cpu"))
NETWORK = EdmConfig(
    img_resolution=8, img_channels=1, label_dim=3, augment_dim=9, model_channels=8,
    channel_mult=(1,), num_blocks=1, attn_resolutions=(8,), dropout=0.2,
)  # fmt: skip
ON_A_CARD = pytest.mark.gpu
BATCH, STEPS = 8, 10
LOOP = {
    "total_images": STEPS * BATCH, "batch": BATCH, "microbatch": 4, "lr": 3e-3,
    "ema_halflife": 20, "checkpoint_every": 10_000,
}  # fmt: skip


def network():
    torch.manual_seed(0)
    made = Denoiser(NETWORK)
    for weight in made.parameters():
        if weight.dim() > 1:  # the last layers begin near 0 and would hide the others
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return made


def make_sid(context=CPU, **changes):
    """With micro-batches, dropout, classes, augmentation, and rates that fall to nothing."""
    config = SidConfig(
        **LOOP | {"augment": 0.3, "cooldown": 60, "class_frequencies": (1, 2, 1)} | changes
    )
    return Distillation(Sid(config), network(), context)


def noise():
    pixels = torch.randint(
        256, (30, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    return Dataset("noise", pixels, torch.arange(30) % 3, ("a", "b", "c"))


def make_sida(context=CPU, **changes):
    """Its generator rests, then learns by SiD alone, then by both, all while steps are replayed."""
    stages = {"frozen_images": BATCH, "sid_images": 5 * BATCH, "adversarial_weight": 1.0}
    config = SidaConfig(**LOOP | {"augment": 0.3} | stages | changes)
    return Distillation(Sida(config), network(), context, dataset=noise())


def make_teacher(context=CPU, **changes):
    config = TeacherConfig(**LOOP | {"augment": 0.3, "warmup": 30} | changes)
    training = TeacherTraining(NETWORK, config, noise(), context)
    training.learner.network.load_state_dict(network().state_dict())
    return training


def make_regression(context=CPU, **changes):
    pixels = torch.arange(30 * 64).remainder(255).to(torch.uint8).view(30, 1, 8, 8)
    config = RegressionConfig(**LOOP | {"pairs": 30, "warmup": 30} | changes)
    return RegressionTraining(network(), Pairs(NETWORK, 0, pixels), config, context)


def graphed(training, recorder=None):
    """The same training, as it is on CUDA."""
    recorder = recorder or AtenRecorder()
    training.graphs = StepGraphs(recorder)
    return training, recorder


def run(training, steps=STEPS, spoiled=(), between=lambda _step: None):
    """Take steps; in those of `spoiled` the learning networks draw or see NaN. Return all."""
    factor = torch.ones((), device=training.context.device)
    spoil = lambda _m, _i, output: tree_map(lambda part: part * factor, output)  # noqa: E731
    for learner in training.learners.values():
        learner.network.register_forward_hook(spoil)
    logged = []
    for step in range(steps):
        between(step)
        factor.fill_(math.nan if step in spoiled else 1)
        logged.append(training.step(step * BATCH))
    counts = [(one.left_out, one.skipped, one.consecutive_skips) for one in learners(training)]
    return {"logged": logged, "state": training.state(), "counts": counts}


def learners(training):
    return training.learners.values()


def equal(a, b):
    """Whether two nests of tensors and numbers are the same to the bit, NaN among them."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a.nan_to_num(12345), b.nan_to_num(12345))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def graphs_of(training):
    return 2 * len(training.learners)


@pytest.mark.parametrize("changes", [{}, {"precision": "bfloat16"}], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("make", [make_sid, make_teacher, make_regression])
def test_replayed_steps_are_the_eager_ones_to_the_bit(make, changes):
    """Two of them are skipped: their average moves, their weights, moments and counts do not.

    In bfloat16 weights are cast in each replay: a cast that was kept from the capture would be
    of old weights.
    """
    training, recorder = graphed(make(**changes))
    found = run(training, spoiled=(6, 7))
    assert equal(found, run(make(**changes), spoiled=(6, 7)))
    assert recorder.recorded == graphs_of(training)
    replays_per_step = 3 * len(training.learners)  # two micro-batches and the end
    assert recorder.replayed == (STEPS - EAGER_STEPS) * replays_per_step
    for learner in learners(training):
        assert learner.skipped.item() == 2


def test_replayed_steps_of_a_generator_of_two_steps_are_the_eager_ones_to_the_bit():
    """Which begins with calls of other sizes, without gradients, and draws more noise."""

    def make():
        return make_sid(steps=2, renoise="fresh", precision="bfloat16")

    training, recorder = graphed(make())
    few = EAGER_STEPS + 2
    assert equal(run(training, steps=few), run(make(), steps=few))
    assert recorder.replayed == (few - EAGER_STEPS) * 6


@pytest.mark.slow
def test_a_schedule_goes_on_in_replayed_steps():
    """A generator that rests has no graphs yet; later its shares of the losses change in them."""
    training, recorder = graphed(make_sida())
    assert equal(run(training), run(make_sida()))
    assert recorder.recorded == graphs_of(training)
    rested = 2
    assert recorder.replayed == 3 * (2 * (STEPS - EAGER_STEPS) - rested)


def test_a_step_that_is_skipped_is_not_what_a_capture_is_compared_on():
    training, recorder = graphed(make_sid())
    found = run(training, spoiled=(EAGER_STEPS,))
    assert equal(found, run(make_sid(), spoiled=(EAGER_STEPS,)))
    assert recorder.replayed == (STEPS - EAGER_STEPS - 1) * 6


def number_for_a_rate(monkeypatch):
    """Adam is given its rate as a number."""
    whole = Learner.begin_step

    def begin_step(self, rate):
        whole(self, rate)
        self.optimizer.param_groups[0]["lr"] = rate

    monkeypatch.setattr(Learner, "begin_step", begin_step)


def number_for_a_weight(monkeypatch):
    """The average is given its weight as a number."""
    whole, kept = Phase.run, []

    def run(self, graphs, prepares, rate, ema_beta=1.0):
        kept.append(ema_beta)
        return whole(self, graphs, prepares, rate, ema_beta)

    def update_ema(ema, network, _weight):
        with torch.no_grad():
            averages, weights = list(ema.parameters()), list(network.parameters())
            torch._foreach_lerp_(averages, weights, 1 - kept[-1])

    monkeypatch.setattr(Phase, "run", run)
    monkeypatch.setattr("distill.training.phase.update_ema", update_ema)


@pytest.mark.parametrize("mistake", [number_for_a_rate, number_for_a_weight])
@pytest.mark.parametrize("make", [make_sid, make_teacher])
def test_a_number_that_changes_would_be_found(make, mistake, monkeypatch):
    """The first test of this file can fail: here is what it guards against."""
    mistake(monkeypatch)
    training, recorder = graphed(make())
    found = run(training)
    assert recorder.replayed > STEPS, "it does not fall back, for both are alike in one step"
    assert not equal(found["state"], run(make())["state"])


def test_a_phase_whose_tensors_were_moved_is_captured_anew():
    """Weights of another network that it reads. A state that is loaded moves nothing."""
    training, recorder = graphed(make_sid())

    def move(step, training=training):
        if step == 5:
            for parameter in training.teacher.parameters():
                parameter.data = parameter.data.clone()
        if step == 6:
            training.load_state(training.state())

    found = run(training, steps=14, between=move)
    assert equal(found, run(make_sid(), steps=14))
    assert recorder.recorded == 2 * graphs_of(training)


class WrongSeed(AtenRecorder):
    """Replays with other draws than those that it was seeded for."""

    def record(self, work):
        replay = super().record(work)

        def otherwise():
            torch.manual_seed(torch.initial_seed() + 1)
            replay()

        return otherwise


class BreaksOff(AtenRecorder):
    """A capture that fails after it did some of its work."""

    def record(self, work):
        super().record(work)
        try:
            raise RuntimeError("the graph has too many nodes\nand more")
        except RuntimeError:
            raise RuntimeError("capture was invalidated") from None


@pytest.mark.parametrize(
    ("recorder", "said"),
    [
        (WrongSeed, "the gradients of a replayed step are"),
        (BreaksOff, "without CUDA graphs: the graph has too many nodes\n"),
    ],
)
@pytest.mark.parametrize("make", [make_sid, make_teacher])
def test_where_a_capture_does_not_do_training_goes_on_eagerly(make, recorder, said, capsys):
    training, recorder = graphed(make(), recorder())
    found = run(training)
    assert equal(found, run(make()))
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("note: the training goes on without CUDA graphs") == 1
    assert output.err.count("\n") == 1
    assert said in output.err
    assert recorder.recorded <= 2, "the other phases do not try"
    assert recorder.cleaned_up == 1


def wait(_module, _inputs, output):
    """A hook that reads a value back."""
    output.sum().item()


def test_a_loss_that_waits_for_the_device_is_computed_eagerly(capsys):
    training, _ = graphed(make_teacher())
    training.learner.network.register_forward_hook(wait)
    found = run(training)
    assert equal(found, run(make_teacher()))
    assert "waits for the device" in capsys.readouterr().err


def test_a_replay_may_differ_by_what_sums_in_another_order_do():
    """And by no more: a gradient off by a hundredth of itself passes, by a twentieth does not."""
    generator = torch.Generator().manual_seed(0)
    gradient, noise = (torch.randn(1000, generator=generator) for _ in range(2))
    before = {"gradients": [torch.zeros(1000)], "counts": [torch.tensor(3)]}
    eager = {"gradients": [gradient], "counts": [torch.tensor(4)]}

    def fault(share, count=4):
        replayed = {"gradients": [gradient + share * noise], "counts": [torch.tensor(count)]}
        return cuda_graph._difference(before, eager, replayed)

    assert fault(0) is fault(0.01) is None
    assert fault(0.05).startswith("the gradients of a replayed step are")
    assert fault(math.nan).startswith("the gradients")
    assert fault(0, count=3).startswith("the counts")


def test_where_steps_are_not_captured(capsys):
    """On a CPU, where it was not wanted, and among several processes, which is said once."""
    cuda = torch.device("cuda")
    assert make_teacher().graphs is None
    assert step_graphs(DistributedContext(cuda, cuda_graph=False)) is None
    assert step_graphs(DistributedContext(cuda, rank=1, size=2)) is None
    assert capsys.readouterr().err == ""
    assert step_graphs(DistributedContext(cuda, rank=0, size=2)) is None
    assert step_graphs(DistributedContext(cuda, shard=True)) is None
    assert capsys.readouterr().err.count("note: steps are not captured as CUDA graphs") == 2


@pytest.fixture
def one_form(monkeypatch):
    """The same in both trainings that are compared, for dropout draws otherwise in another."""
    for module in ("distillation", "single_network"):
        monkeypatch.setattr(f"distill.training.{module}.choose_form", lambda *_: "channels_last")


@ON_A_CARD
@pytest.mark.usefixtures("one_form")
@pytest.mark.parametrize(
    ("make", "precision"),
    [
        *((make_sid, precision) for precision in ("float32", "bfloat16", "float16")),
        (make_teacher, "bfloat16"),
        (make_regression, "bfloat16"),
    ],
)
def test_on_a_card_replayed_steps_are_the_eager_ones(make, precision, capsys):
    """But for the order of sums: the losses of all steps, and that it did not fall back.

    Some go through 0, so that a curve is compared by how large it gets.
    """
    cuda = torch.device("cuda")
    found = run(make(DistributedContext(cuda), precision=precision), spoiled=(6,))
    assert capsys.readouterr().err == ""
    eager = DistributedContext(cuda, cuda_graph=False)
    expected = run(make(eager, precision=precision), spoiled=(6,))
    for name in found["logged"][0]:
        some, others = ([float(one[name]) for one in of["logged"]] for of in (found, expected))
        largest = max(abs(one) for one in others if not math.isnan(one))
        assert some == pytest.approx(others, rel=0.05, abs=0.05 * largest, nan_ok=True), name


@ON_A_CARD
@pytest.mark.usefixtures("one_form")
def test_on_a_card_a_capture_that_fails_leaves_eager_steps_as_they_were(capsys):
    cuda = torch.device("cuda")
    training = make_teacher(DistributedContext(cuda))
    training.learner.network.register_forward_hook(wait)
    found = run(training)
    assert capsys.readouterr().err.count("without CUDA graphs") == 1
    expected = run(make_teacher(DistributedContext(cuda, cuda_graph=False)))
    losses = [[float(one["loss/teacher"]) for one in of["logged"]] for of in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.parametrize("command", ["teacher", "run", "regress"])
@pytest.mark.parametrize("options", [[], ["--no-cuda-graph"]])
def test_every_training_command_can_do_without(command, options, monkeypatch, tmp_path):
    """The option reaches the place where the process joins, which is where it is kept."""
    asked = []

    class JoinedError(Exception):
        pass

    def join(device, shard=False, cuda_graph=True):  # noqa: ARG001
        asked.append(cuda_graph)
        raise JoinedError

    monkeypatch.setattr("distill.training.distributed.join_process_group", join)
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE)
    if command == "teacher":
        given = ["--data", folder_of_images(tmp_path)]
    else:
        metadata = {"role": "teacher", "classes": ["a", "b", "c"], "images_seen": 0}
        save_network(tmp_path / "teacher.safetensors", network(), metadata)
        given = ["--teacher", tmp_path / "teacher.safetensors"]
    arguments = [command, "--out", tmp_path / "out", "--recipe", recipe, "--device", "cpu", *given]
    with pytest.raises(JoinedError):
        app([*map(str, arguments), *options], standalone_mode=False)
    assert asked == [not options]


RECIPE = tiny_recipe(
    teacher={"total_images": 64, "batch": 32},
    regression={"total_images": 64, "batch": 32},
    sid={"total_images": 64, "batch": 32, "lr": 1e-4},
)


def folder_of_images(tmp_path):
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    for number in range(2):
        Image.new("L", (8, 8), 100 * number).save(folder / f"{number}.png")
    return folder.parent
