"""What each kind of training has to know: the sections of a recipe, with their defaults.

The section of a method of distillation is a `DistillationConfig` with entries of its own, and
stands in the method's file.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.bundle import Precision

# What these words do: `distill.training.precision`.
TrainingPrecision = Literal[Precision, "tf32"]

# How many calls of the generator an image takes, and what noise comes between them:
# `distill.sampling.few_step`.
GeneratorSteps = Literal[1, 2, 4]
Renoise = Literal["same", "fresh"]

# Understood until 0.2; runs that were begun with these words can be resumed for as long.
_FORMER_WORDS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

Decay = Annotated[float, Field(ge=0, lt=1)]
Frequency = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Entries that cannot be changed, none unknown and every number finite."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


class LoopConfig(Section):
    """What every training needs to know.

    Attributes:
        total_images: stop after this many images.
        batch: images a step, of all processes together.
        microbatch: images a network call, at most; gradients add up over as many calls as the
            batch takes. It decides the random draws, the number of processes does not.
        precision: see `distill.training.precision`. For a recipe that names none the commands put
            bfloat16 on CUDA cards that have it.
        lr: Adam's learning rate.
        betas: Adam's decay rates of the two moments.
        adam_eps: added to the root of the second moment; None means 1e-8, with float16 1e-6.
        augment: the probability of each augmentation, see `distill.data.augment`.
        ema_halflife: images after which a weight's share in the average has halved.
        noise_mean: mean of ln sigma of the noise levels at which a denoiser learns; -1.2 is EDM's
            for CIFAR-10. What an image shares over all its pixels, such as its mean colour, is
            decided at levels that grow with its side. Of a flow teacher, whose time t is
            logit-normal(noise_mean, noise_std), 0 and 1 are usual (arXiv 2403.03206).
        noise_std: their standard deviation.
        checkpoint_every: images between two checkpoints.
        seed: start of every random stream; the same seed repeats the run (on a CPU to the bit).
    """

    total_images: int = Field(gt=0)
    batch: int = Field(gt=0)
    microbatch: int = Field(default=64, gt=0)
    precision: TrainingPrecision = "float32"
    lr: float = Field(gt=0)
    betas: tuple[Decay, Decay]
    adam_eps: float | None = Field(default=None, gt=0)
    augment: Probability = 0.0
    ema_halflife: float = Field(gt=0)
    noise_mean: float = -1.2
    noise_std: float = Field(default=1.2, gt=0)
    checkpoint_every: int = Field(gt=0)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _divides(self) -> "LoopConfig":
        if self.batch % self.images_per_call:
            raise ValueError(
                f"a batch of {self.batch} is no multiple of the micro-batch of {self.microbatch}"
            )
        return self

    @property
    def images_per_call(self) -> int:
        """Images in one micro-batch."""
        return min(self.batch, self.microbatch)

    @property
    def eps(self) -> float:
        """Adam's eps (facts, section 2)."""
        return self.adam_eps or (1e-6 if self.precision == "float16" else 1e-8)


class SingleNetworkConfig(LoopConfig):
    """What a training of one network needs to know.

    Attributes:
        lr: its highest value; it rises over `warmup` images and falls to 0 on half a cosine.
        warmup: images over which the learning rate rises.
        decay_after: images after which the rate falls as one over the root of the images seen,
            without an end, instead of on half a cosine (EDM2, equation 67); None: it does not.
    """

    betas: tuple[Decay, Decay] = (0.9, 0.99)
    warmup: int = Field(default=10_000, ge=0)
    decay_after: int | None = Field(default=None, gt=0)


class TeacherConfig(SingleNetworkConfig):
    """How to train a diffusion teacher, on the path of its network's preconditioning."""


class RegressionConfig(SingleNetworkConfig):
    """How a generator starts: one step learns the teacher's noise-image pairs (arXiv 2101.02388).

    Attributes:
        pairs: how many the teacher draws.
        steps: of Heun's method a pair takes: 2 steps - 1 evaluations.
        sigma_init: the noise level at which they begin, and at which the generator denoises.
    """

    pairs: int = Field(default=20_000, gt=0)
    steps: int = Field(default=10, gt=1)
    sigma_init: float = Field(default=40.0, gt=0.002)

    @model_validator(mode="after")
    def _has_no_noise_to_choose(self) -> "RegressionConfig":
        for name in ("augment", "noise_mean", "noise_std"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} changes nothing in a regression on pairs, whose noise and images "
                    "are given: leave it out"
                )
        return self


class DistillationConfig(LoopConfig):
    """What every distillation needs to know; a method's section adds what its losses need.

    The defaults are those of SiD's paper (arXiv 2404.04057) for CIFAR-10.

    Attributes:
        sigma_init: noise level at which the generator denoises pure noise; 2.5 is the paper's.
            For a recipe that names none 'sid-distill run' computes a fitting one, see
            `distill.training.start_level`.
        steps: how many calls of the generator make an image. One network learns all of them: a
            micro-batch is a uniform mixture of the images after each.
        renoise: what the later steps add to the image before: "same", the noise that it began
            with, so that an image stays a function of that; or "fresh", new noise, which no graph
            can be exported with.
        dropout: of the fake score and the generator while they learn; None keeps the teacher's.
        class_frequencies: how often each class is drawn, up to a factor; None means alike, and
            with a method that learns from real images as often as in these.
        generator_betas: Adam's for the generator; None means `betas`.
        fake_lr: learning rate of the fake-score network; None means `lr`.
        cooldown: the last images of the run, over which both learning rates fall on a line to
            0; the paper has none and trains far longer.
        stop_gain: end earlier, after a cooldown that begins when the distance's trend surely
            promises a smaller gain than this over a doubling of the images: a share of the
            distance, see `distill.analysis.trend`. None: at `total_images`.
    """

    lr: float = Field(default=1e-5, gt=0)
    fake_lr: float | None = Field(default=None, gt=0)
    cooldown: int = Field(default=0, ge=0)
    stop_gain: float | None = Field(default=None, gt=0, lt=1)
    batch: int = Field(default=256, gt=0)
    betas: tuple[Decay, Decay] = (0.0, 0.999)
    ema_halflife: float = Field(default=500_000, gt=0)
    sigma_init: float = Field(default=2.5, gt=0)
    steps: GeneratorSteps = 1
    renoise: Renoise = "same"
    dropout: float | None = Field(default=None, ge=0, lt=1)
    class_frequencies: tuple[Frequency, ...] | None = None
    generator_betas: tuple[Decay, Decay] | None = None

    @model_validator(mode="after")
    def _fit_the_steps(self) -> "DistillationConfig":
        if self.images_per_call % self.steps:
            raise ValueError(
                f"a micro-batch of {self.images_per_call} images cannot be divided evenly among "
                f"{self.steps} steps: take a multiple of {self.steps}"
            )
        if self.steps == 1 and self.renoise != "same":
            raise ValueError(
                f'renoise "{self.renoise}" changes nothing in one step, which has one noise: leave '
                "it out, or take 2 or 4 steps"
            )
        return self


def current_precision(word: Any) -> Any:
    """Today's word for a precision that a recipe or an older run names; others as they are."""
    return _FORMER_WORDS.get(word, word) if isinstance(word, str) else word
