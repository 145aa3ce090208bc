"""Reports of whole run folders: what is shown, what is left out and why, what is refused."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from distill.analysis import paired_images as compared
from distill.analysis.comparison import differing_settings, labels_of
from distill.analysis.curve import Curve, PowerLaw
from distill.analysis.findings import describe_curve
from distill.analysis.image_plots import pair_strip
from distill.analysis.run_folder import run_settings
from distill.analysis.scalars import ACCURACIES, CROSS_ENTROPY, PARTS
from distill.checkpoints import save_network, save_state, sha256_of_weights
from distill.commands.analyze import analyze
from distill.errors import UserError
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from distill.sampling import few_step

CLASSES = ["<script>alert(1)</script>", "50 $ or $ less"]
SETTINGS = {"alpha": 1.0, "t_max": 800.0, "weighting": "sid", "sigma_init": 2.5, "lr": 1e-4}


def network(label_dim, seed):
    torch.manual_seed(seed)
    config = EdmConfig(
        img_resolution=8, img_channels=1, label_dim=label_dim, model_channels=8,
        channel_mult=(1,), num_blocks=1, attn_resolutions=(), dropout=0,
    )  # fmt: skip
    denoiser = Denoiser(config)
    with torch.no_grad():  # untrained output layers are near zero: wake them up
        for parameter in denoiser.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return denoiser.eval()


def write_curve(run, slope=-0.5, count=9, **more):
    """Write points as a run does, two a doubling; `more` are further entries, a list each."""
    lines = [
        json.dumps(
            {"images_seen": int(n), "distance": 300 * int(n) ** slope, "accuracy": 0.5}
            | {name: values[i] for name, values in more.items()}
        )
        for i, n in enumerate(500 * np.sqrt(2) ** np.arange(count))
    ]
    (run / "curve.jsonl").write_text("\n".join(lines) + "\n")


def write_run(run, classes=CLASSES, recorded=True, **changes):
    """A run's folder as `run` leaves it, of untrained networks."""
    run.mkdir(parents=True)
    phi, psi, theta = (network(len(classes), seed) for seed in (0, 1, 2))
    teacher = run.parent / "teacher.safetensors"
    metadata = {"classes": classes, "images_seen": 8000}
    save_network(teacher, phi, metadata | {"role": "teacher"})
    save_network(
        run / "network.safetensors", theta, metadata | {"role": "generator", "sigma_init": 2.5}
    )
    settings = SETTINGS | {"teacher": sha256_of_weights(phi)} | changes
    parts = {"fake_score": psi.state_dict(), "ema": theta.state_dict()}
    state = {"settings": json.dumps(settings), "images_seen": 8000, "training": parts}
    save_state(run / "state.pt", state)
    write_curve(run, -0.5 / settings["alpha"])
    (run / "samples").mkdir()
    for kimg in ("0000000.5", "0000008.0"):
        Image.new("L", (40, 40)).save(run / "samples" / f"{kimg}.png")
    if recorded:
        (run / "run.json").write_text(json.dumps({"teacher": str(teacher), "features": None}))
    return teacher


def command(*runs, **options):
    """Run the command; return where it wrote."""
    settings = {
        "teacher": None, "out": None, "from_images": 1, "images": 4, "images_per_class": 3,
        "features": "none", "plots": None, "device": "cpu",
    } | options  # fmt: skip
    analyze(runs=list(runs), **settings)
    return settings["out"] or runs[0] / ("report.html" if len(runs) == 1 else "comparison.html")


def report(*runs, **options):
    """Run the command; return the page and its numbers."""
    file = command(*runs, **options)
    return file.read_text(), json.loads(file.with_suffix(".json").read_text())


def headings(page):
    return re.findall(r"<h2>(.*?)</h2>", page)


@pytest.mark.slow
def test_a_run_with_everything_is_shown_whole(tmp_path):
    write_run(tmp_path / "run")
    page, numbers = report(tmp_path / "run", plots=tmp_path / "plots")
    assert headings(page) == [
        "Distance against images seen",
        "Where teacher and generator disagree",
        "Where the student falls short of its teacher",
        "Samples along the way",
        "Left out, and why",
    ]
    assert len(numbers["left_out"]) == 1  # the teacher was never evaluated
    assert "teacher.quality.json is missing" in numbers["left_out"][0]
    assert numbers["curve"]["slope"][0] == pytest.approx(-0.5)
    assert [level["trained"] for level in numbers["noise_levels"]] == [True] * 12 + [False] * 3
    assert numbers["classes"]["features"] == "pixels"
    assert numbers["classes"]["teacher_accuracy"] == [None, None]
    plots = {"curve", "score-gap", "classes"}
    assert {file.stem for file in (tmp_path / "plots").iterdir()} == plots
    assert page.count("<svg") == len(plots)


def log_discriminator(run, rested=2):
    """As an adversarial run does, whose generator rests at first."""
    with SummaryWriter(str(run)) as events:
        for step in range(10):
            seen = 400 * (step + 1)
            events.add_scalar(ACCURACIES["real"], 0.5 + 0.02 * step, seen)
            events.add_scalar(ACCURACIES["fake"], 0.9, seen)
            events.add_scalar(CROSS_ENTROPY, 0.6, seen)
            if step >= rested:
                for name, value in zip(PARTS.values(), (0.1, -0.2, 0.05), strict=True):
                    events.add_scalar(name, value, seen)


@pytest.mark.slow
def test_an_adversarial_run_shows_what_its_discriminator_tells(tmp_path):
    (tmp_path / "run").mkdir()
    log_discriminator(tmp_path / "run")
    page, numbers = report(tmp_path / "run", plots=tmp_path / "plots")
    assert headings(page) == ["What the discriminator tells apart", "Left out, and why"]
    told = numbers["discriminator"]
    assert told[ACCURACIES["real"]]["value"][0] == pytest.approx(0.5)
    assert told[PARTS["adversarial"]]["images_seen"] == [400.0 * n for n in range(3, 11)]
    first, second = numbers["findings"]
    assert "right about 67% of what it sees in real images and 90% in generated ones" in first
    assert "cross-entropy is 0.600, where guessing has 0.693" in first
    assert "0.25 times the larger of the other two" in second
    assert (tmp_path / "plots" / "discriminator.png").is_file()


def test_a_discriminator_of_a_generator_that_rests_is_shown_too(tmp_path):
    log_discriminator(tmp_path, rested=10)
    page, numbers = report(tmp_path)
    assert len(numbers["findings"]) == 1
    assert PARTS["adversarial"] not in numbers["discriminator"]
    assert page.count("<svg") == 1


@pytest.mark.slow
def test_the_page_needs_nothing_and_runs_nothing(tmp_path):
    write_run(tmp_path / "<b>&amp;")
    page, _ = report(tmp_path / "<b>&amp;")
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;amp;" in page
    assert "&lt;script&gt;" in page
    used = re.findall(r'(?:src|href)="([^"#]{1,5})', page)
    assert set(used) <= {"data:"}
    assert "http-equiv" not in page


def test_a_folder_with_a_curve_alone_says_what_is_missing(tmp_path):
    write_curve(tmp_path, count=4)
    page, numbers = report(tmp_path)
    assert headings(page) == ["Distance against images seen", "Left out, and why"]
    reasons = " ".join(numbers["left_out"])
    assert "holds no state.pt" in reasons
    assert "the teacher is not known" in reasons
    assert "What more training would buy: a trend needs 8 points" in reasons
    assert "Samples" in reasons


def test_precision_and_recall_along_the_way_are_shown(tmp_path):
    recalls = [0.8 - 0.02 * i for i in range(9)]
    write_curve(tmp_path, precision=[0.9] * 9, recall=recalls, rate_share=[1.0] * 9)
    page, numbers = report(tmp_path, plots=tmp_path / "plots")
    assert headings(page)[:2] == ["Distance against images seen", "Precision and recall"]
    assert (tmp_path / "plots" / "precision-recall.png").is_file()
    assert numbers["curve"]["recall"] == pytest.approx(recalls)
    assert numbers["curve"]["gain_of_a_doubling"] == pytest.approx([1 - 2**-0.5] * 3, abs=1e-3)
    said = " ".join(numbers["findings"])
    assert "A doubling of the images promises 29.3 % less distance (95 %: between 29." in said
    assert "Recall falls by 0.040 a doubling of the images" in said
    assert "loses variety" in said
    assert "What more training would buy" not in " ".join(numbers["left_out"])


@pytest.mark.slow
def test_an_older_run_names_no_teacher(tmp_path):
    teacher = write_run(tmp_path / "run", recorded=False)
    page, numbers = report(tmp_path / "run")
    assert "Where teacher and generator disagree" not in headings(page)
    assert any("name its file with --teacher" in reason for reason in numbers["left_out"])
    page, _ = report(tmp_path / "run", teacher=teacher, images_per_class=0)
    assert "Where teacher and generator disagree" in headings(page)
    assert "Where the student falls short of its teacher" not in headings(page)


@pytest.mark.slow
def test_a_run_without_classes(tmp_path):
    write_run(tmp_path / "run", classes=[])
    page, numbers = report(tmp_path / "run")
    assert "Where teacher and generator disagree" in headings(page)
    assert numbers["classes"]["names"] == ["all"]


def test_a_teacher_that_is_not_the_runs_is_refused(tmp_path):
    write_run(tmp_path / "run")
    other = tmp_path / "other.safetensors"
    metadata = {"role": "teacher", "classes": CLASSES, "images_seen": 1}
    save_network(other, network(2, seed=9), metadata)
    with pytest.raises(UserError, match="is not the teacher of"):
        report(tmp_path / "run", teacher=other)
    with pytest.raises(UserError, match="--teacher takes a teacher"):
        report(tmp_path / "run", teacher=tmp_path / "run" / "network.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("state.pt", "is damaged"),
        ("network.safetensors", "is not a whole network"),
        ("run.json", "is no JSON"),
        ("samples/0000008.0.png", "is no readable image"),
    ],
)
def test_a_damaged_file_is_named(file, said, tmp_path):
    write_run(tmp_path / "run")
    (tmp_path / "run" / file).write_bytes(b"\x80broken" if file != "run.json" else b"broken")
    with pytest.raises(UserError, match=said):
        report(tmp_path / "run", images_per_class=0)


@pytest.mark.slow
def test_nothing_to_show_and_bad_options_are_said_plainly(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"nothing to analyse: .*curve.jsonl is missing"):
        report(tmp_path / "empty")
    with pytest.raises(UserError, match="no run at"):
        report(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"expected a .html"):
        report(tmp_path / "empty", out=tmp_path / "report.pdf")
    write_run(tmp_path / "run")
    with pytest.raises(UserError, match="no feature extractor 'nonsense'"):
        report(tmp_path / "run", features="nonsense")


def test_the_curve_alone_as_an_image(tmp_path, capsys):
    write_curve(tmp_path)
    image = command(tmp_path, out=tmp_path / "curve.png", from_images=1000)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "curve.jsonl", image]
    assert image.read_bytes().startswith(b"\x89PNG")
    assert "slope -0.500" in capsys.readouterr().out


@pytest.mark.slow
def test_runs_side_by_side_are_called_by_what_differs(tmp_path):
    write_run(tmp_path / "one")
    write_run(tmp_path / "two", alpha=0.5)
    write_curve_only = tmp_path / "three"
    write_curve_only.mkdir()
    write_curve(write_curve_only, slope=-0.2)
    page, numbers = report(tmp_path / "one", tmp_path / "two")
    assert numbers["differing"] == ["alpha"]
    assert [run["label"] for run in numbers["runs"].values()] == ["alpha 1", "alpha 0.5"]
    assert numbers["runs"]["two"]["slope"][0] == pytest.approx(-1.0)
    assert "alpha 0.5 is nearest" in numbers["findings"][0]
    assert "Score gap by noise level" in headings(page)
    page, numbers = report(tmp_path / "one", write_curve_only)
    assert any("three holds no state.pt" in reason for reason in numbers["left_out"])
    (tmp_path / "again").mkdir()
    write_run(tmp_path / "again" / "one")
    with pytest.raises(UserError, match="called alike"):
        report(tmp_path / "one", tmp_path / "again" / "one")


def test_labels_fall_back_to_names():
    settings = {"a": {"alpha": 1.0, "lr": 1}, "b": {"alpha": 1.0, "lr": 1}}
    assert labels_of(settings) == {"a": "a", "b": "b"}
    settings["b"] = {"alpha": 1.2, "lr": 2, "newer": True}
    assert differing_settings(list(settings.values())) == ["alpha", "lr"]
    assert labels_of(settings)["b"] == "alpha 1.2, lr 2"


@pytest.mark.slow
def test_a_run_of_two_steps_is_looked_at_in_two(tmp_path, monkeypatch):
    write_run(tmp_path / "two", steps=2, renoise="same")
    drawn = []

    def watched(*arguments):
        drawn.append(arguments[3:])
        return few_step(*arguments)

    monkeypatch.setattr(compared, "few_step", watched)
    page, _ = report(tmp_path / "two")
    assert set(drawn) == {(2.5, 2, "same")}
    assert "the generator in 2." in page
    write_run(tmp_path / "before")
    assert run_settings(tmp_path / "before")["steps"] == 1
    settings = [run_settings(tmp_path / name) for name in ("before", "two")]
    assert differing_settings(settings) == ["steps"]


def test_a_line_that_does_not_fall_promises_nothing():
    unknown = np.full(3, np.nan)
    flat = Curve(np.array([1.0, 2, 4]), np.array([3.0, 3, 3.5]), *[unknown] * 4, None)
    said = " ".join(describe_curve(flat, PowerLaw(0.1, -0.1, 0.3, 3.0), teacher=2.0))
    assert "it does not fall" in said
    assert "would meet" not in said
    assert "it was lowest, 3.00" in said


def test_spread_is_a_share_of_the_references():
    rng = np.random.default_rng(0)
    reference = rng.normal(0, 2, (4000, 6))
    wider = reference + rng.normal(0, 1, (4000, 6))
    assert compared.relative_spread(reference, wider) == pytest.approx(5 / 4, rel=0.05)
    assert compared.relative_spread(reference, reference + 2) == pytest.approx(1.0)
    assert np.isnan(compared.relative_spread(reference[:1], reference[:1]))


def test_strips_hold_the_teacher_above():
    teacher = torch.full((4, 2, 2, 1), 10, dtype=torch.uint8)
    generator = torch.full((4, 2, 2, 1), 20, dtype=torch.uint8)
    labels = torch.tensor([0, 1, 0, 1])
    both = compared.PairedImages(teacher, generator, labels)
    strip = pair_strip(both, np.array([0, 1, 2]), gap=1)
    assert strip.shape == (6, 9, 1)
    assert strip[1, 1] == 10
    assert strip[4, 1] == 20
