"""The distillation of a teacher into a generator, whatever the losses: networks and their steps.

Three networks of one architecture, all starting from the teacher's weights: phi (the teacher,
frozen), psi (the fake score: a denoiser of the generator's own images) and theta (the generator).
psi and theta alternate, one step each, on the losses of a `distill.training.method.Method`.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from distill.checkpoints import sha256_of_weights
from distill.data.augment import AUGMENT_DIM
from distill.data.latents import TrainingData
from distill.errors import UserError
from distill.networks import Denoiser
from distill.sampling import few_step, sample_inputs
from distill.training.cuda_graph import step_graphs
from distill.training.distributed import DistributedContext
from distill.training.examples import Examples
from distill.training.form_choice import CompileChoice, choose_form
from distill.training.learner import Learner, ema_beta, full_state_dict, load_weights
from distill.training.method import HalfStep, Method
from distill.training.microbatches import local_microbatches, seed_rng
from distill.training.network_form import compile_blocks
from distill.training.phase import Phase
from distill.training.prepare import prepared
from distill.training_config import DistillationConfig

FAKE_SCORE_PHASE, GENERATOR_PHASE = 0, 1


class Distillation:
    """The distillation of one teacher; see `distill.training.protocol.Training`.

    Args:
        method: whose losses they learn, and how: `method.config`.
        teacher: what is distilled.
        context: this process among those of the run.
        start: the generator's first weights, of a network of the teacher's shape; None takes the
            teacher's. The fake score starts from the teacher in any case.
        compile_choice: which form the networks may have, see `distill.training.form_choice`.
        dataset: real images for a method that needs some; for others it changes nothing.

    Attributes:
        teacher: phi, in eval mode, its weights frozen.
        fake_score: psi, trained in its own phase, frozen in the generator's.
        generator: theta.
        ema: the running average of theta, which is what gets exported.
        graphs: what captures and replays the steps; None where they are eager.
        phases: the halves of a step, by their numbers.
        end: images after which it ends, with the cooldown before: `config.total_images`, or fewer
            (`distill.training.early_end`).
        rate_share: the learning rates of the last step, as a share of their full values.

    Raises:
        UserError: the configuration does not suit the teacher, the device or the processes.
    """

    def __init__(
        self,
        method: Method,
        teacher: Denoiser,
        context: DistributedContext,
        start: Denoiser | None = None,
        compile_choice: CompileChoice = "auto",
        dataset: TrainingData | None = None,
    ) -> None:
        config = method.config
        method.check(teacher, dataset)
        self._dataset = dataset if method.needs_images else None
        self.method, self.config, self.context = method, config, context
        self.end, self.rate_share = config.total_images, 1.0
        self.microbatches = local_microbatches(config, context)
        classes = teacher.config.label_dim
        frequencies = _cumulated_frequencies(config, classes, context.device, self._dataset)
        _check_augmentation(config, teacher)
        self._identity = {"method": method.name, "teacher": sha256_of_weights(teacher)}
        if start is not None:
            self._identity["generator"] = sha256_of_weights(start)
        if self._dataset is not None:
            self._identity["data"] = self._dataset.digest()
        teacher = _with_dropout(teacher, config.dropout)
        form = choose_form(compile_choice, teacher, config, context)
        teacher = prepared(teacher, config.precision, context, form).eval()
        # One after the other, so that of networks to be sharded no more than two are whole.
        self.ema = context.prepare_frozen(_copy_from(start, teacher).requires_grad_(False))
        self.fake_score = self._learner(
            copy.deepcopy(teacher), config.betas, method.gradient_clip, method.holds_fake_score
        )
        betas = config.generator_betas or config.betas
        self.generator = self._learner(_copy_from(start, teacher), betas)
        self.teacher = context.prepare_frozen(teacher.requires_grad_(False))
        if form == "compiled":  # the average draws in batches of many sizes, now and then: eager
            compile_blocks(self.teacher, self.fake_score.network, self.generator.network)

        self._examples = None
        if self._dataset is not None:
            tensors = [self._dataset.rows, self._dataset.labels]
            self._examples = Examples(tensors, config.images_per_call, context.device)
        psi, theta, inputs = self.fake_score, self.generator, (config, context.device, frequencies)
        halves = {
            FAKE_SCORE_PHASE: HalfStep(
                self.teacher, psi.call, theta.network, *inputs, self._examples, self._dataset
            ),
            GENERATOR_PHASE: HalfStep(self.teacher, psi.network, theta.call, *inputs),
        }
        self.graphs = step_graphs(context)
        count, networks = len(self.microbatches), [self.teacher, psi.network, theta.network]
        fake_loss = partial(method.fake_score_loss, halves[FAKE_SCORE_PHASE])
        loss = partial(method.generator_loss, halves[GENERATOR_PHASE])
        self.phases = {
            FAKE_SCORE_PHASE: Phase(psi, fake_loss, count, networks),
            GENERATOR_PHASE: Phase(theta, loss, count, networks, average=self.ema),
        }

    def _learner(
        self,
        network: Denoiser,
        betas: tuple[float, float],
        clip: float | None = None,
        held: bool = True,
    ) -> Learner:
        scaled = self.config.precision == "float16"
        return Learner(network, self.context, betas, self.config.eps, scaled, clip, held)

    @property
    def learners(self) -> dict[str, Learner]:
        """The networks that learn, by name."""
        return {"fake score": self.fake_score, "generator": self.generator}

    def identity(self) -> dict[str, Any]:
        """The method, the teacher by its weights, and the real images where they are used."""
        return self._identity

    def step(self, images_seen: int) -> dict[str, Tensor]:
        """One step of psi, one of theta, one of the average; `batch` images are counted.

        While the method lets the generator rest there is a step of psi alone.

        Returns:
            What the method logs, and the norms of both gradients.
        """
        config = self.config
        self.method.begin_step(images_seen, self.context.device)
        self.rate_share = learning_rate_share(images_seen, self.end, config.cooldown)

        self.generator.network.eval().requires_grad_(False)
        self.fake_score.network.train().requires_grad_(True)
        fake, fake_norm = self.phases[FAKE_SCORE_PHASE].run(
            self.graphs,
            self.prepares(FAKE_SCORE_PHASE, images_seen),
            self.rate_share * (config.fake_lr or config.lr),
        )
        fake["gradient/fake_score"] = fake_norm
        if self.method.generator_rests(images_seen):
            return fake

        self.generator.network.train().requires_grad_(True)
        self.fake_score.network.eval().requires_grad_(False)
        logged, norm = self.phases[GENERATOR_PHASE].run(
            self.graphs,
            self.prepares(GENERATOR_PHASE, images_seen),
            self.rate_share * config.lr,
            ema_beta(config.batch, config.ema_halflife, images_seen),
        )
        return fake | logged | {"gradient/generator": norm}

    def prepares(self, phase: int, images_seen: int) -> list[Callable[[], None]]:
        """What gives each of this process's micro-batches random draws and images of its own.

        The networks are to be in the modes of that phase, see `step`.
        """
        return [partial(self._prepare, phase, images_seen, number) for number in self.microbatches]

    def _prepare(self, phase: int, images_seen: int, microbatch: int) -> None:
        seed_rng(self.config.seed, images_seen, phase, microbatch)
        if self._examples is not None and self._dataset is not None and phase == FAKE_SCORE_PHASE:
            # By the host's stream, so the same images on every device.
            self._examples.load(torch.randint(len(self._dataset), (self.config.images_per_call,)))

    def state(self) -> dict[str, Any]:
        """Weights of psi, theta and its average, and Adam's moments; every process must ask."""
        return {
            "fake_score": full_state_dict(self.fake_score.network),
            "generator": full_state_dict(self.generator.network),
            "ema": full_state_dict(self.ema),
            "fake_optimizer": self.fake_score.optimizer_state(),
            "generator_optimizer": self.generator.optimizer_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        load_weights(self.fake_score.network, state["fake_score"])
        load_weights(self.generator.network, state["generator"])
        load_weights(self.ema, state["ema"])
        self.fake_score.load_optimizer_state(state["fake_optimizer"])
        self.generator.load_optimizer_state(state["generator_optimizer"])

    @torch.no_grad()
    def samples(self, count: int | None = None) -> Tensor:
        """Ten images per class (a hundred without classes) or the first of them, in all steps."""
        latents, labels = sample_inputs(self.ema.config, self.context.device, count)
        config = self.config
        return few_step(self.ema, latents, labels, config.sigma_init, config.steps, config.renoise)


def learning_rate_share(images_seen: int, end: int, cooldown: int) -> float:
    """1, then a line down to 0 over the last `cooldown` images before `end`."""
    if not cooldown:
        return 1.0
    return min(1.0, max(0.0, (end - images_seen) / cooldown))


def _cumulated_frequencies(
    config: DistillationConfig,
    classes: int,
    device: torch.device,
    dataset: TrainingData | None = None,
) -> Tensor | None:
    """See `HalfStep`; the frequencies are checked against a network that has `classes`.

    Where none are given and there are real images, classes come as often as in these. To draw so
    is to take the class of a random image, which is what the generator of a method with real
    images is meant to see.
    """
    given = config.class_frequencies
    if given is None and dataset is not None and classes:
        given = tuple(torch.bincount(dataset.labels, minlength=classes).tolist())
    if given is None:
        return None
    if len(given) != classes or not sum(given):
        raise UserError(
            f"class_frequencies has {len(given)} numbers, the teacher {classes} classes: one "
            "number a class is needed, not all 0"
        )
    # What stands at the end is divided by itself, so it is 1 to the bit: no draw lies beyond it.
    cumulated = torch.tensor(given, dtype=torch.float64).cumsum(dim=0)
    return (cumulated / cumulated[-1]).to(device)


def _check_augmentation(config: DistillationConfig, teacher: Denoiser) -> None:
    if config.augment and teacher.config.augment_dim != AUGMENT_DIM:
        raise UserError(
            f"augment is {config.augment}, but this teacher was built with "
            f"{teacher.config.augment_dim or 'no'} augmentation labels instead of {AUGMENT_DIM}: "
            "say --augment 0"
        )


def _copy_from(start: Denoiser | None, teacher: Denoiser) -> Denoiser:
    """A generator: a copy of the teacher, with the weights of `start` if there is one."""
    network = copy.deepcopy(teacher)
    network.strip()
    if start is not None:
        network.load_state_dict(start.state_dict())
    return network


def _with_dropout(teacher: Denoiser, dropout: float | None) -> Denoiser:
    """The same network with another probability of dropout."""
    if dropout is None or dropout == teacher.config.dropout:
        return teacher
    network = Denoiser(teacher.config.model_copy(update={"dropout": dropout}))
    network.load_state_dict(teacher.state_dict())
    return network
