"""float16's factor, driven in float32: gradients are what they were, overflows cost one step."""

import pytest
import torch
import torch.distributed as dist

from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from distill.training import gradient_scale
from distill.training.cuda_graph import EAGER_STEPS, StepGraphs
from distill.training.distributed import DistributedContext
from distill.training.divergence import MAX_CONSECUTIVE_SKIPS
from distill.training.gradient_scale import START
from distill.training.learner import Learner, Loss
from distill.training.microbatches import seed_rng
from distill.training.phase import Phase
from tests.distill.training.aten_recorder import AtenRecorder

CPU = DistributedContext(torch.device("cpu"))
NETWORK = EdmConfig(
    img_resolution=8, img_channels=1, label_dim=0, model_channels=8, channel_mult=(1,),
    num_blocks=1, attn_resolutions=(), dropout=0.1,
)  # fmt: skip


class Training:
    """A network that learns to draw nothing; `factor` makes its loss too large in single steps."""

    def __init__(self, scaled, context=CPU, graphs=None):
        torch.manual_seed(0)
        self.learner = Learner(Denoiser(NETWORK), context, (0.9, 0.99), 1e-8, scaled)
        self.graphs, self.factor = graphs, torch.ones(())
        self.phase = Phase(self.learner, self.loss, 2, [self.learner.network])

    def loss(self):
        drawn = self.learner.call(torch.randn(2, 1, 8, 8), torch.ones(2))
        total = drawn.square().sum() * self.factor
        return Loss(total, torch.zeros(()), {"loss": total.detach()})

    def step(self, number):
        prepares = [lambda i=i: seed_rng(0, number, 0, i) for i in range(2)]
        return self.phase.run(self.graphs, prepares, rate=1e-3 / (1 + number))

    def weights(self):
        return torch.cat([p.detach().flatten() for p in self.learner.network.parameters()])


def test_gradients_and_weights_are_those_without_a_scale():
    """To the bit, for a power of two rounds nothing."""
    plain, scaled = Training(scaled=False), Training(scaled=True)
    for number in range(5):
        one, other = plain.step(number), scaled.step(number)
        assert torch.equal(one[1], other[1])
        assert torch.equal(one[0]["loss"], other[0]["loss"])
    assert torch.equal(plain.weights(), scaled.weights())
    assert scaled.learner.scale.factor.item() == START


@pytest.mark.parametrize("graphed", [False, True])
def test_an_overflow_is_skipped_and_counted_and_the_scale_falls_and_grows_back(
    graphed, monkeypatch
):
    monkeypatch.setattr(gradient_scale, "GROWTH_INTERVAL", 4)
    recorder = AtenRecorder()
    training = Training(scaled=True, graphs=StepGraphs(recorder) if graphed else None)
    learner, overflows = training.learner, (5, 6)
    factors = []
    for number in range(12):
        # A loss that float32 holds, but not when it is scaled.
        training.factor.fill_(1e36 if number in overflows else 1)
        before = training.weights()
        _, norm = training.step(number)
        assert torch.equal(training.weights(), before) == (number in overflows)
        assert norm.isfinite() == (number not in overflows)
        factors.append(learner.scale.factor.item() / START)
    assert factors == [1, 1, 1, 2, 2, 1, 0.5, 0.5, 0.5, 0.5, 1, 1]
    assert learner.skipped.item() == len(overflows)
    assert learner.consecutive_skips.item() == 0
    steps = {state["step"].item() for state in learner.optimizer.state.values()}
    assert steps == {12 - len(overflows)}
    assert recorder.replayed == (3 * (12 - EAGER_STEPS) if graphed else 0)


def test_a_healthy_run_does_not_end_while_the_scale_falls():
    """It has fallen to 1, at which float16 learned before there was a scale, in time."""
    training = Training(scaled=True)
    training.factor.fill_(1e38)
    skips = 0
    while training.learner.scale.factor.item() > 1:
        training.step(skips)
        skips += 1
    assert training.learner.consecutive_skips.item() == skips < MAX_CONSECUTIVE_SKIPS - 1


def test_the_scale_is_saved_and_resumed():
    training = Training(scaled=True)
    training.factor.fill_(1e36)
    for number in range(2):
        training.step(number)
    state = training.learner.optimizer_state()
    other = Training(scaled=True)
    other.learner.load_optimizer_state(state)
    assert other.learner.scale.factor.item() == START / 4
    del state["scale"]  # a state from before there was one
    other.learner.load_optimizer_state(state)
    plain = Training(scaled=False)
    plain.learner.load_optimizer_state(training.learner.optimizer_state())


def test_what_float16_sees_does_not_depend_on_the_number_of_processes():
    """The gradient at the network's output is the same; that of the weights is of all processes."""
    seen, norms = [], []
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for size in (1, 2):
            training = Training(
                scaled=True, context=DistributedContext(torch.device("cpu"), 0, size)
            )
            training.learner.network.register_forward_hook(
                lambda _m, _i, output: output.register_hook(seen.append) and None
            )
            norms.append(training.step(0)[1])
    finally:
        dist.destroy_process_group()
    assert torch.equal(torch.stack(seen[:2]), torch.stack(seen[2:]))
    assert torch.equal(norms[1], 2 * norms[0])
