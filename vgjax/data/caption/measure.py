"""Captions measured on picture and mask: attributes are put into levels, and those are named in a vocabulary's words.

Everything is measured on the square that the pipeline trains on and generates (another shape is stretched to one): a
caption is true of the square, and the same functions read position and size back from a generated picture. The
default vocabulary is that of endoscopy (one lesion, a polyp, on mucosa). Class names enter only where they are handed
over for it.
"""

import bisect
import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt
from skimage.measure import label as connected
from skimage.measure import regionprops

from vgjax.data.caption.words import POLYP, POSITIONS, SHAPES, Vocabulary, article
from vgjax.data.entries import Thresholds

ALWAYS_NAMED = ("position", "size")
NAMED = 0.85  # share of captions that name another factor

MEASURED_SIDE = 128  # pixels; finer detail changes no level and costs time
MIN_AREA_FRACTION = 0.001  # less than this is specks, not a lesion
FIELD_GREY = 25  # 0..255; darker pixels are the black frame around the endoscope's field of view
SURROUND = 0.5  # width of the ring that a lesion is compared with, in radii of the disc of its area

TERCILES = (1 / 3, 2 / 3)
# Factor -> the attributes that decide its level -> where those part, as quantiles of the training pictures. Lesions
# cluster in the middle: with thirds of the picture most would be "centre", with terciles "left" would begin at the
# middle. Quartiles lie between.
ATTRIBUTES: dict[str, dict[str, tuple[float, ...]]] = {
    "position": {"centre_x": (0.25, 0.75), "centre_y": (0.25, 0.75)},
    "size": {"area_fraction": TERCILES},
    "shape": {"solidity": (0.25,), "axis_ratio": (0.5,)},
    "border": {"border": TERCILES},
    "colour": {"warmth": TERCILES},
    "contrast": {"lesion_contrast": TERCILES},
    "brightness": {"brightness": TERCILES},
}
SIDED = re.compile(r"(?<![a-z])(left|right)(?=(?:wards?|most|sided)?(?![a-z]))", re.IGNORECASE)

# Begins a word that a mirrored or turned picture may make untrue; better one too many than one too few.
DIRECTED = re.compile(
    r"(?<![a-z])(left|right|upper|lower|top|bottom|above|below|beneath|superior|inferior|lateral|medial|horizontal"
    r"|vertical|clockwise|counterclockwise|o'clock|[rl][uml]l(?![a-z]))",
    re.IGNORECASE,
)


class Caption(NamedTuple):
    """A caption with what is known of it."""

    text: str  # what the text stages see
    levels: dict[str, str]  # factor -> level, measured
    named: tuple[str, ...]  # the factors that the text names; of the dataset's own words nothing is known


def _square(array: np.ndarray) -> np.ndarray:
    """An (H, W) or (H, W, C) uint8 array stretched to a square of at most `MEASURED_SIDE` pixels a side."""
    side = min(*array.shape[:2], MEASURED_SIDE)
    if array.shape[:2] == (side, side):
        return array
    return np.asarray(Image.fromarray(array).resize((side, side), Image.Resampling.BOX))


def _lesion(mask_HW: np.ndarray, vocabulary: Vocabulary):
    """skimage's region properties of what a mask (non-zero inside) outlines, and the side of its square; or None.

    Where the lesion is one thing, that is the largest connected part.
    """
    square = _square((np.asarray(mask_HW) > 0).astype(np.uint8) * 255) > 127
    regions = regionprops(connected(square) if vocabulary.single else square.astype(np.uint8))
    largest = max(regions, key=lambda region: region.area, default=None)
    return None if largest is None or largest.area < MIN_AREA_FRACTION * square.size else (largest, len(square))


def picture_style(image_HWC: np.ndarray) -> dict[str, float]:
    """Colour and light of a whole picture (H, W, 3) uint8, the black frame left out.

    Returns:
      `warmth`, 1 - blue/red of the mean colour (0 grey, 1 without any blue: pink mucosa is low, orange high);
      `brightness`, the mean grey level, and `contrast`, its standard deviation, both in units of white.
    """
    pixels = _square(image_HWC).reshape(-1, 3).astype(np.float64)
    grey = pixels.mean(axis=1)
    if (inside := grey > FIELD_GREY).any():  # an all-black picture has no field to leave a frame around
        pixels, grey = pixels[inside], grey[inside]
    red, _, blue = pixels.mean(axis=0)
    warmth = float(1 - blue / max(red, 1.0))
    return {"warmth": warmth, "brightness": float(grey.mean() / 255), "contrast": float(grey.std() / 255)}


def measure_attributes(image_HWC: np.ndarray, mask_HW: np.ndarray, vocabulary: Vocabulary = POLYP) -> dict[str, float]:
    """Raw numbers of one picture: where the lesion is, its outline, and `picture_style`.

    `centre_x`, `centre_y` are in 0..1 from the upper left, `area_fraction` is of the picture. The outline is given by
    `solidity` (area over that of the convex hull), `axis_ratio` (minor over major axis of the ellipse with the same
    second moments) and `eccentricity` of that ellipse, all in 0..1, and by `border`: perimeter^2 over 4 pi area, 1 for
    a disc, divided by solidity. `lesion_contrast` is the difference of the mean greys of the lesion and of a ring
    around it over their sum, in 0..1.

    Args:
      image_HWC: (H, W, 3) uint8.
      mask_HW: (H, W), non-zero inside the lesion.
      vocabulary: says what the lesion is, and whether there may be none: then the style alone is returned.

    Raises:
      ValueError: the mask is (nearly) empty and the vocabulary has no words for that.
    """
    lesion = _lesion(mask_HW, vocabulary)
    if lesion is None:
        if vocabulary.empty:
            return picture_style(image_HWC)
        raise ValueError(f"the mask covers less than {MIN_AREA_FRACTION:.1%} of the picture")
    region, side = lesion
    y, x = ((place + 0.5) / side for place in region.centroid)
    outline = {
        "centre_x": float(x),
        "centre_y": float(y),
        "area_fraction": float(region.area / side**2),
        "solidity": float(region.solidity),
        "axis_ratio": float(region.axis_minor_length / region.axis_major_length) if region.axis_major_length else 1.0,
        "eccentricity": float(region.eccentricity),
        "border": float(region.perimeter**2 / (4 * np.pi * region.area * region.solidity)),
        "lesion_contrast": _lesion_contrast(image_HWC, region, side),
    }
    return outline | picture_style(image_HWC)


def _lesion_contrast(image_HWC: np.ndarray, region, side: int) -> float:
    inside = np.zeros((side, side), bool)
    inside[tuple(region.coords.T)] = True
    grey = np.asarray(Image.fromarray(image_HWC).resize((side, side), Image.Resampling.BOX)).mean(axis=-1)
    width = max(2.0, SURROUND * np.sqrt(region.area / np.pi))
    ring = ~inside & (distance_transform_edt(~inside) <= width)
    if not ring.any():  # the lesion fills the picture
        return 0.0
    lesion, surround = grey[inside].mean(), grey[ring].mean()
    return float(abs(lesion - surround) / max(lesion + surround, 1.0))


def fit_thresholds(
    attributes: Sequence[Mapping[str, float]], vocabulary: Vocabulary = POLYP
) -> dict[str, tuple[float, ...]]:
    """Where levels part: quantiles of the (training) pictures that have the attribute; ValueError without pictures."""
    if not attributes:
        raise ValueError("no training picture to fit the caption thresholds to")
    return {
        name: tuple(np.quantile(values, quantiles).tolist())
        for factor in vocabulary.factors
        for name, quantiles in ATTRIBUTES[factor].items()
        if (values := [one[name] for one in attributes if name in one])
    }


def attribute_levels(
    attributes: Mapping[str, float], thresholds: Thresholds, vocabulary: Vocabulary = POLYP
) -> dict[str, str]:
    """Factor -> level, for each factor whose attributes are given (so a mask alone gives position and size)."""
    levels, known = {}, attributes.keys() & thresholds.keys()
    for factor in (factor for factor in vocabulary.factors if ATTRIBUTES[factor].keys() <= known):
        band = [bisect.bisect_right(thresholds[name], attributes[name]) for name in ATTRIBUTES[factor]]
        if factor == "position":
            levels[factor] = POSITIONS[band[1]][band[0]]
        elif factor == "shape":
            # A dented outline is irregular whatever its axes; only a compact one is worth calling oval or round.
            levels[factor] = SHAPES[0] if band[0] == 0 else SHAPES[1 + band[1]]
        else:
            levels[factor] = tuple(vocabulary.words[factor])[band[0]]
    return levels


def choose_named(levels: Mapping[str, str], rng: np.random.Generator) -> tuple[str, ...]:
    """The factors a caption names: `ALWAYS_NAMED`, and each other one with probability `NAMED`."""
    # One draw for every factor, so that what is named of one does not depend on which others exist.
    return tuple(name for name in levels if rng.random() < NAMED or name in ALWAYS_NAMED)


def describe(
    levels: Mapping[str, str],
    rng: np.random.Generator,
    named: Collection[str] | None = None,
    vocabulary: Vocabulary = POLYP,
) -> str:
    """Two sentences, one on anatomy and one on modality, in either order and in words drawn among synonyms.

    Levels without any of anatomy are those of an empty mask. The factors to name are all by default; where none of
    modality is named its sentence is left out.
    """
    named = levels if named is None else named
    words = {name: str(rng.choice(vocabulary.words[name][levels[name]])) for name in named}
    if vocabulary.empty and not any(name in levels for name in vocabulary.anatomy):
        clauses = [str(rng.choice(vocabulary.empty))]
    else:
        pattern = str(rng.choice(vocabulary.anatomy_patterns["position" in words]))
        noun = " ".join([*(words[name] for name in ("size", "shape") if name in words), vocabulary.lesion])
        noun = f"{article(noun) if vocabulary.single else noun} {words.get('border', '')}".rstrip()
        clauses = [pattern.format(lesion=noun, **words)]
    if style := tuple(name for name in vocabulary.modality if name in words):
        clauses.append(str(rng.choice(vocabulary.modality_patterns[style])).format(**words))
    if rng.random() < 0.5:
        clauses.reverse()
    return " ".join(clause[0].upper() + clause[1:] + "." for clause in clauses)


def caption(
    entry_text: str,
    attributes: Mapping[str, float],
    thresholds: Thresholds,
    vocabulary: Vocabulary,
    mode: str,
    rng: np.random.Generator,
    label: str = "",
) -> Caption:
    """The caption of one picture, with the class name, if any, told at its end.

    Modes: "own" words of the dataset, which fall back to measured ones where there are none; "measured"; "both", own
    words first. What is named of the measured factors, and how, is drawn.
    """
    own = own_text(entry_text, mode)
    levels = attribute_levels(attributes, thresholds, vocabulary)
    named = () if own and mode == "own" else choose_named(levels, rng)
    measured = "" if own and mode == "own" else describe(levels, rng, named, vocabulary)
    return Caption(joined(own, measured, class_clause(label)), levels, named)


def own_text(entry_text: str, mode: str) -> str:
    """The dataset's own words on one line, where the mode of captions wants them."""
    return " ".join(entry_text.split()) if mode != "measured" else ""


def class_clause(label: str) -> str:
    """The sentence that tells the class; none for none."""
    return f"Class: {label}." if label else ""


def joined(*parts: str) -> str:
    """The parts that are not empty, all but the last ended as sentences are."""
    *first, last = filter(None, parts)
    return " ".join([*(part if part[-1] in ".!?" else part + "." for part in first), last])
