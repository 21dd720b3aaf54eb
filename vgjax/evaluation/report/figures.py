"""The drawings of a report: pictures as PNG data, loss curves and accuracy bars as inline SVG by matplotlib.

SVG holds no text but numbers and "step", no references and no colours of its own: its strokes are variables of the
page's stylesheet, so that it follows a dark page.
"""

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from PIL import Image

MAX_SIDE = 320  # px; larger pictures are shrunk, a report is to be mailed and read on a phone
# Stand-in colour of a drawing -> variable of the stylesheet.
INKS = {f"#{i:06x}": name for i, name in enumerate(("paper", "line", "ink", "soft", "c0", "c1", "c2", "c3"), start=1)}
PAPER, LINE, INK, SOFT, *CURVES = INKS
STYLE = {"svg.hashsalt": "vgjax", "svg.fonttype": "none", "path.simplify_threshold": 1.0, "font.size": 10}

Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # name -> (steps, values)
Line = tuple[str, Sequence[float], Sequence[float]]  # label, steps, values


class Png(NamedTuple):
    """An image for an <img>: its address, and the size in px at which it is shown."""

    src: str
    width: int
    height: int
    enlarged: bool


class Chart(NamedTuple):
    """Curves over the same axes: SVG (empty where no value is finite), and each (label, first, last value)."""

    svg: str
    logarithmic: bool
    spans: list[tuple[str, float, float]]
    steps: tuple[float, float]


def number(value: float) -> str:
    """Four significant digits; whole numbers as they are."""
    if not math.isfinite(value):
        return "not a number"
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e12 else f"{value:.4g}"


def percent(share: float) -> str:
    """A share in [0, 1] as whole percent."""
    return f"{100 * share:.0f}\u202f%" if math.isfinite(share) else "not a number"


def factor_colours(count: int) -> list[str]:
    """One colour for each anatomy factor, "#rrggbb"."""
    chosen = matplotlib.colormaps["tab10" if count <= 10 else "turbo"].resampled(count)
    return [to_hex(colour) for colour in chosen(range(count))]


def gray(values: Any) -> np.ndarray:
    """(H, W) mask or probability map to (H, W) uint8: the range [0, 1] becomes [0, 255], bytes beyond 1 stay."""
    values = np.asarray(values)
    if values.dtype == np.uint8 and values.size and values.max() > 1:
        return values
    return np.round(255 * np.clip(np.nan_to_num(values.astype(np.float64)), 0, 1)).astype(np.uint8)


def colour_map(anatomy: np.ndarray) -> np.ndarray:
    """(H, W, K) anatomy map to (H, W, 3) uint8: each pixel in the colour of its strongest factor."""
    colours = [list(bytes.fromhex(text[1:])) for text in factor_colours(anatomy.shape[-1])]
    return np.asarray(colours, np.uint8)[np.argmax(anatomy, axis=-1)]


def anatomy_factors(anatomy: np.ndarray, where: str) -> list[tuple[str, float, np.ndarray]]:
    """(H, W, K) anatomy map to (colour, mean over the area, (H, W) uint8) of each factor.

    Raises:
      ValueError: not the shape of an anatomy map; `where` names its place in the report.
    """
    if np.ndim(anatomy) != 3 or 0 in anatomy.shape:
        raise ValueError(f"report: {where} has shape {np.shape(anatomy)}; pass (H, W, K)")
    maps = np.moveaxis(anatomy, -1, 0)
    return [(colour, float(one.mean()), gray(one)) for colour, one in zip(factor_colours(len(maps)), maps, strict=True)]


def png(image: Any, where: str, shown: int = 128) -> Png:
    """An image (H, W) or (H, W, 3) uint8 that carries its own data; `where` names its place in the report.

    Small images are enlarged by the whole factor that comes nearest to `shown` px, so that pixels stay square.

    Raises:
      ValueError: not uint8, or not the shape of an image.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or 0 in image.shape or image.shape[2:] not in ((), (3,)):
        raise ValueError(f"report: {where} is {image.dtype} {image.shape}; pass uint8 (H, W, 3) or (H, W)")
    height, width = image.shape[:2]
    opened = Image.fromarray(image)
    opened.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BOX)
    stream = io.BytesIO()
    opened.save(stream, "PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    side = max(height, width)
    scale = shown / side if side > 1.5 * shown else max(1, round(shown / side))
    return Png(f"data:image/png;base64,{data}", round(width * scale), round(height * scale), scale > 1)


def charts(curves: Curves) -> dict[str, Chart]:
    """Title -> chart of one stage; "train/x" and "validation/x" share the chart "x"."""
    lines: dict[str, list[Line]] = {}
    for name, (steps, values) in curves.items():
        split, _, title = name.partition("/")
        if split not in ("train", "validation", "test") or not title:
            split, title = "", name
        if len(steps) or len(values):
            lines.setdefault(title, []).append((split, steps, values))
    return {title: chart(title, drawn) for title, drawn in lines.items()}


def chart(title: str, curves: Sequence[Line]) -> Chart:
    """Draws curves over the same axes.

    The value axis is logarithmic where all values are positive and span more than two decades. Values that are not
    finite interrupt the curve.

    Raises:
      ValueError: a curve is empty, its steps and values disagree in length, or a step is not finite.
    """
    for _, steps, values in curves:
        if np.ndim(steps) != 1 or np.shape(steps) != np.shape(values) or not len(steps) or not np.isfinite(steps).all():
            raise ValueError(f"report: loss_curves {title} has steps {np.shape(steps)} and values {np.shape(values)}")
    every = np.concatenate([values for _, _, values in curves]).astype(np.float64)
    ends = [steps[end] for _, steps, _ in curves for end in (0, -1)]
    first, last = float(min(ends)), float(max(ends))
    spans = [(label, float(values[0]), float(values[-1])) for label, _, values in curves]
    finite = every[np.isfinite(every)]
    if not finite.size:
        return Chart("", False, spans, (first, last))
    logarithmic = bool(finite.min() > 0 and finite.max() / finite.min() > 100)
    with matplotlib.style.context(STYLE, after_reset=True):
        figure, axes = _canvas(320, 164, (44, 22, 268, 132))
        if logarithmic:
            axes.set_yscale("log")
        for (_, steps, values), ink in zip(curves, CURVES * len(curves), strict=False):
            again = 2 if len(steps) == 1 else 1  # a lone point is a line of no length, which round caps make a dot
            axes.plot(np.repeat(steps, again), np.repeat(values, again), color=ink, lw=1.75, solid_capstyle="round")
        axes.margins(x=0)
        axes.yaxis.set_major_locator(LogLocator(numticks=6) if logarithmic else MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xticks([first, last] if last > first else [first])
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: number(value))
        axes.grid(axis="y", color=LINE)
        axes.tick_params(left=False, bottom=False, labelcolor=SOFT)
        for label, side in zip(axes.get_xticklabels(), ("left", "right"), strict=False):
            label.set_horizontalalignment(side)
        axes.text(0.5, -0.11, "step", color=SOFT, ha="center", transform=axes.transAxes)
        return Chart(_inline(figure), logarithmic, spans, (first, last))


def accuracy_bar(accuracy: float, chance: float, on_real: float | None, interval: tuple[float, float] | None) -> str:
    """Accuracy on [0, 1] as a bar with its interval, against chance (tick) and the same measure on real pictures."""
    with matplotlib.style.context(STYLE, after_reset=True):
        figure, axes = _canvas(180, 24, (0, 0, 180, 24))
        axes.set(xlim=(0, 180), ylim=(0, 24))
        axes.set_axis_off()
        x = lambda share: 4 + 172 * share
        axes.hlines(12, x(0), x(1), color=LINE, linewidth=8)
        axes.hlines(12, x(0), x(accuracy), color=CURVES[0], linewidth=8, alpha=0.6)
        if interval is not None:
            axes.hlines(12, x(interval[0]), x(interval[1]), color=INK, linewidth=1.5)
        axes.vlines(x(chance), 3, 21, color=CURVES[1], linewidth=2)
        if on_real is not None:
            axes.add_patch(Circle((x(on_real), 12), 4, facecolor=PAPER, edgecolor=INK, linewidth=1.5, zorder=3))
        return _inline(figure)


def _canvas(width: int, height: int, box: tuple[int, int, int, int]) -> tuple[Figure, Any]:
    """A figure and axes without frame; the box is (left, bottom, width, height) in px, a unit of the SVG."""
    figure = Figure(figsize=(width / 72, height / 72))
    left, bottom, across, up = box
    axes = figure.add_axes((left / width, bottom / height, across / width, up / height))
    axes.spines[:].set_visible(False)
    return figure, axes


def _inline(figure: Figure) -> str:
    """The drawing's elements, to stand within an <svg> of the page: no header, identifiers, clipping, or colours."""
    stream, unsaid = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=unsaid)
    drawn = re.search(r"<svg[^>]*>(.*)</svg>", stream.getvalue(), re.DOTALL)[1]  # type: ignore[index]
    unneeded = r'<defs>.*?</defs>|<!--.*?-->| (?:id|clip-path)="[^"]*"| font-family:[^;]*;|\s*\n\s*'
    drawn = re.sub(unneeded, lambda found: " " * found[0].isspace(), drawn, flags=re.DOTALL)
    drawn = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d)\d+", r"\1", tag[0]), drawn)  # a tenth of a px will do
    return re.sub(r"#[0-9a-f]{6}", lambda ink: f"var(--{INKS[ink[0]]})", drawn)
