"""Mask: does the lesion lie where a mask asked for it? The modality is that of the case's caption."""

from collections.abc import Mapping, Sequence

import numpy as np
from skimage.measure import label as connected
from skimage.transform import resize

from vgjax.data.read.decode import to_png
from vgjax.evaluation.metrics.base import Metric, Options, Results, Seen, TestCase
from vgjax.evaluation.metrics.numbers import mean_estimate
from vgjax.types import Request

MASKS = "masks"


def requests(cases: Sequence[TestCase], options: Options) -> list[Request]:
    """The mask of each case."""
    return [Request(mask=to_png(case.mask), modality=case.caption) for case in cases]


def main_lesion(mask_HW: np.ndarray, side: int) -> np.ndarray:
    """The largest connected part of a mask, at side x side pixels, bool."""
    parts = connected(mask_HW > 0)
    largest = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:])) if parts.any() else parts > 0
    return resize(largest.astype(float), (side, side), order=1) > 0.5


def overlaps(cases: Sequence[TestCase], seen: Seen, options: Options) -> list[float | None]:
    """Intersection over union of the lesion's outline and its mask, of each case; None where the mask is empty."""
    lesion = np.zeros(seen.pictures.shape[:3]) if seen.lesion is None else seen.lesion
    found: list[float | None] = []
    for case, drawn in zip(cases, options.reader.outline(seen.pictures, lesion), strict=True):
        asked = main_lesion(case.mask, len(drawn))
        found.append(float((asked & drawn).sum() / (asked | drawn).sum()) if asked.any() else None)
    return found


def measure(cases: Sequence[TestCase], drawn: Mapping[str, Seen], real: Seen, options: Options) -> Results:
    """mask/iou beside mask_real/iou, what the same outline reaches on real pictures; by blur too, where it is known."""
    groups: dict[str, list[int]] = {"": list(range(len(cases)))}
    for place, case in enumerate(cases):
        if "blur" in options.reader.levels:
            groups.setdefault(f"/{case.levels['blur']}", []).append(place)
    for name, seen in (("mask", drawn[MASKS]), ("mask_real", real)):
        found = overlaps(cases, seen, options)
        for group, places in groups.items():
            if values := [value for place in places if (value := found[place]) is not None]:
                yield f"{name}/iou{group}", mean_estimate(values, options)


METRIC = Metric(measure, {MASKS: requests}, needs=("masks",), most=512)
