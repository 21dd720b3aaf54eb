"""Captions for pictures that come without text: attributes are measured, put into levels, and said in words.

Everything is measured on the whole picture stretched to a square, which is what the pipeline trains on and generates:
a caption is true of the square, and the same functions read position and size back from a generated picture.
Written for endoscopy (one lesion, a polyp, on mucosa).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image
from skimage.measure import label, regionprops

MEASURED_ANATOMY = ("position", "size", "shape")
MEASURED_MODALITY = ("colour", "brightness")
ALWAYS_SAID = ("position", "size")

MEASURED_SIDE = 128  # pixels; finer detail changes no level and costs time
MIN_AREA_FRACTION = 0.001  # less than this is specks, not a lesion
FIELD_GREY = 25  # 0..255; darker pixels are the black frame around the endoscope's field of view

Thresholds = Mapping[str, Sequence[float]]

# Where the levels of an attribute part, as quantiles of the training pictures. Lesions cluster in the middle: with
# thirds of the picture most would be "centre", with terciles "left" would begin at the middle. Quartiles lie between.
QUANTILES: dict[str, tuple[float, ...]] = {
    "centre_x": (0.25, 0.75),
    "centre_y": (0.25, 0.75),
    "area_fraction": (1 / 3, 2 / 3),
    "solidity": (0.25,),
    "axis_ratio": (0.5,),
    "warmth": (1 / 3, 2 / 3),
    "brightness": (1 / 3, 2 / 3),
}

POSITIONS = (
    ("upper left", "upper centre", "upper right"),
    ("middle left", "centre", "middle right"),
    ("lower left", "lower centre", "lower right"),
)
SIZES = ("small", "medium", "large")
SHAPES = ("irregular", "oval", "round")
COLOURS = ("pink", "salmon", "orange")
BRIGHTNESSES = ("dark", "normal", "bright")

# The whole words "left" and "right" occur in positions only, so that swapping them mends a flipped picture's caption.
WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "position": {
        "upper left": ("in the upper left", "at the top left"),
        "upper centre": ("in the upper centre", "at the top"),
        "upper right": ("in the upper right", "at the top right"),
        "middle left": ("in the middle left", "on the left"),
        "centre": ("in the centre", "in the middle"),
        "middle right": ("in the middle right", "on the right"),
        "lower left": ("in the lower left", "at the bottom left"),
        "lower centre": ("in the lower centre", "at the bottom"),
        "lower right": ("in the lower right", "at the bottom right"),
    },
    "size": {"small": ("small", "little"), "medium": ("medium-sized", "mid-sized"), "large": ("large", "big")},
    "shape": {"irregular": ("irregular", "lobed"), "oval": ("oval", "elongated"), "round": ("round", "rounded")},
    "colour": {"pink": ("pink", "pale pink"), "salmon": ("salmon", "peach"), "orange": ("orange", "deep orange")},
    "brightness": {
        "dark": ("dimly lit", "dark"),
        "normal": ("evenly lit", "moderately lit"),
        "bright": ("brightly lit", "bright"),
    },
}
ANATOMY_PATTERNS = {
    True: ("{lesion} {position}", "{lesion} is seen {position}", "{position} there is {lesion}"),
    False: ("{lesion}", "{lesion} is seen", "there is {lesion}"),
}
MODALITY_PATTERNS = {
    ("colour", "brightness"): (
        "the mucosa is {colour} and {brightness}",
        "{brightness} view of {colour} mucosa",
        "{colour} mucosa, {brightness}",
    ),
    ("colour",): ("the mucosa is {colour}", "view of {colour} mucosa", "{colour} mucosa"),
    ("brightness",): ("the mucosa is {brightness}", "{brightness} view", "{brightness} picture"),
}


def _square(array: np.ndarray) -> np.ndarray:
    """An (H, W) or (H, W, C) uint8 array stretched to a square of at most `MEASURED_SIDE` pixels a side."""
    side = min(*array.shape[:2], MEASURED_SIDE)
    if array.shape[:2] == (side, side):
        return array
    return np.asarray(Image.fromarray(array).resize((side, side), Image.Resampling.BOX))


def _lesion(mask_HW: np.ndarray):
    """skimage's region properties of the largest connected lesion in a mask (non-zero inside), or None."""
    square = _square((np.asarray(mask_HW) > 0).astype(np.uint8) * 255) > 127
    regions = regionprops(label(square))
    largest = max(regions, key=lambda region: region.area, default=None)
    return None if largest is None or largest.area < MIN_AREA_FRACTION * square.size else (largest, square.shape[0])


def position_and_size(mask_HW: np.ndarray) -> dict[str, float] | None:
    """Where the largest connected lesion of a mask lies and how large it is.

    Args:
      mask_HW: (H, W), non-zero inside the lesion.

    Returns:
      `centre_x`, `centre_y` in 0..1 from the upper left corner, and `area_fraction` of the picture; None
      where less than `MIN_AREA_FRACTION` is covered.
    """
    lesion = _lesion(mask_HW)
    return None if lesion is None else _geometry(*lesion)


def _geometry(region, side: int) -> dict[str, float]:
    row, column = region.centroid
    return {
        "centre_x": float((column + 0.5) / side),
        "centre_y": float((row + 0.5) / side),
        "area_fraction": float(region.area / side**2),
    }


def picture_style(image_HWC: np.ndarray) -> dict[str, float]:
    """Colour and light of a whole picture, the black frame left out.

    Args:
      image_HWC: (H, W, 3) uint8.

    Returns:
      `warmth`, 1 - blue/red of the mean colour (0 grey, 1 without any blue: pink mucosa is low, orange high);
      `brightness`, the mean grey level, and `contrast`, its standard deviation, both in units of white.
    """
    pixels = _square(image_HWC).reshape(-1, 3).astype(np.float64)
    grey = pixels.mean(axis=1)
    inside = grey > FIELD_GREY
    if not inside.any():  # an all-black picture has no field to leave a frame around
        inside = np.ones_like(inside)
    red, _, blue = pixels[inside].mean(axis=0)
    return {
        "warmth": float(1 - blue / max(red, 1.0)),
        "brightness": float(grey[inside].mean() / 255),
        "contrast": float(grey[inside].std() / 255),
    }


def measure_attributes(image_HWC: np.ndarray, mask_HW: np.ndarray) -> dict[str, float]:
    """Raw numbers of one picture: `position_and_size`, the lesion's outline, and `picture_style`.

    The outline is given by `solidity` (area over that of the convex hull), `axis_ratio` (minor over major axis of the
    ellipse with the same second moments) and `eccentricity` of that ellipse, all in 0..1.

    Args:
      image_HWC: (H, W, 3) uint8.
      mask_HW: (H, W), non-zero inside the lesion.

    Raises:
      ValueError: the mask is (nearly) empty.
    """
    lesion = _lesion(mask_HW)
    if lesion is None:
        raise ValueError(f"the mask covers less than {MIN_AREA_FRACTION:.1%} of the picture")
    region, side = lesion
    outline = {
        "solidity": float(region.solidity),
        "axis_ratio": float(region.axis_minor_length / region.axis_major_length) if region.axis_major_length else 1.0,
        "eccentricity": float(region.eccentricity),
    }
    return _geometry(region, side) | outline | picture_style(image_HWC)


def fit_thresholds(attributes: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, ...]]:
    """Where levels part: the `QUANTILES` of the given (training) pictures' attributes.

    Raises:
      ValueError: there is no picture to fit to.
    """
    if not attributes:
        raise ValueError("no training picture to fit the caption thresholds to")
    return {
        name: tuple(float(t) for t in np.quantile([one[name] for one in attributes], quantiles))
        for name, quantiles in QUANTILES.items()
    }


def attribute_levels(attributes: Mapping[str, float], thresholds: Thresholds) -> dict[str, str]:
    """Factor -> level, for each factor whose attributes are given (so a mask alone gives position and size).

    Args:
      attributes: as `measure_attributes` or one of its parts returns them.
      thresholds: as `fit_thresholds` returns them.
    """
    band = {
        name: int(np.searchsorted(thresholds[name], attributes[name], side="right"))
        for name in QUANTILES
        if name in attributes
    }
    levels = {}
    if "centre_x" in band:
        levels["position"] = POSITIONS[band["centre_y"]][band["centre_x"]]
        levels["size"] = SIZES[band["area_fraction"]]
    if "solidity" in band:
        # A dented outline is irregular whatever its axes; only a compact one is worth calling oval or round.
        levels["shape"] = SHAPES[0] if band["solidity"] == 0 else SHAPES[1 + band["axis_ratio"]]
    if "warmth" in band:
        levels["colour"] = COLOURS[band["warmth"]]
        levels["brightness"] = BRIGHTNESSES[band["brightness"]]
    return levels


def levels_from_mask(mask_HW: np.ndarray, thresholds: Thresholds) -> dict[str, str] | None:
    """Position and size levels of the lesion in a mask, e.g. a segmentor's of a generated picture.

    Args:
      mask_HW: (H, W), non-zero inside the lesion.
      thresholds: as `fit_thresholds` returns them.

    Returns:
      {"position": ..., "size": ...}, or None where the mask is (nearly) empty.
    """
    geometry = position_and_size(mask_HW)
    return None if geometry is None else attribute_levels(geometry, thresholds)


def choose_said(levels: Mapping[str, str], rng: np.random.Generator, probability: float = 0.85) -> tuple[str, ...]:
    """The factors a caption names: `ALWAYS_SAID`, and each other one with the given probability."""
    # One draw for every factor, so that what is said of one does not depend on which others exist.
    return tuple(name for name in levels if bool(rng.random() < probability) or name in ALWAYS_SAID)


def describe(levels: Mapping[str, str], rng: np.random.Generator, said: Sequence[str] | None = None) -> str:
    """Two sentences, one on anatomy and one on modality, in either order and in words drawn among synonyms.

    Args:
      levels: factor -> level, as `attribute_levels` returns them.
      rng: draws pattern, synonyms and order.
      said: the factors to name; all of `levels` by default. Where none of modality is said its sentence is left out.
    """
    said = tuple(levels) if said is None else tuple(said)
    words = {name: str(rng.choice(WORDS[name][levels[name]])) for name in said}
    adjectives = " ".join(words[name] for name in ("size", "shape") if name in words)
    noun = f"{adjectives} polyp".strip()
    lesion = ("an " if noun[0] in "aeiou" else "a ") + noun
    pattern = str(rng.choice(ANATOMY_PATTERNS["position" in words]))
    clauses = [pattern.format(lesion=lesion, **words)]
    style = tuple(name for name in MEASURED_MODALITY if name in words)
    if style:
        clauses.append(str(rng.choice(MODALITY_PATTERNS[style])).format(**words))
    if rng.random() < 0.5:
        clauses.reverse()
    return " ".join(clause[0].upper() + clause[1:] + "." for clause in clauses)
