"""The metric of masks: asks with masks alone for the anatomy, and compares outlines with the main lesion."""

import numpy as np
import pytest

from configs import phantom as phantom_config
from vgjax.config import from_config_dict
from vgjax.data.entries import Reader
from vgjax.data.records import from_png
from vgjax.data.sources import phantom
from vgjax.evaluation import evaluate
from vgjax.evaluation.metrics import base, mask
from vgjax.evaluation.metrics.base import Options, Seen

SIDE = 16


def disc(y, x, radius=4.0):
    rows, columns = np.ogrid[:SIDE, :SIDE]
    return (np.hypot(rows - y, columns - x) <= radius).astype(np.uint8)


LEFT, RIGHT, SPOT = disc(8, 4), disc(8, 11), disc(2, 13, 1.5)
EMPTY = np.zeros_like(LEFT)


def options(reader=None):
    plain = Reader({}, {}, lambda pictures, lesion: [], lambda requested, factor: 1.0, lambda *_: "")
    return Options(reader or plain, seed=0, draws=1, resamples=100)


def cases_of(*masks):
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    return [base.TestCase(f"caption {i}", "", {}, {}, picture, one) for i, one in enumerate(masks)]


def drawn(*lesions):
    return Seen(np.zeros((len(lesions), SIDE, SIDE, 3), np.uint8), [], np.stack(lesions).astype(float))


def measured(cases, seen, real=None, told=None):
    return dict(mask.measure(cases, {mask.MASKS: seen}, real or seen, told or options()))


def test_a_request_gives_the_mask_and_of_the_words_the_modality_alone():
    asked = mask.requests(cases_of(LEFT, RIGHT), options())
    assert [(one.prompt, one.anatomy, one.modality) for one in asked] == [("", "", "caption 0"), ("", "", "caption 1")]
    np.testing.assert_array_equal(from_png(asked[1].mask), RIGHT)


def test_the_largest_part_counts_at_the_readers_resolution():
    np.testing.assert_array_equal(mask.main_lesion(LEFT | SPOT, SIDE), LEFT)
    assert not mask.main_lesion(EMPTY, SIDE).any()
    fine = mask.main_lesion(LEFT | SPOT, 2 * SIDE)
    assert fine.shape == (2 * SIDE, 2 * SIDE) and fine.mean() == pytest.approx(LEFT.mean(), rel=0.15)


def test_overlap_is_one_where_the_lesion_fits_and_zero_where_it_lies_elsewhere():
    half = LEFT.copy()
    half[8:] = 0
    cases = cases_of(LEFT, LEFT, LEFT, LEFT | SPOT)
    values = mask.overlaps(cases, drawn(LEFT, RIGHT & ~LEFT, half, LEFT), options())
    assert values == pytest.approx([1.0, 0.0, half.sum() / LEFT.sum(), 1.0])


def test_cases_without_a_lesion_do_not_count_and_a_missing_lesion_is_a_miss():
    found = measured(cases_of(LEFT, EMPTY), drawn(EMPTY, LEFT), drawn(LEFT, LEFT))
    assert (found["mask/iou"].value, found["mask/iou"].n) == (0.0, 1)
    assert found["mask_real/iou"].value == 1.0
    assert measured(cases_of(EMPTY), drawn(LEFT)) == {}


def test_the_phantoms_outline_is_the_main_lesion_without_its_satellites():
    items = list(phantom.items("test", 40, seed=0))
    cases = [base.TestCase(one.caption, one.label, one.factors, {}, one.image, one.mask) for one in items]
    told = options(phantom.SOURCE.reader({}))
    real = Seen(np.stack([one.image for one in items]), [])
    found = measured(cases, real, told=told)
    assert found["mask_real/iou/sharp"].value > 0.85 and found["mask_real/iou"].value > 0.75
    assert sum(found[f"mask_real/iou/{level}"].n for level in phantom.FACTORS["blur"]) == 40
    turned = Seen(real.pictures[:, ::-1, ::-1], [])
    assert measured(cases, turned, real, told)["mask/iou"].value < found["mask_real/iou"].value - 0.2


@pytest.mark.parametrize(
    ("variant", "there"), [("smoke", True), ("regression+smoke", False), ("reference+smoke", False)]
)
def test_only_conditions_that_take_masks_are_asked(variant, there):
    c = phantom_config.get_config(variant)
    c.evaluate.metrics = ("control", "mask")
    assert ("mask" in evaluate.computed(from_config_dict(c))) == there
