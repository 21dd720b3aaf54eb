"""Reads every phantom factor back from the pixels alone, by classical image analysis.

Nothing here knows how a phantom is drawn: the table of thresholds below is all it shares with the data set. Lengths
are pixels of a 32x32 image, to which every image is brought first; intensities are in [0, 1]. The order of work is
background -> lesion and satellites -> edge -> shape -> size and contrast. Thresholds lie midway between what
neighbouring levels typically read, on a logarithmic scale for areas, depths and slopes: a drawing may be off by a good
part of a level before its reading changes.
"""

import functools
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from skimage import segmentation, transform

NAMES = ("position", "size", "shape", "count", "colour", "brightness", "contrast", "texture", "blur")
SIDE = 32
POSITION_ROWS, POSITION_COLUMNS = ("upper", "middle", "lower"), ("left", "centre", "right")
POSITION_LIMITS = (13.375, 18.625)  # between the cells, along either axis
# (least value, level): the level of the last row whose least value is reached; below the first: unreadable.
AREA_LEVELS = ((33.0, "small"), (84.0, "medium"), (156.0, "large"), (390.0, None))
BRIGHTNESS_LEVELS = ((0.3, "dark"), (0.526, "normal"), (0.651, "bright"), (0.95, None))
CONTRAST_LEVELS = ((0.06, "low"), (0.168, "moderate"), (0.28, "high"), (0.7, None))
BLUR_LEVELS = ((0.0, "blurred"), (0.183, "soft"), (0.267, "sharp"))
COUNT_LEVELS = {0: "none", 1: "one", 2: "two"}
# log(red / green), log(blue / green)
COLOUR_LEVELS = {
    "grey": (0.0, 0.0),
    "red": (0.315, 0.0),
    "green": (-0.338, -0.293),
    "blue": (-0.090, 0.271),
    "amber": (0.089, -0.342),
}
COLOUR_REACH = 0.22  # farther than this from every level: unreadable
LINE_PERIOD = 4.0
LINE_WINDOW = 4.0
LINE_AMPLITUDE = 0.035
GRAIN_DEVIATION = 0.025  # of what a Gaussian of one pixel takes away
OVAL_MOMENT, LOBED_MOMENT = 0.34, 0.40  # of a nominal lesion, relative to its mass and radius
LEAST_MOMENT = 0.5  # of the nominal
EDGE_BAND = (0.2, 0.8)  # share of the depth: between the two lies the border of a lesion
BAND_SLOPE = 0.351  # mean slope of a blurred step within the band, times the width of the blur
OWN_VARIANCE = 1.05  # of the smoothing and differencing by which slopes are found
CORE_LOSS = {"round": 7.0, "oval": 12.0, "lobed": 15.5}  # blur drains a core by this times (width / radius)^4
SATELLITE_AREA = 32.0
LEAST_SATELLITE = 0.3  # of the mass of a nominal one
OUTLINE_SIGMA = 0.5  # against grain
FADING = 3.9  # pixels: as far as a blurred lesion reaches beyond its core
LEAST_DEPTH = 0.06

_Y, _X = np.mgrid[:SIDE, :SIDE] + 0.5
_CARRIER = np.exp(2j * np.pi * _Y / LINE_PERIOD)
_blurred = functools.partial(ndimage.gaussian_filter, mode="nearest")


class Surroundings(NamedTuple):
    """What is left of an image once lesion and scan lines are taken away."""

    level: float  # luminance of the background
    line_amplitude: float  # of horizontal lines of period `LINE_PERIOD`
    depth_map: np.ndarray  # (H, W) background less luminance, without the lines: positive in a lesion
    clear: np.ndarray  # (H, W) bool, pixels away from any lesion


class Lesion(NamedTuple):
    """The main lesion."""

    y: float  # of the centroid, like x
    x: float
    depth: float  # how much darker than its surroundings its core is
    area: float  # its mass divided by its depth
    radius: float  # of the disc of that area
    region: np.ndarray  # (H, W) bool, the lesion and its fading border, without the satellites
    satellites: int  # number of further blobs


def measure(image: np.ndarray) -> dict[str, str | None]:
    """The level of every factor, None where the image does not tell.

    Args:
      image: (H, W, 3) uint8, or float in [-1, 1].

    Raises:
      ValueError: another shape or type.
    """
    rgb = _reference_image(image)
    luminance = rgb.mean(axis=-1)
    around = _surroundings(luminance)
    levels: dict[str, str | None] = dict.fromkeys(NAMES)
    levels["colour"] = _colour(rgb)
    levels["brightness"] = _level(around.level, BRIGHTNESS_LEVELS)
    levels["texture"] = _texture(around)
    lesion = _find_lesion(around)
    if lesion is None:
        return levels
    edge = _edge_slope(around, lesion)
    shape = _shape(around, lesion, edge)
    core = _core(lesion, edge, shape)
    row, column = (int(np.searchsorted(POSITION_LIMITS, v)) for v in (lesion.y, lesion.x))
    return levels | {
        "position": f"{POSITION_ROWS[row]} {POSITION_COLUMNS[column]}".replace("middle centre", "centre"),
        "size": _level(lesion.area * core, AREA_LEVELS),
        "shape": shape,
        "count": COUNT_LEVELS.get(lesion.satellites),
        "contrast": _level(lesion.depth / core, CONTRAST_LEVELS),
        "blur": _level(edge, BLUR_LEVELS),
    }


def outline(image: np.ndarray) -> np.ndarray:
    """Where the main lesion is at least half as dark as its core, (SIDE, SIDE) bool; empty where there is none."""
    around = _surroundings(_reference_image(image).mean(axis=-1))
    lesion = _find_lesion(around)
    if lesion is None:
        return np.zeros((SIDE, SIDE), bool)
    return lesion.region & (_blurred(around.depth_map, OUTLINE_SIGMA) > 0.5 * lesion.depth)


def _reference_image(image: np.ndarray) -> np.ndarray:
    """(SIDE, SIDE, 3) float in [0, 1]."""
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[-1] != 3 or min(image.shape) == 0:
        raise ValueError(f"the image has shape {image.shape}: give (height, width, 3)")
    if image.dtype == np.uint8:
        rgb = image / 255.0
    elif np.issubdtype(image.dtype, np.floating):
        rgb = np.clip(np.nan_to_num(image.astype(np.float64)) / 2.0 + 0.5, 0.0, 1.0)
    else:
        raise ValueError(f"the image is {image.dtype}: give uint8, or float in [-1, 1]")
    height, width = rgb.shape[:2]
    if height % SIDE == 0 and width % SIDE == 0:
        return transform.downscale_local_mean(rgb, (height // SIDE, width // SIDE, 1))
    return transform.resize(rgb, (SIDE, SIDE), anti_aliasing=True)


def _surroundings(luminance: np.ndarray) -> Surroundings:
    """Alternates between the lines and level of the background and where the background is.

    Lines are demodulated in a window, so that they may waver.
    """
    clear = np.ones_like(luminance, dtype=bool)
    level = float(np.median(luminance))
    for _ in range(2):
        demodulated = np.where(clear, luminance - level, 0.0) / _CARRIER
        amplitude = 2.0 * _blurred(demodulated, LINE_WINDOW) / (_blurred(clear.astype(float), LINE_WINDOW) + 0.01)
        plain = luminance - (amplitude * _CARRIER).real
        level = float(np.median(plain[clear]))
        smooth_depth = level - _blurred(plain, 1.0)
        peak = max(np.partition(smooth_depth.ravel(), -6)[-6:].mean(), LEAST_DEPTH)
        shadow = ndimage.binary_dilation(smooth_depth > 0.25 * peak, iterations=2)
        # A lesion never fills the image; if it seems to, the level is off and all pixels have to be used again.
        clear = ~shadow if shadow.mean() < 0.8 else np.ones_like(shadow)
    level = float(np.median(plain[clear]))
    return Surroundings(level, float(np.abs(amplitude[clear]).mean()), level - plain, clear)


def _find_lesion(around: Surroundings) -> Lesion | None:
    """The heaviest dark blob and the number of lesser ones, or None if nothing is dark."""
    depth_map, smooth = around.depth_map, _blurred(around.depth_map, 1.0)
    peak = np.partition(smooth.ravel(), -6)[-6:].mean()
    if peak < LEAST_DEPTH:
        return None
    blobs, number = ndimage.label(smooth > 0.35 * peak)
    owner = segmentation.expand_labels(blobs, FADING)  # each blob with its fading border
    masses = ndimage.sum_labels(depth_map, owner, range(1, number + 1))
    main = 1 + int(np.argmax(masses))
    region = owner == main
    inside = ndimage.distance_transform_edt(np.pad((blobs == main) & (smooth > 0.5 * peak), 1))[1:-1, 1:-1]
    depth = float(depth_map[inside >= 0.6 * inside.max()].mean())
    mass = float(depth_map[region].sum())
    if depth < LEAST_DEPTH or mass <= 0.0:
        return None
    least = LEAST_SATELLITE * SATELLITE_AREA * depth
    y, x = (float((depth_map * axis)[region].sum() / mass) for axis in (_Y, _X))
    area, satellites = mass / depth, int((masses >= least).sum()) - int(masses.max() >= least)
    return Lesion(y, x, depth, area, float(np.sqrt(area / np.pi)), region, satellites)


def _shape(around: Surroundings, lesion: Lesion, edge: float) -> str:
    """From the moments that a horizontal oval and three lobes, one of them upward, have and a disc has not.

    Re z^2 and Im z^3 are harmonic, so no round blur changes their integrals over the lesion.
    """
    dy, dx = _Y - lesion.y, _X - lesion.x
    radius = lesion.radius * np.sqrt(_core(lesion, edge, "oval"))
    weight = np.where(lesion.region & (np.hypot(dy, dx) < 2.2 * radius + 1.0), around.depth_map, 0.0)
    weight /= max(weight.sum(), 1e-6)
    moments = {
        "oval": (weight * (dx**2 - dy**2)).sum() / radius**2 / OVAL_MOMENT,
        "lobed": (weight * (3.0 * dx**2 * dy - dy**3)).sum() / radius**3 / LOBED_MOMENT,
    }
    strongest = max(moments, key=lambda name: moments[name])
    return strongest if moments[strongest] > LEAST_MOMENT else "round"


def _core(lesion: Lesion, edge: float, shape: str) -> float:
    """Share of the depth that is left in the core of a lesion after blur, told from the slope of its edge."""
    variance = float(np.clip((BAND_SLOPE / max(edge, 1e-3)) ** 2 - OWN_VARIANCE, 0.0, 6.0))  # of the blur, pixels^2
    return 1.0 - min(CORE_LOSS[shape] * (variance / lesion.radius**2) ** 2, 0.4)


def _edge_slope(around: Surroundings, lesion: Lesion) -> float:
    """Mean slope across the border, as a share of the depth of the lesion, a pixel.

    The slope is taken along a coarser gradient; what grain adds to either is known from the background.
    """
    fine, coarse = _blurred(around.depth_map, 0.85), _blurred(around.depth_map, 1.2)
    (fine_y, fine_x), (coarse_y, coarse_x) = np.gradient(fine), np.gradient(coarse)
    along, square = fine_y * coarse_y + fine_x * coarse_x, coarse_y**2 + coarse_x**2
    along, square = (field - field[around.clear].mean() for field in (along, square))
    border = lesion.region & (coarse > EDGE_BAND[0] * lesion.depth) & (coarse < EDGE_BAND[1] * lesion.depth)
    steepness = np.sqrt(np.maximum(square[border], 0.0)).sum()
    return float(along[border].sum() / steepness) / lesion.depth if steepness > 0.0 else 0.0


def _texture(around: Surroundings) -> str:
    if around.line_amplitude > LINE_AMPLITUDE:
        return "lined"
    fine = around.depth_map - _blurred(around.depth_map, 1.0)
    return "grainy" if fine[around.clear].std() > GRAIN_DEVIATION else "smooth"


def _colour(rgb: np.ndarray) -> str | None:
    red, green, blue = np.maximum(rgb.mean(axis=(0, 1)), 1e-3)
    point = np.log([red / green, blue / green])
    distance = {name: float(np.hypot(*(point - centre))) for name, centre in COLOUR_LEVELS.items()}
    best = min(distance, key=lambda name: distance[name])
    return best if distance[best] < COLOUR_REACH else None


def _level(value: float, table: tuple[tuple[float, str | None], ...]) -> str | None:
    return next((name for least, name in reversed(table) if value >= least), None)
