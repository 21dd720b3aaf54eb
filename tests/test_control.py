"""Metrics: the estimates that they make of readings, and the pictures that they ask for."""

import argparse
import dataclasses

import numpy as np
import pytest

from vgjax.data.caption import words
from vgjax.data.caption.mask_reading import mask_reader
from vgjax.data.entries import Reader
from vgjax.data.sources import SOURCES
from vgjax.evaluation.metrics import METRICS, base, control, diversity, gain, prior, swap
from vgjax.evaluation.metrics.base import CAPTIONS, Options, Seen, caption_requests

PICTURE, MASK = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)
CHANNELS = {"size": "anatomy", "colour": "modality", "shape": "anatomy"}


def options(draws=1, chance=lambda requested, factor: {"size": 1 / 3, "colour": 0.5}[factor], reader=None):
    read = reader or Reader(
        CHANNELS, CHANNELS, lambda pictures, lesion: [], chance, lambda levels, rng, named, style="": ""
    )
    return Options(read, seed=0, draws=draws, resamples=200)


def case(caption="a caption", levels=None, **requested):
    return base.TestCase(caption, "", levels or requested, requested, PICTURE, MASK)


def seen(levels):
    return Seen(np.stack([PICTURE] * len(levels)), levels)


CASES = [case(size="small", colour="red"), case(size="large"), case(colour="blue"), case(size="small")]
READ = [{"size": "small", "colour": "blue"}, {"size": None, "colour": "red"}, {"colour": "blue"}, {"size": "small"}]


def test_only_named_factors_count_and_unreadable_is_wrong():
    assert control.hits(CASES, READ, "size").tolist() == [1.0, 0.0, 1.0]
    assert control.hits(CASES, READ, "colour").tolist() == [0.0, 1.0]
    assert control.hits(CASES, READ, "shape").tolist() == []


def test_control_estimates_each_factor_that_is_named_and_their_mean():
    real = seen([one.requested for one in CASES])
    later = [{"size": "wrong"}] * len(CASES)  # control is told of one picture a caption, whatever else was drawn
    found = dict(control.measure(CASES, {CAPTIONS: seen(READ + later)}, real, options(draws=2)))
    assert not any("shape" in name for name in found)  # nobody asked for one
    size = found["control/accuracy/size"]
    assert (size.value, size.n) == (pytest.approx(2 / 3), 3)
    assert size.interval[0] <= 2 / 3 <= size.interval[1] and size.interval[0] < size.interval[1]
    assert found["control/accuracy/colour"].n == 2
    assert found["control/score/size"].value == pytest.approx(0.5)
    assert found["control/chance/size"].value == pytest.approx(1 / 3)
    assert found["control_real/size"].value == 1.0
    assert found["control/accuracy_mean"].value == pytest.approx((2 / 3 + 0.5) / 2)
    assert found["control/accuracy_mean_anatomy"].value == pytest.approx(2 / 3)
    assert found["control/accuracy_mean_modality"].value == 0.5
    assert found["control/accuracy_mean"].n == 4
    joint = found["control/accuracy_joint"]  # of the four captions the first has one of two factors wrong
    assert (joint.value, joint.n) == (0.5, 4) and joint.interval[0] < 0.5 < joint.interval[1]


def test_the_joint_accuracy_leaves_out_what_cannot_be_read():
    """A caption counts as right where all that it names and that can be read is; without any it does not count."""
    cases = [case(size="small", border="sharp"), case(border="sharp"), case(size="large", colour="red")]
    read = [{"size": "small"}, {}, {"size": "large", "colour": None}]
    assert [control.named_hits(one, levels, CHANNELS) for one, levels in zip(cases, read, strict=True)] == [
        [True],
        [],
        [True, False],
    ]
    found = dict(control.measure(cases, {CAPTIONS: seen(read)}, seen(read), options()))
    assert (found["control/accuracy_joint"].value, found["control/accuracy_joint"].n) == (0.5, 2)


def test_a_factor_that_never_varies_measures_no_control():
    always = options(chance=lambda requested, factor: float(factor == "size"))
    found = dict(control.measure(CASES, {CAPTIONS: seen(READ)}, seen(READ), always))
    assert not any(name.endswith("/size") for name in found) and found["control/accuracy_mean"].value == 0.5


@pytest.mark.parametrize(("draws", "expected"), [(1, 1.0), (2, 0.5)])
def test_gain_over_other_captions_is_a_mean_over_draws(draws, expected):
    """The first pictures follow their captions, later ones show nothing; another's caption never fits."""
    cases, told = [case(str(i), size=str(i)) for i in range(8)], options(draws)
    shown = {}
    for name, requests in gain.METRIC.sets.items():
        asked = [request.prompt for request in requests(cases, told)]
        drawn = asked[: len(cases)] + ["nothing"] * (len(asked) - len(cases))
        shown[name] = seen([{"size": text} for text in drawn])
    found = dict(gain.measure(cases, shown, shown[CAPTIONS], told))
    assert found["control_true/size"].value == found["control_gain/size"].value == expected
    assert found["control_gain/size"].interval == (expected, expected)
    assert found["control_gain/size"].n == 8
    assert found["control_shuffled/size"].value == 0.0
    assert {name.rsplit("/", 1)[-1] for name in found} == {"size"}


def test_nobody_keeps_its_own_caption_and_each_draw_assigns_anew():
    cases = [case(str(i), size=str(i)) for i in range(8)]
    own = [request.prompt for request in caption_requests(cases, options(3))]
    others = [request.prompt for request in gain.other_requests(cases, options(3))]
    assert own == [str(i) for i in range(8)] * 3
    draws = [tuple(others[8 * i : 8 * (i + 1)]) for i in range(3)]
    assert len(set(draws)) == 3
    for draw in draws:
        assert sorted(draw) == own[:8] and all(a != b for a, b in zip(draw, own[:8], strict=True))


def phrases(vocabulary, factors):
    return {text for factor in factors for texts in vocabulary.words[factor].values() for text in texts}


@pytest.mark.parametrize("vocabulary", [words.SKIN, words.BREAST, words.POLYP, words.ANY])
def test_swap_puts_all_anatomy_into_row_texts_and_none_into_column_texts(vocabulary):
    rng = np.random.default_rng(0)
    factors = (*vocabulary.anatomy, *vocabulary.modality)
    cases = []
    for _ in range(swap.ROWS + swap.COLUMNS):
        levels = {factor: str(rng.choice(list(vocabulary.words[factor]))) for factor in factors}
        cases.append(case("own words", levels, position=levels["position"]))
    asked = swap.requests(cases, options(reader=mask_reader(vocabulary, {})))
    assert len(asked) == swap.ROWS * swap.COLUMNS
    assert len({request.seed for request in asked}) == 1 and asked[0].seed is not None  # all from one noise
    assert not any(request.prompt for request in asked)
    for i, request in enumerate(asked):
        row, column = cases[i // swap.COLUMNS], cases[swap.ROWS + i % swap.COLUMNS]
        for factor in vocabulary.anatomy:
            assert any(text in request.anatomy.lower() for text in vocabulary.words[factor][row.levels[factor]])
        for factor in vocabulary.modality:
            assert any(text in request.modality.lower() for text in vocabulary.words[factor][column.levels[factor]])
        said = f" {request.modality.lower().replace('.', ' ')} "
        assert not any(f" {text} " in said for text in phrases(vocabulary, vocabulary.anatomy))
    assert len({request.anatomy for request in asked[: swap.COLUMNS]}) == 1
    assert len({request.modality for request in asked[:: swap.COLUMNS]}) == 1


def test_swap_takes_whole_captions_where_the_dataset_wrote_them():
    cases = [case(f"caption {i}", {"size": "small"}) for i in range(9)]
    asked = swap.requests(cases, options(reader=SOURCES["kvasir_seg"].reader({})))
    assert (asked[0].anatomy, asked[0].modality) == ("caption 0", "caption 4")
    assert (asked[-1].anatomy, asked[-1].modality) == ("caption 3", "caption 8")


def test_swap_tells_each_channel_by_the_case_that_it_came_from():
    cases = [case(size=str(i), colour=str(i)) for i in range(9)]
    mixed = [{"size": str(row), "colour": str(column)} for row in range(4) for column in range(4, 9)]
    found = dict(swap.measure(cases, {swap.SWAP: seen(mixed)}, seen(mixed), options()))
    assert {name: (one.value, one.n) for name, one in found.items()} == {
        "swap/anatomy": (1.0, 20),
        "swap/modality": (1.0, 20),
    }
    turned = [{"size": one["colour"], "colour": one["colour"]} for one in mixed]
    assert dict(swap.measure(cases, {swap.SWAP: seen(turned)}, seen(turned), options()))["swap/anatomy"].value == 0.0


@pytest.mark.parametrize("count", [1, 4, 5, 20])
def test_swap_makes_a_grid_of_however_few_cases(count):
    rows, columns = swap.grid([CASES[0]] * count)
    assert len(rows) == min(count, 4) and 1 <= len(columns) <= 5


def test_prior_compares_masks_and_reconstructions_with_the_real_pictures():
    masks = np.zeros((2, 4, 4), np.uint8)
    masks[0, :2], masks[1, :, 0] = 1, 1
    cases = [base.TestCase("", "", {}, {}, PICTURE, mask) for mask in masks]
    lesion = np.where(masks, 0.9, 0.1)
    lesion[1] = lesion[1].T  # four pixels each, one in common
    real = Seen(np.zeros((2, 4, 4, 3), np.uint8), [], None, lesion, np.full((2, 4, 4, 3), 51, np.uint8))
    found = dict(prior.measure(cases, {}, real, options()))
    assert found["prior/dice"].value == pytest.approx((1 + 0.25) / 2, abs=1e-4)
    assert found["prior/reconstruction_l1"].value == pytest.approx(0.4)
    # Stage 1 may look at less than the whole resolution.
    larger = [one._replace(mask=one.mask.repeat(2, 0).repeat(2, 1)) for one in cases]
    larger_real = real._replace(pictures=np.zeros((2, 8, 8, 3), np.uint8))
    assert dict(prior.measure(larger, {}, larger_real, options())) == found
    # The reader's own segmentor is told beside what is read with it, and only where it reads masks.
    judged = real._replace(lesion=lesion, levels=[{}, {}])
    reader = lambda reads: dataclasses.replace(options().reader, from_mask=reads)
    told = lambda reads: dict(control.measure(cases, {CAPTIONS: judged}, judged, options(reader=reader(reads))))
    assert told(True)["reader/dice"].value == found["prior/dice"].value and "reader/dice" not in told(False)
    with pytest.raises(ValueError, match="stage 1"):
        dict(prior.measure(cases, {}, seen([{}, {}]), options()))


def test_sets_of_one_name_are_the_same_pictures_for_every_metric():
    makers: dict[str, set] = {}
    for metric in METRICS.values():
        for name, requests in metric.sets.items():
            makers.setdefault(name, set()).add(requests)
    assert CAPTIONS in makers and all(len(found) == 1 for found in makers.values())


def test_diversity_tells_sameness_from_variety_and_copies_from_new_pictures():
    rng = np.random.default_rng(0)
    trained = rng.integers(0, 255, (5, 64, 64, 3), np.uint8)
    told = options()._replace(training=lambda: iter(trained))
    cases = [case(str(i)) for i in range(3)]
    asked = diversity.requests(cases, told)
    assert [request.prompt for request in asked] == [str(i) for i in range(3) for _ in range(diversity.DRAWS)]

    def measured(pictures):
        drawn = {diversity.SAME: Seen(pictures, [])}
        return dict(diversity.measure(cases, drawn, Seen(255 - trained, []), told))

    copies = measured(np.repeat(trained[:3], diversity.DRAWS, axis=0))
    assert copies["diversity/pairs"].value == copies["diversity/nearest"].value == pytest.approx(0, abs=1e-6)
    assert copies["diversity/pairs"].n == 3 and copies["diversity/nearest"].n == 3 * diversity.DRAWS
    assert copies["diversity_real/pairs"].n == copies["diversity_real/nearest"].n == 5
    # Half black, half white: of a picture's 15 others 8 lie at distance 1.
    halves = np.zeros((3 * diversity.DRAWS, 64, 64, 3), np.uint8)
    halves[::2] = 255
    assert measured(halves)["diversity/pairs"].value == pytest.approx(8 / 15)
    small = np.stack([x.reshape(32, 2, 32, 2, 3).mean((1, 3)) for x in trained]) / 255
    nearest = [np.sqrt(np.square(1 - one - small).mean((1, 2, 3))).min() for one in small]
    assert copies["diversity_real/nearest"].value == pytest.approx(np.mean(nearest), abs=2e-3)


def test_the_mean_over_factors_has_an_interval_over_captions():
    rng, options = np.random.default_rng(0), argparse.Namespace(seed=0, resamples=2000)
    answers = (rng.random((3, 400)) < 0.8).astype(float)
    answers[1, ::2] = np.nan  # half the captions do not name it
    low, high = control.mean_interval(answers, options)
    # Variances of the three means add up, each of .16 over the captions that name the factor.
    half = 1.96 * np.sqrt(0.16 / 400 + 0.16 / 200 + 0.16 / 400) / 3
    assert (low + high) / 2 == pytest.approx(np.nanmean(answers, axis=1).mean(), abs=0.005)
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)
