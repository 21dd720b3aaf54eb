"""Phantom: a procedural dataset of lesion-like RGB images whose every factor is known.

Anatomy factors say what is where (position, size, shape, count of satellites), modality factors how it was
imaged (colour, brightness, contrast, texture, blur). Levels are drawn uniformly and independently and lie far apart
compared with the jitter inside a level. No factor owns a place or a colour: each is a property of the lesion or of the
whole image. Lengths below are pixels of a 32x32 image and scale with the image; intensities are in [0, 1].
"""

import itertools
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from vgjax.config import Config, ConfigError
from vgjax.data.caption.wordings import swapped
from vgjax.data.entries import Plan, Reader, Thresholds
from vgjax.data.read.decode import to_png
from vgjax.data.sources import phantom_reading, phantom_text
from vgjax.types import SPLITS, Item

ANATOMY = ("position", "size", "shape", "count")
MODALITY = ("colour", "brightness", "contrast", "texture", "blur")
CHANNEL = dict.fromkeys(ANATOMY, "anatomy") | dict.fromkeys(MODALITY, "modality")
FACTORS = {name: tuple(phantom_text.WORDINGS[name]) for name in (*ANATOMY, *MODALITY)}  # levels; a seed draws by order

# (factor, level) pairs that never stand together in training or validation; 20.7 % of all draws.
RARE = "malignant"  # the class that `data.rare_every` thins out
DECISIVE = ("size", "shape")  # factors that decide the class

HELD_OUT = (
    (("size", "large"), ("colour", "amber")),
    (("position", "upper left"), ("colour", "blue")),
    (("position", "lower right"), ("colour", "red")),
    (("size", "small"), ("shape", "lobed")),
)

STYLES: dict[str, dict[str, Any]] = {
    "": {},
    "new_patterns": {"patterns": phantom_text.NEW_PATTERNS},
    "new_wordings": {"wordings": phantom_text.NEW_WORDINGS},
}

REFERENCE_SIZE = 32
NAMED_PROBABILITY = 0.85

CELL_CENTRE = (10.75, 16.0, 21.25)
RADIUS = {"small": 4.45, "medium": 6.1, "large": 8.3}  # of the disc of equal area
OVAL_ASPECT = 1.9  # of a horizontal ellipse
LOBES, LOBE_AMPLITUDE = 3, 0.40  # around the outline, relative to its radius
SATELLITES = {"none": 0, "one": 1, "two": 2}
SATELLITE_RADIUS = 3.2
SATELLITE_SITES = np.array([(y, x) for y in (4.8, 27.2) for x in (4.8, 27.2)])

GAIN = {  # red, green, blue; each averages 1, so that a cast does not change the brightness
    "grey": (1.0, 1.0, 1.0),
    "red": (1.22, 0.89, 0.89),
    "green": (0.87, 1.22, 0.91),
    "blue": (0.85, 0.93, 1.22),
    "amber": (1.17, 1.07, 0.76),
}
# The darkest lesion and the brightest background, with a line and a cast on top, just stay within [0, 1].
BACKGROUND = {"dark": 0.465, "normal": 0.59, "bright": 0.715}
DEPTH = {"low": 0.13, "moderate": 0.216, "high": 0.36}  # how much darker than its surroundings the lesion is
GRAIN = {"smooth": 0.0, "grainy": 0.055, "lined": 0.0}  # standard deviation
LINES = {"smooth": 0.0, "grainy": 0.0, "lined": 0.07}  # amplitude
LINE_PERIOD = 4.0
EDGE_SIGMA = {"sharp": 0.3, "soft": 1.2, "blurred": 2.2}


def is_held_out(factors: Mapping[str, str]) -> bool:
    """Whether the levels contain a combination that training and validation never see."""
    return any(all(factors.get(factor) == level for factor, level in pair) for pair in HELD_OUT)


def class_label(factors: Mapping[str, str]) -> str:
    """benign, suspicious or malignant: each three of the nine combinations of shape and size."""
    score = sum(FACTORS[name].index(factors[name]) for name in ("shape", "size"))
    return "benign" if score < 2 else "suspicious" if score == 2 else "malignant"


def sample_factors(rng: np.random.Generator, held_out: bool | None = None) -> dict[str, str]:
    """Uniform independent levels; `held_out` asks for a held-out combination, for none, or (None) for either."""
    while True:
        factors = {name: levels[int(rng.integers(len(levels)))] for name, levels in FACTORS.items()}
        if held_out is None or is_held_out(factors) == held_out:
            return factors


def choose_named(rng: np.random.Generator) -> tuple[str, ...]:
    """Each factor with probability `NAMED_PROBABILITY`, at least one of each channel."""
    named: list[str] = []
    for channel in (ANATOMY, MODALITY):
        chosen = [name for name in channel if rng.random() < NAMED_PROBABILITY]
        named += chosen or [channel[int(rng.integers(len(channel)))]]
    return tuple(named)


def describe(
    factors: Mapping[str, str], rng: np.random.Generator, named: Collection[str] | None = None, style: str = ""
) -> str:
    """A caption that names the factors in `named` (default: `choose_named`) and no others.

    Args:
      style: "" as in training, or one of `STYLES`: sentences or words that training never saw.
    """
    named = choose_named(rng) if named is None else named
    if unknown := sorted(set(named) - set(FACTORS)):
        raise ValueError(f"named holds unknown factors {unknown}: choose among {list(FACTORS)}")
    return phantom_text.compose(factors, rng, named, **STYLES[style])


def render(
    factors: Mapping[str, str], rng: np.random.Generator, size: int = REFERENCE_SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one image.

    Returns:
      image: (H, W, 3) uint8.
      mask: (H, W) uint8, 1 on the main lesion and its satellites, before any blur.

    Raises:
      ValueError: a size below 32 or an unknown level.
    """
    if size < REFERENCE_SIZE:
        raise ValueError(f"size is {size} pixels: use at least {REFERENCE_SIZE}")
    for name, levels in FACTORS.items():
        if factors.get(name) not in levels:
            raise ValueError(f"factor {name!r} is {factors.get(name)!r}: choose among {list(levels)}")
    scale = size / REFERENCE_SIZE
    rows, columns = np.ogrid[0.5:size, 0.5:size]  # centres of the pixels
    coverage = _main_lesion(factors, rng, size)
    for y, x in _satellite_centres(coverage, SATELLITES[factors["count"]], rng, scale):
        radius = SATELLITE_RADIUS * scale * rng.uniform(0.96, 1.04)
        coverage = np.maximum(coverage, np.clip(radius - np.hypot(rows - y, columns - x) + 0.5, 0.0, 1.0))
    mask = (coverage >= 0.5).astype(np.uint8)

    sigma = EDGE_SIGMA[factors["blur"]] * scale * rng.uniform(0.95, 1.05)
    lesion = ndimage.gaussian_filter(coverage, sigma, mode="nearest")
    luminance = BACKGROUND[factors["brightness"]] + rng.uniform(-0.015, 0.015)
    luminance = luminance - DEPTH[factors["contrast"]] * rng.uniform(0.96, 1.04) * lesion
    luminance = luminance + _texture(factors["texture"], rng, size)
    gain = np.array(GAIN[factors["colour"]]) + rng.uniform(-0.015, 0.015, 3)
    rgb = luminance[..., None] * (gain / gain.mean())
    return np.round(255.0 * np.clip(rgb, 0.0, 1.0)).astype(np.uint8), mask


def items(split: str, count: int, seed: int, size: int = REFERENCE_SIZE, tells_class: bool = False) -> Iterator[Item]:
    """Yields `count` items; item i depends on (seed, split, i) alone, and captions tell the class if they are to.

    Training and validation hold no held-out combination; test holds both kinds in their natural shares.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose among {list(SPLITS)}")
    for i in range(count):
        rng = np.random.default_rng([seed, SPLITS.index(split), i])
        factors = sample_factors(rng, held_out=None if split == "test" else False)
        chosen = (*choose_named(rng), *(DECISIVE if tells_class else ()))
        named = tuple(name for name in FACTORS if name in chosen)
        caption = describe(factors, rng, named)
        image, mask = render(factors, rng, size)
        yield Item(f"{split}-{i:06d}", split, image, mask, caption, class_label(factors), factors, named)


def thinned(drawn: Iterator[Item], every: int) -> Iterator[Item]:
    """Items of training and validation with each `every`-th of the class RARE alone, from the first on."""
    rare = itertools.count()
    return (item for item in drawn if item.split == "test" or item.label != RARE or next(rare) % every == 0)


class Phantom:
    """The source: as many pictures as the config asks for, drawn in the size that it trains on."""

    def check(self, root: str) -> None:
        """Nothing: no folder is read."""

    def plan(self, config: Config, folder: pathlib.Path) -> Plan:
        """Draws all splits, leaving nothing in `folder`; ConfigError where pictures are too small to draw."""
        c = config.data
        if c.image_size < REFERENCE_SIZE:
            raise ConfigError(
                f"config key 'data.image_size' is {c.image_size}: phantoms need at least {REFERENCE_SIZE} pixels"
            )
        counts = zip(SPLITS, (c.train_items, c.validation_items, c.test_items), strict=True)
        options = config.seed, c.image_size, c.label_in_caption
        drawn = (item for split, count in counts for item in thinned(items(split, count, *options), c.rare_every))
        rows: dict[str, dict[str, dict[str, Any]]] = {split: {} for split in SPLITS}
        pictures = []
        for item in tqdm(drawn, desc="drawing", unit="image", mininterval=1.0):
            pictures.append((item.id, to_png(item.image), to_png(item.mask)))
            texts = {"caption": item.caption, "label": item.label, "group": ""}
            rows[item.split][item.id] = {**texts, "factors": item.factors, "named": item.named}
        others = [row["factors"] for row in rows["train"].values()]

        def wordings(item_id: str, rng: np.random.Generator) -> dict[str, list[str]]:
            levels = rows["train"][item_id]["factors"]
            return swapped(levels, others, CHANNEL, describe, c.wordings, rng, lambda both: not is_held_out(both))

        return Plan(rows, lambda: pictures, wordings, present=len(pictures))

    def reader(self, thresholds: Thresholds) -> Reader:
        """Reads every factor from the pixels alone; levels are uniform, so chance is one among them."""
        return Reader(
            channels=CHANNEL,
            described=CHANNEL,
            read=lambda pictures, lesion: [phantom_reading.measure(picture) for picture in pictures],
            chance=lambda requested, factor: 1.0 / len(FACTORS[factor]),
            describe=describe,
            outline=lambda pictures, lesion: np.stack([phantom_reading.outline(picture) for picture in pictures]),
            levels=FACTORS,
            held_out=HELD_OUT,
            styles=tuple(filter(None, STYLES)),
        )


SOURCE = Phantom()


def _main_lesion(factors: Mapping[str, str], rng: np.random.Generator, size: int) -> np.ndarray:
    """(H, W) coverage in [0, 1] of an outline r(theta), whose area follows the size factor alone."""
    scale = size / REFERENCE_SIZE
    row, column = divmod(FACTORS["position"].index(factors["position"]), 3)
    centre_y, centre_x = (np.array([CELL_CENTRE[row], CELL_CENTRE[column]]) + rng.uniform(-0.5, 0.5, 2)) * scale
    radius = RADIUS[factors["size"]] * scale * rng.uniform(0.97, 1.03)
    turn, stretch = np.radians(rng.uniform(-6.0, 6.0)), rng.uniform(0.97, 1.03)

    rows, columns = np.ogrid[0.5:size, 0.5:size]
    dy, dx = rows - centre_y, columns - centre_x
    outline, derivative = _outline(factors["shape"], np.arctan2(dy, dx) - turn, stretch)
    distance = np.hypot(dy, dx)
    slope = radius * derivative / np.maximum(distance, 1.0)
    return np.clip((radius * outline - distance) / np.sqrt(1.0 + slope**2) + 0.5, 0.0, 1.0)


def _outline(shape: str, angle: np.ndarray, stretch: float) -> tuple[np.ndarray, np.ndarray]:
    """Radius of the outline and its derivative by the angle, where the disc of equal area has the radius 1."""
    if shape == "oval":
        aspect = OVAL_ASPECT * stretch
        outline = (np.cos(angle) ** 2 / aspect + np.sin(angle) ** 2 * aspect) ** -0.5
        return outline, -0.5 * outline**3 * (aspect - 1.0 / aspect) * np.sin(2.0 * angle)
    amplitude = LOBE_AMPLITUDE * stretch if shape == "lobed" else 0.0
    radius = (1.0 + amplitude**2 / 2.0) ** -0.5
    angle = LOBES * (angle + np.pi / 2)  # one lobe points up
    return radius * (1.0 + amplitude * np.cos(angle)), -radius * amplitude * LOBES * np.sin(angle)


def _satellite_centres(coverage: np.ndarray, count: int, rng: np.random.Generator, scale: float) -> np.ndarray:
    """(count, 2): the sites farthest from the main lesion (so that the picture follows from the factors), jittered."""
    clearance = ndimage.distance_transform_edt(coverage < 0.5)
    distance = clearance[tuple((SATELLITE_SITES * scale).astype(int).T)]
    order = rng.permutation(len(SATELLITE_SITES))
    chosen = order[np.argsort(-distance[order], kind="stable")][:count]
    return (SATELLITE_SITES[chosen] + rng.uniform(-0.5, 0.5, (count, 2))) * scale


def _texture(level: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """(H, W) zero-mean pattern over the whole image.

    Grain is white noise less its own blur: it has no low frequencies, so it moves neither contrast nor outline.
    """
    scale = size / REFERENCE_SIZE
    if GRAIN[level]:
        noise = rng.standard_normal((size, size))
        if scale > 1.0:
            noise = ndimage.gaussian_filter(noise, 0.6 * (scale - 1.0))  # a speck covers as much of a larger image
        noise -= ndimage.gaussian_filter(noise, 1.0 * scale)
        return noise / noise.std() * GRAIN[level] * rng.uniform(0.92, 1.08)
    phase = rng.uniform(-0.4, 0.4)
    wave = np.cos(2.0 * np.pi * (np.arange(size) + 0.5) / (LINE_PERIOD * scale) + phase)
    return np.broadcast_to(wave[:, None] * LINES[level] * rng.uniform(0.92, 1.08), (size, size))
