"""Marginal: what a text leaves open is to vary over its draws as it does in the data, and what it names is to stay."""

import numpy as np
import pytest

from tests.test_separation import OPTIONS, made_cases
from vgjax.data.sources import phantom
from vgjax.evaluation.metrics import METRICS, marginal
from vgjax.evaluation.metrics.base import Seen

CASES = made_cases(200)
PICTURES = np.zeros((1, 1, 1, 3), np.uint8)
NAMED = sum(len(case.requested) for case in CASES[: marginal.TEXTS])


def measured(draw, cases=CASES):
    """With a drawer of levels, from a case and the number of its draw."""
    wanted = marginal.requests(cases, OPTIONS)
    read = [draw(cases[i // marginal.TIMES], i) for i in range(len(wanted))]
    real = Seen(PICTURES, [case.levels for case in cases])
    found = METRICS["marginal"].run(cases, {marginal.DRAWS: Seen(PICTURES, read)}, real, OPTIONS)
    return {name: estimate for name, estimate in found}


def free(case, place):
    """Obeys the text and draws evenly what is left open."""
    rng = np.random.default_rng(place)
    return {name: str(rng.choice(levels)) for name, levels in phantom.FACTORS.items()} | case.requested


def test_each_text_is_drawn_several_times_under_seeds_of_their_own():
    wanted = marginal.requests(CASES, OPTIONS)
    assert len(wanted) == 32 * 16 and {one.seed for one in wanted} == {None}  # drawing gives each its own
    assert [one.prompt for one in wanted[::16]] == [case.caption for case in CASES[:32]]
    assert all(one == wanted[16] for one in wanted[16:32])


def test_free_draws_are_as_far_from_the_data_as_real_pictures():
    found = measured(free)
    assert found["marginal/asked"].value == found["marginal/majority"].value == 1.0
    assert found["marginal/asked"].n == NAMED
    assert found["marginal/distance"].n == found["marginal_real/distance"].n == 32 * 9 - NAMED
    assert found["marginal/distance"].value == pytest.approx(found["marginal_real/distance"].value, abs=0.04)
    assert 0.05 < found["marginal_real/distance"].value < 0.35


def test_one_answer_to_an_open_question_is_told():
    found = measured(lambda case, place: {name: levels[0] for name, levels in phantom.FACTORS.items()} | case.requested)
    for name, levels in phantom.FACTORS.items():
        if f"marginal/{name}" in found:
            assert found[f"marginal/{name}"].value == pytest.approx(1 - 1 / len(levels), abs=0.1)
    assert found["marginal/distance"].interval[0] > found["marginal_real/distance"].interval[1]


def test_named_factors_that_waver_are_told():
    """A quarter of the draws shows what was asked for, and the others agree on something else."""
    found = measured(lambda case, place: free(case, place) | (dict.fromkeys(phantom.FACTORS) if place % 4 else {}))
    assert (found["marginal/asked"].value, found["marginal/majority"].value) == (0.25, 0.75)
    constant = measured(lambda case, place: dict.fromkeys(phantom.FACTORS))
    assert (constant["marginal/asked"].value, constant["marginal/majority"].value) == (0.0, 1.0)
    assert constant["marginal/distance"].value == 1.0


def test_the_distance_is_half_the_sum_of_differences():
    read = [{"size": level} for level in ("small", "small", "large", None)]
    assert marginal.distance(read, "size", {"small": 0.25, "medium": 0.5, "large": 0.25}) == pytest.approx(0.5)


def test_captions_of_which_nothing_is_known_leave_nothing_open():
    assert measured(free, [case._replace(requested={}) for case in CASES]) == {}
