"""The metrics of edits and reference styles: what they ask with, and what they make of pictures that obey or drift."""

import dataclasses

import numpy as np
import pytest

from tests.test_wordings import said
from vgjax.data.records import from_png
from vgjax.data.sources import phantom
from vgjax.evaluation.metrics import base, edit, style
from vgjax.evaluation.metrics.base import Options, Seen

OPTIONS = Options(phantom.SOURCE.reader({}), seed=3, draws=1, resamples=100)
ITEMS = list(phantom.items("test", 12, seed=0))
CASES = [
    base.TestCase(i.caption, i.label, i.factors, {name: i.factors[name] for name in i.named}, i.image, i.mask)
    for i in ITEMS
]
CHANNEL = phantom.CHANNEL


def of_channel(levels, channel):
    return {factor: level for factor, level in levels.items() if CHANNEL[factor] == channel}


def seen(levels):
    return Seen(np.stack([case.image for case in CASES]), levels)


def measured(after, before=None, redrawn=None, cases=CASES):
    """`after`: (levels of the picture, levels asked for, channel asked for) -> levels of the edited picture."""
    before = before or [case.levels for case in cases]
    drawn = {"redrawn": seen(redrawn or before)}
    for channel, name in edit.EDITED.items():
        asked = [of_channel(edit.other_case(cases, i).levels, channel) for i in range(len(cases))]
        drawn[name] = seen([after(b, a, channel) for b, a in zip(before, asked, strict=True)])
    return {name: one.value for name, one in edit.measure(cases, drawn, seen(before), OPTIONS)}


def test_an_edit_asks_one_channel_of_another_case_and_nothing_of_the_other():
    assert {one.source for one in edit.redrawn(CASES, OPTIONS)} == {
        one.source for one in edit.edited("anatomy", CASES, OPTIONS)
    }
    for channel, other in (("anatomy", "modality"), ("modality", "anatomy")):
        requests = edit.edited(channel, CASES, OPTIONS)
        for i, one in enumerate(requests):
            np.testing.assert_array_equal(from_png(one.source), CASES[i].image)
            assert said(getattr(one, channel)) == of_channel(CASES[(i + 6) % 12].levels, channel)
            assert not one.prompt and not getattr(one, other) and not one.mask
        assert len({one.seed for one in requests}) == len(CASES)


def test_who_changes_what_is_asked_and_no_more_is_right_in_everything():
    found = measured(lambda before, asked, channel: before | asked)
    ones = {f"edit/{what}/{c}": 1.0 for what in ("accuracy", "effect", "kept", "redrawn") for c in edit.CHANNELS}
    assert found == ones | {f"edit/spill/{c}": 0.0 for c in edit.CHANNELS}


def test_who_changes_nothing_has_no_effect_though_some_levels_are_the_same_by_chance():
    found = measured(lambda before, asked, channel: before)
    for channel in edit.CHANNELS:
        assert found[f"edit/effect/{channel}"] == 0.0 < found[f"edit/accuracy/{channel}"] < 0.7
        assert found[f"edit/kept/{channel}"] == 1.0


def test_an_unasked_factor_that_moves_along_is_not_kept_and_a_poor_redraw_is_told_beside():
    moved = lambda before, asked, channel: before | asked | ({"blur": "?"} if channel == "anatomy" else {})
    redrawn = [case.levels | {"size": None} for case in CASES]
    found = measured(moved, redrawn=redrawn)
    assert found["edit/kept/modality"] == pytest.approx(4 / 5) and found["edit/kept/anatomy"] == 1.0
    assert found["edit/redrawn/modality"] == 1.0 and found["edit/redrawn/anatomy"] == pytest.approx(3 / 4)
    assert found["edit/spill/modality"] == pytest.approx(1 / 5)
    assert found["edit/spill/anatomy"] == pytest.approx(-1 / 4)


def test_captions_of_which_nothing_is_known_measure_what_is_kept_alone():
    cases = [case._replace(requested={}) for case in CASES]
    found = measured(lambda before, asked, channel: before, cases=cases)
    assert {name.split("/")[1] for name in found} == {"kept", "redrawn", "spill"}
    assert edit.edited("modality", cases, OPTIONS)[0].modality == cases[6].caption


# ---------------------------------------------------------------- style


def test_both_ways_ask_for_the_same_anatomy_of_one_noise():
    by_picture, by_text = (style.requests(way, CASES, OPTIONS) for way in style.SETS)
    for case, shown, told in zip(CASES, by_picture, by_text, strict=True):
        assert said(told.anatomy) == of_channel(case.levels, "anatomy")
        assert said(told.modality) == of_channel(case.levels, "modality")
        np.testing.assert_array_equal(from_png(shown.modality_image), case.image)
        assert dataclasses.replace(shown, modality_image=b"") == dataclasses.replace(told, modality="")
    assert len({one.seed for one in by_text}) == len(CASES)


def test_errors_are_of_mean_colour_and_of_brightness():
    """Red 6 too much and green 3 too little: colour is off by 3 on average, brightness by 1."""
    real = Seen(np.full((4, 8, 8, 3), 100, np.uint8), [])
    off = np.uint8([106, 97, 100]) * np.ones((4, 8, 8, 1), np.uint8)
    drawn = {"style_reference": real, "style_text": Seen(off, [])}
    found = {name: one.value for name, one in style.measure(CASES[:4], drawn, real, OPTIONS)}
    assert found == {
        "style/colour/reference": 0.0,
        "style/brightness/reference": 0.0,
        "style/colour/text": pytest.approx(3.0),
        "style/brightness/text": pytest.approx(1.0),
    }
