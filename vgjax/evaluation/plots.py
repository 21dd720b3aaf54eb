"""What a report is drawn with: pictures as data URIs, curves and intervals as inline SVG, one stylesheet.

Every function returns HTML text in which all outside text is escaped. NumPy and Pillow only.
"""

from __future__ import annotations

import base64
import colorsys
import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vgjax.config import ConfigError

MAX_SIDE = 320  # px; larger pictures are shrunk, a report is to be mailed and read on a phone
MAX_POINTS = 300  # of one curve; more cannot be told apart at its width
PALETTE = ("#4e79a7", "#f2a541", "#3f9b8f", "#d1605e", "#8e6bb0", "#a3b84c", "#d98cb3", "#8a6f5a")


def escape(value: object) -> str:
    """Text of `value`, safe inside HTML elements and quoted attributes."""
    return html.escape(str(value), quote=True)


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
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    wheel = (colorsys.hls_to_rgb(index / count, 0.55, 0.5) for index in range(count))
    return ["#" + "".join(f"{round(255 * part):02x}" for part in rgb) for rgb in wheel]


def gray(values: np.ndarray) -> np.ndarray:
    """(H, W) mask or probability map to (H, W) uint8: the range [0, 1] becomes [0, 255], bytes beyond 1 stay."""
    values = np.asarray(values)
    if values.dtype == np.uint8 and values.size and values.max() > 1:
        return values
    return np.round(255 * np.clip(np.nan_to_num(values.astype(np.float64)), 0, 1)).astype(np.uint8)


def colour_map(anatomy: np.ndarray) -> np.ndarray:
    """(H, W, K) anatomy map to (H, W, 3) uint8: each pixel in the colour of its strongest factor."""
    colours = [[int(text[i : i + 2], 16) for i in (1, 3, 5)] for text in factor_colours(anatomy.shape[-1])]
    return np.asarray(colours, np.uint8)[np.argmax(anatomy, axis=-1)]


def picture(image: np.ndarray, alt: str, where: str, shown: int = 128) -> str:
    """An <img> that carries its own PNG.

    Args:
      image: (H, W) or (H, W, 3) uint8.
      alt: what a reader who cannot see it is told.
      where: path of the picture in the report, for the error.
      shown: px; small pictures are enlarged by the whole factor that comes nearest, so that pixels stay square.

    Raises:
      ConfigError: not uint8, or not the shape of a picture.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or 0 in image.shape or image.shape[2:] not in ((), (3,)):
        raise ConfigError(f"report: {where} is {image.dtype} {image.shape}; pass uint8 (H, W, 3) or (H, W).")
    height, width = image.shape[:2]
    opened = Image.fromarray(image)
    if max(height, width) > MAX_SIDE:
        opened.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BOX)
    stream = io.BytesIO()
    opened.save(stream, "PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    scale = max(1, round(shown / max(height, width)))
    if max(height, width) > 1.5 * shown:
        scale = shown / max(height, width)
    small = ' class="pixel"' if scale > 1 else ""
    size = f'width="{round(width * scale)}" height="{round(height * scale)}"'
    return f'<img{small} {size} src="data:image/png;base64,{data}" alt="{escape(alt)}">'


def figure(content: str, words: str) -> str:
    """A figure around finished HTML `content`; `words` are HTML too."""
    return f"<figure>{content}<figcaption>{words}</figcaption></figure>"


def facts_table(caption: str, values: Mapping[str, Any], folded: bool = True) -> str:
    """A table name -> value, folded away under its caption or open."""
    if not values:
        return f'<p class="empty">{caption}: not recorded.</p>'
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{_fact(value)}</td></tr>' for name, value in values.items()
    )
    table = f'<table class="facts-table"><caption>{caption}</caption><tbody>{rows}</tbody></table>'
    return f"<details><summary>{caption} ({len(values)})</summary>{table}</details>" if folded else table


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{escape(name)} {_fact(part)}" for name, part in value.items())
    if isinstance(value, float | np.floating):
        return number(float(value))
    return f"<code>{escape(value)}</code>" if isinstance(value, str) and len(value) > 30 else escape(value)


def factor_list(factors: Mapping[str, tuple[str, str]]) -> str:
    """A list of factors, each (requested, measured) level marked: as asked, not as asked, or not to be compared."""
    items = []
    for name, (requested, measured) in factors.items():
        name, asked, seen = escape(name), escape(requested), escape(measured)
        if requested in ("", None):
            items.append(f"<li><b>·</b> {name}: {seen}, not said</li>")
        elif measured in ("", None):
            items.append(f"<li><b>·</b> {name}: {asked}, not measured</li>")
        elif str(requested) == str(measured):
            items.append(f'<li class="hit"><b>✓</b> {name}: {seen}</li>')
        else:
            items.append(f'<li class="miss"><b>✗</b> {name}: {seen}, asked {asked}</li>')
    return f'<ul class="factors">{"".join(items)}</ul>' if items else ""


def curve_chart(title: str, curves: Sequence[tuple[str, Sequence[float], Sequence[float]]]) -> str:
    """A figure with one or more curves (label, steps, values) over the same axes.

    The value axis is logarithmic where all values are positive and span more than two decades. Values that are
    not finite interrupt the curve.
    """
    drawn = [(label, *_thinned(steps, values, f"loss_curves {title}")) for label, steps, values in curves]
    steps = np.concatenate([curve[1] for curve in drawn])
    values = np.concatenate([curve[2] for curve in drawn])
    shown = values[np.isfinite(values)]
    if not shown.size:
        return f'<figure class="chart"><figcaption><b>{escape(title)}</b> no finite value</figcaption></figure>'
    logarithmic = bool(shown.min() > 0 and shown.max() / shown.min() > 100)
    ticks = _ticks(float(shown.min()), float(shown.max()), logarithmic)
    low, high = min(ticks[0], shown.min()), max(ticks[-1], shown.max())
    first, last = float(steps.min()), float(steps.max())

    def x(step: float) -> float:
        return 44 + 268 * (step - first) / ((last - first) or 1)

    def y(value: float) -> float:
        share = math.log(value / low) / math.log(high / low) if logarithmic else (value - low) / (high - low)
        return 142 - 132 * share

    parts = []
    for tick in ticks:
        parts.append(f'<path class="grid" d="M44 {y(tick):.1f}H312"/>')
        parts.append(f'<text x="38" y="{y(tick) + 3.5:.1f}" text-anchor="end">{number(tick)}</text>')
    for step, anchor in ((first, "start"), (last, "end")):
        parts.append(f'<text x="{x(step):.1f}" y="159" text-anchor="{anchor}">{number(step)}</text>')
    parts.append('<text x="178" y="159" text-anchor="middle">step</text>')
    said, key = [], []
    for index, (label, curve_steps, curve_values) in enumerate(drawn):
        path = _path(
            [(x(s), y(v) if math.isfinite(v) else None) for s, v in zip(curve_steps, curve_values, strict=True)]
        )
        parts.append(f'<path class="curve c{index % 4}" d="{path}"/>')
        span = f"{number(curve_values[0])} to {number(curve_values[-1])}"
        said.append(f"{label} {span}".strip())
        swatch = f'<span class="key c{index % 4}"></span>' if len(curves) > 1 else ""
        key.append(f"<span>{swatch}{escape(label)} {span}</span>")
    scale = " <span>log scale</span>" if logarithmic else ""
    spoken = escape(f"{title}: {'; '.join(said)}, over steps {number(first)} to {number(last)}")
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b> {" ".join(key)}{scale}</figcaption>'
        f'<svg viewBox="0 0 320 164" role="img" aria-label="{spoken}">{"".join(parts)}</svg></figure>'
    )


def _thinned(steps: Sequence[float], values: Sequence[float], where: str) -> tuple[np.ndarray, np.ndarray]:
    """At most `MAX_POINTS` points: lowest and highest of each bucket, so that spikes stay, and both ends."""
    x, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    if x.ndim != 1 or x.shape != y.shape or not x.size or not np.isfinite(x).all():
        raise ConfigError(f"report: {where} has steps {x.shape} and values {y.shape}; pass equal, finite 1-D.")
    if x.size <= MAX_POINTS:
        return x, y
    kept = {0, x.size - 1}
    for bucket in np.array_split(np.arange(x.size), MAX_POINTS // 2 - 1):
        finite = bucket[np.isfinite(y[bucket])]
        # An unmeasured stretch keeps one point, at which the curve breaks.
        ends = (finite[y[finite].argmin()], finite[y[finite].argmax()]) if finite.size else (bucket[0],)
        kept |= {int(index) for index in ends}
    chosen = sorted(kept)
    return x[chosen], y[chosen]


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    if logarithmic:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        return [10.0**decade for decade in decades[:: math.ceil(len(decades) / 6)]]
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough * 0.999)
    return [step * index for index in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _path(points: Sequence[tuple[float, float | None]]) -> str:
    text, pen_down = [], False
    for x, y in points:
        if y is not None:
            text.append(f"{'L' if pen_down else 'M'}{x:.1f} {y:.1f}")
        pen_down = y is not None
    # A lone point is drawn as a dot: a zero-length stroke with round caps.
    return "".join(text) + ("h0" if len(text) == 1 else "")


def accuracy_bar(
    accuracy: float, chance: float, on_real: float | None, interval: tuple[float, float] | None, spoken: str
) -> str:
    """Accuracy on [0, 1] as a bar with its interval, against chance (tick) and the same measure on real pictures."""

    def x(value: float) -> str:
        return f"{4 + 172 * min(max(value, 0.0), 1.0):.1f}"

    parts = ['<path class="track" d="M4 12H176"/>', f'<path class="bar" d="M4 12H{x(accuracy)}"/>']
    if interval is not None:
        parts.append(f'<path class="whisker" d="M{x(interval[0])} 12H{x(interval[1])}"/>')
    parts.append(f'<path class="chance" d="M{x(chance)} 3V21"/>')
    if on_real is not None:
        parts.append(f'<circle class="real" cx="{x(on_real)}" cy="12" r="4"/>')
    return f'<svg class="accuracy" viewBox="0 0 180 24" role="img" aria-label="{escape(spoken)}">{"".join(parts)}</svg>'


STYLE = """
:root{color-scheme:light dark;--paper:#fbfaf7;--sheet:#fff;--ink:#22282b;--soft:#5d676b;--line:#e2dfd7;--accent:#1f6f78;
--wash:#e9f1f0;--good:#2c6e49;--part:#8a5a00;--bad:#a33a2c;--c0:#1f6f78;--c1:#c7702e;--c2:#6a5aa8;--c3:#8a8f3a}
@media(prefers-color-scheme:dark){:root{--paper:#14181a;--sheet:#1b2023;--ink:#e4e7e6;--soft:#9ca8aa;--line:#30383b;
--accent:#7cc4c6;--wash:#1d2b2d;--good:#86cfa4;--part:#e0b45f;--bad:#f0998b;--c0:#7cc4c6;--c1:#e8a066;--c2:#b3a6ea;--c3:#c5ca74}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
header,main,footer{max-width:68rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:3rem}
h1,h2{font-family:ui-serif,Georgia,"Times New Roman",serif;font-weight:500;line-height:1.2;text-wrap:balance}
h1{font-size:clamp(1.8rem,5vw,2.7rem);margin:.2rem 0 .6rem;overflow-wrap:anywhere}
h2{font-size:1.5rem;margin:0 0 .4rem}
h3{font-size:1rem;margin:1.6rem 0 .6rem}
p{max-width:44rem;margin:.4rem 0 1rem}
a{color:var(--accent);text-underline-offset:.2em}
code{font:.875em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.kind,.lead,.facts,figcaption,caption,.empty{color:var(--soft)}
.kind{margin:0;font-size:.875rem}
.facts{font-size:.9rem;overflow-wrap:anywhere}
nav ul{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;list-style:none;margin:0;padding:.8rem 0;font-size:.9rem}
nav{border-block:1px solid var(--line);margin-top:1.8rem}
section{padding:2.6rem 0 0;scroll-margin-top:1rem}
footer{padding-block:3rem;color:var(--soft);font-size:.85rem}
.headline{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:1.2rem 2rem;margin:1.8rem 0 .8rem}
.headline div{display:flex;flex-direction:column-reverse;justify-content:flex-end}
.headline dt{color:var(--soft);font-size:.875rem;line-height:1.4}
.headline dd{margin:0;font:500 1.7rem/1.2 ui-serif,Georgia,serif;font-variant-numeric:tabular-nums}
.headline div:first-child dd{font-size:3.2rem;line-height:1;color:var(--accent)}
.headline div:not(:first-child){padding-top:1.16rem}
img,svg{display:block;max-width:100%;height:auto}
img{border-radius:3px;background:var(--wash)}
.pixel{image-rendering:pixelated}
figure{margin:0}
figcaption{font-size:.85rem;line-height:1.4;margin-top:.4rem;overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(12.2rem,1fr));gap:1.8rem 1.1rem}
.card blockquote{margin:.6rem 0 .5rem;line-height:1.45;overflow-wrap:anywhere}
.factors{list-style:none;margin:0;padding:0;font-size:.85rem;line-height:1.5;color:var(--soft)}
.hit b{color:var(--good)}.miss b{color:var(--bad)}
.factors b{display:inline-block;width:1em;font-weight:600}
.factors li{padding-left:1em;text-indent:-1em}.factors b{text-indent:0}
.row{display:flex;flex-wrap:wrap;gap:.7rem;align-items:flex-start}
.pairs{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(19rem,100%),1fr));gap:1.8rem 1.6rem}
.pair .row{margin-bottom:.5rem}
.pair p{margin:0;line-height:1.45;overflow-wrap:anywhere}
.maps{border-top:1px solid var(--line);padding:1rem 0}
.maps .row+.row{margin-top:.8rem}
.key{display:inline-block;width:.7em;height:.7em;border-radius:2px;margin-right:.35em}
.key.c0{background:var(--c0)}.key.c1{background:var(--c1)}.key.c2{background:var(--c2)}.key.c3{background:var(--c3)}
.absent{display:grid;place-items:center;width:128px;height:128px;border:1px dashed var(--line);border-radius:3px;
color:var(--soft);font-size:.8rem;text-align:center}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;font-size:.85rem;padding-bottom:.6rem}
th,td{text-align:left;vertical-align:middle;padding:.5rem 1rem .5rem 0;border-bottom:1px solid var(--line)}
thead th{color:var(--soft);font-weight:500;vertical-align:bottom}
tbody th{font-weight:500}
.n{text-align:right}
.facts-table td,.facts-table th{overflow-wrap:anywhere}
.facts-table th{width:15rem;min-width:8rem;font-weight:400;color:var(--soft);vertical-align:top}
.facts-table{width:100%}
.grid-table th,.grid-table td{border:0;padding:.25rem}
.grid-table th{max-width:11rem;min-width:7rem;font-size:.8rem;line-height:1.35;font-weight:400;overflow-wrap:anywhere}
.grid-table tbody th{position:sticky;left:0;background:var(--paper);padding-right:.8rem}
.grid-table img{max-width:none}
.follows{color:var(--good)}.partly{color:var(--part)}.weakly,.near-chance,.below-chance,.not-judged{color:var(--bad)}
td.verdict{font-weight:600;white-space:nowrap}
.accuracy{width:180px;max-width:none}
.track,.bar,.whisker,.chance{fill:none}
.track{stroke:var(--line);stroke-width:8}.bar{stroke:var(--c0);stroke-width:8;opacity:.75}
.whisker{stroke:var(--ink);stroke-width:1.5}.chance{stroke:var(--c1);stroke-width:2}
.real{fill:var(--paper);stroke:var(--ink);stroke-width:1.5}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(19rem,100%),1fr));gap:1.4rem}
.chart figcaption{margin:0 0 .3rem}.chart b{color:var(--ink);font-weight:600;margin-right:.4rem}
.chart span+span{margin-left:.6rem}.chart .key+span{margin:0}
.chart text{fill:var(--soft);font-size:10px}.grid{stroke:var(--line);fill:none}
.curve{fill:none;stroke-width:1.75;stroke-linejoin:round;stroke-linecap:round}
.curve.c0{stroke:var(--c0)}.curve.c1{stroke:var(--c1)}.curve.c2{stroke:var(--c2)}.curve.c3{stroke:var(--c3)}
.notes li{max-width:44rem;margin:.35rem 0;overflow-wrap:anywhere}
details summary{cursor:pointer;color:var(--accent);padding:.4rem 0}
@media print{details{display:block}section{break-inside:avoid-page}}
@media(max-width:34rem){header{padding-top:1.6rem}
section{padding-top:2rem}.cards{grid-template-columns:1fr 1fr;gap:1.2rem 1rem}
.card blockquote{font-size:.9rem}.grid-table th{max-width:6.5rem;min-width:5rem}.headline{grid-template-columns:1fr 1fr}
.headline div:first-child{grid-column:1/-1}.headline div:not(:first-child){padding-top:0}}
"""
