"""tests/compare/methods.py: what it leaves out, what it says of a failure, and its table."""

import pytest

from tests.compare.methods import resting_images
from tests.compare.methods_commands import Commands, StoppedError
from tests.compare.methods_rows import Row, lacking, variant
from tests.compare.methods_table import Result, table


@pytest.mark.parametrize(
    ("row", "started", "why"),
    [
        (Row("a", "A", ("--method", "dmd")), [], None),
        (Row("a", "A", ("--method", "dmd", "--seed", "1"), after="b"), ["b"], None),
        (Row("a", "A", ("--method", "dmd", "--dreams", "2")), [], "has no --dreams"),
        (Row("a", "A", ("--method", "dream")), [], "no method dream"),
        (Row("a", "A", ("--method", "dmd"), after="b"), [], "generator of b, which is not among"),
        (
            Row("a", "A", ("--method", "dmd"), recipe="-none", own_teacher=True),
            [],
            "no recipe fashion-none",
        ),
    ],
)
def test_what_the_product_lacks_for_a_row_is_said(row, started, why):
    said = lacking(row, "fashion", started)
    assert said is why is None or str(why) in str(said)


def test_images_at_which_the_generator_rests_come_on_top_of_those_it_learns_from():
    sida = Row("sida", "SiDA", ("--method", "sida"))
    assert resting_images("fashion-sida", sida) > 0
    assert resting_images("fashion", Row("sid", "SiD", ("--method", "sid"))) == 0
    measured = {"evaluations": 1, "distance": 4}
    result = Result("sida", "SiDA", 0, [2000, 1000], 500, 90, measured)
    assert "| 2,000 + 1,000 + 500 at rest |" in table([result], {})


def test_a_recipes_variant_is_found_beside_it(tmp_path):
    mine, other = str(tmp_path / "mine.toml"), tmp_path / "mine-flow.toml"
    assert variant(mine, "-flow") == mine
    other.touch()
    assert variant(mine, "-flow") == str(other)


def test_a_command_that_fails_is_quoted_and_none_begins_when_the_time_is_up(tmp_path):
    log = tmp_path / "log"
    with pytest.raises(StoppedError, match="exit status 2: error: no network at"):
        Commands(None).run(["evaluate", tmp_path / "missing.safetensors"], log)
    with pytest.raises(StoppedError, match="the time was up before it began"):
        Commands(1e-9).run(["evaluate", tmp_path / "missing.safetensors"], log)


def test_the_table_has_medians_and_each_seed_and_says_what_is_missing():
    def one(seed, distance, **more):
        measured = {"evaluations": 1, "distance": distance, "accuracy": 0.5, "precision": 0.25}
        return Result("sid", "SiD", seed, [1000, 1000], 0, 90, measured, **more)

    results = [
        Result("teacher", "teacher", measured={"evaluations": 35, "distance": 4, "accuracy": 0.5}),
        one(0, 1.0),
        one(1, 2.0),
        Result("dmd", "DMD", 0, why="exit status 2: error: no"),
    ]
    assert table(results, {"sida": "there is no method sida"}) == (
        "| | evaluations | images | distance | accuracy | precision | recall | minutes |\n"
        "|---|---|---|---|---|---|---|---|\n"
        "| teacher | 35 | - | 4.000 | 0.500 | - | - | - |\n"
        "| SiD | 1 | 1,000 + 1,000 | 1.500 (1.000, 2.000) | 0.500 (0.500, 0.500) | "
        "0.250 (0.250, 0.250) | - | 1.5 (1.5, 1.5) |\n"
        "\n"
        "sida is left out: there is no method sida.\n"
        "dmd, seed 0, is missing: exit status 2: error: no.\n"
    )
