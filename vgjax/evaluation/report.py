"""The report of a run: one HTML file that opens anywhere, without network, scripts or other files.

`Report` is plain data; `write_report` turns it into sections in the order in which a newcomer reads: what was run
and how well it does, pictures, control, comparison with real pictures, stage 1, losses, what fell short, and where
the numbers come from. A section without data says that it was not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vgjax.config import ConfigError
from vgjax.evaluation.metrics import write_text_atomic
from vgjax.evaluation.plots import (
    STYLE,
    accuracy_bar,
    colour_map,
    curve_chart,
    escape,
    factor_colours,
    factor_list,
    facts_table,
    figure,
    gray,
    percent,
    picture,
)

ABSENT = '<p class="empty">Not measured in this run.</p>'
# Nothing may be fetched or run, even if a caption found a way past the escaping.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
SECTIONS = {
    "pictures": "Pictures that follow texts",
    "swap": "One channel at a time",
    "control": "Control, factor by factor",
    "pairs": "Real and generated",
    "stage1": "What stage 1 sees",
    "losses": "Losses",
    "notes": "What is off or fell short",
    "provenance": "Where this comes from",
}


class Pair(NamedTuple):
    """A text, its real picture if there is one, and the picture generated from it.

    Attributes:
      caption: the text that was given.
      real: (H, W, 3) uint8 or None.
      generated: (H, W, 3) uint8.
      factors: name -> (requested, measured) level; requested "" where the text left it unsaid.
    """

    caption: str
    real: np.ndarray | None
    generated: np.ndarray
    factors: Mapping[str, tuple[str, str]]


class FactorMaps(NamedTuple):
    """What stage 1 makes of one image.

    Attributes:
      image: (H, W, 3) uint8.
      mask: (H, W) true lesion, 0/1 or 0/255; None if unknown.
      segmentation: (H, W) lesion probability in [0, 1]; None if not predicted.
      anatomy: (H, W, K) float, one map an anatomy factor.
      reconstruction: (H, W, 3) uint8.
    """

    image: np.ndarray
    mask: np.ndarray | None
    segmentation: np.ndarray | None
    anatomy: np.ndarray
    reconstruction: np.ndarray


@dataclass(frozen=True)
class SwapGrid:
    """Pictures generated from the anatomy of one text and the modality of another.

    Attributes:
      row_texts: R texts that gave the anatomy.
      column_texts: C texts that gave the modality.
      images: (R, C, H, W, 3) uint8.
    """

    row_texts: Sequence[str]
    column_texts: Sequence[str]
    images: Sequence[Sequence[np.ndarray]] | np.ndarray


@dataclass(frozen=True)
class ControlRow:
    """How often the level that a text asked for is the level measured in the generated picture.

    Attributes:
      factor: name of the factor.
      channel: "anatomy" or "modality".
      accuracy: share in [0, 1] of generated pictures that show the requested level.
      chance: accuracy of guessing, in [0, 1).
      on_real: accuracy of the same measure on real pictures: what can be reached at best; None if unknown.
      n: pictures measured.
      interval: (low, high) of the accuracy, None if not computed.
    """

    factor: str
    channel: str
    accuracy: float
    chance: float
    on_real: float | None
    n: int
    interval: tuple[float, float] | None = None

    @property
    def score(self) -> float:
        """Accuracy rescaled so that chance is 0 and perfect is 1."""
        return (self.accuracy - self.chance) / (1 - self.chance)

    @property
    def verdict(self) -> str:
        """One of "not judged", "below chance", "near chance", "weakly", "partly", "follows".

        "not judged": the measure itself gets less than halfway from chance to perfect on real pictures.
        "near chance": the score is under 0.1, or the interval reaches down to chance.
        """
        if self.on_real is not None and (self.on_real - self.chance) / (1 - self.chance) < 0.5:
            return "not judged"
        if self.interval is not None and self.interval[1] < self.chance:
            return "below chance"
        if self.score < 0.1 or (self.interval is not None and self.interval[0] <= self.chance):
            return "near chance"
        return "follows" if self.score >= 0.8 else "partly" if self.score >= 0.4 else "weakly"


@dataclass(frozen=True)
class Report:
    """Everything a report shows; whatever stays empty is reported as not measured.

    Attributes:
      title: of the run.
      config: flat name -> value.
      provenance: command, commit, hardware, seed, versions (a dict), started, finished, device_count, ...
      metrics: flat name -> number; "control/accuracy_mean" is the headline.
      notes: what is off and what fell short, one sentence each.
      loss_curves: stage -> metric -> (steps, values); "train/x" and "validation/x" share a chart.
    """

    title: str
    config: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    loss_curves: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]] = field(default_factory=dict)
    real_vs_generated: Sequence[Pair] = ()
    factor_maps: Sequence[FactorMaps] = ()
    swap_grid: SwapGrid | None = None
    control: Sequence[ControlRow] = ()


def write_report(path: Path, report: Report) -> None:
    """Writes `report` as one self-contained HTML file; an older file is replaced in one step.

    Raises:
      ConfigError: a picture is not uint8, a curve's steps and values disagree, a grid's texts and pictures do not
        match, or a control row is out of range.
    """
    write_text_atomic(Path(path), render(report))


def render(report: Report) -> str:
    """The HTML text of `report`."""
    bodies = {
        "pictures": _pictures(report.real_vs_generated),
        "swap": _swap_grid(report.swap_grid),
        "control": _control_table(report.control),
        "pairs": _pairs(report.real_vs_generated),
        "stage1": "".join(_factor_maps(index, item) for index, item in enumerate(report.factor_maps)),
        "losses": _losses(report.loss_curves),
        "notes": _notes(report.notes),
        "provenance": _provenance(report),
    }
    sections = "".join(
        f'<section id="{name}"><h2>{SECTIONS[name]}</h2>{body or ABSENT}</section>' for name, body in bodies.items()
    )
    links = "".join(f'<li><a href="#{name}">{heading}</a></li>' for name, heading in SECTIONS.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{STYLE}</style></head><body>"
        f'<header><p class="kind">vgjax run report</p><h1>{escape(report.title)}</h1>{_headline(report)}'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header><main>{sections}</main>'
        "<footer>Research software. Generated pictures are not for diagnosis.</footer></body></html>\n"
    )


def _headline(report: Report) -> str:
    """What was run, in one line, and the mean control accuracy with what it has to be read against."""
    told = report.provenance
    parts = [f"{label}{escape(told[key])}" for key, label in (("hardware", ""), ("seed", "seed ")) if key in told]
    if "commit" in told:
        # Twelve digits find a commit; "-dirty" has to stay visible.
        commit, dirty, _ = str(told["commit"]).partition("-dirty")
        parts.append(f"commit <code>{escape(commit[:12] + dirty)}</code>")
    if "started" in told:
        parts.append(f"started {escape(told['started'])}")
    if "finished" in told:
        parts.append(f"finished {escape(told['finished'])}")
    facts = f'<p class="facts">{" · ".join(parts)}</p>' if parts else ""
    rows = report.control
    mean = report.metrics.get("control/accuracy_mean", float(np.mean([row.accuracy for row in rows])) if rows else None)
    if mean is None:
        return facts + '<p class="empty">Mean control accuracy: not measured in this run.</p>' + _notes_link(report)
    tiles = [("mean control accuracy", percent(mean))]
    if rows:
        counts = sorted({row.n for row in rows})
        spread = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
        real = [row.on_real for row in rows if row.on_real is not None]
        tiles += [("by guessing", percent(float(np.mean([row.chance for row in rows]))))]
        tiles += [("same measure on real pictures", percent(float(np.mean(real))))] if real else []
        tiles += [("pictures measured for each factor (n)", spread)]
        followed = sum(row.verdict in ("follows", "partly") for row in rows)
        tiles += [("factors that follow at least partly", f"{followed} of {len(rows)}")]
    body = "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in tiles)
    return facts + f'<dl class="headline">{body}</dl>' + _notes_link(report)


def _notes_link(report: Report) -> str:
    count = len(report.notes)
    if not count:
        return ""
    said = f"{count} {'note' if count == 1 else 'notes'}"
    return f'<p class="facts"><a href="#notes">{said}</a> on what is off or fell short.</p>'


def _pictures(pairs: Sequence[Pair]) -> str:
    if not pairs:
        return ""
    cards = []
    for index, (caption, _, generated, factors) in enumerate(pairs):
        image = picture(generated, f"Generated from: {caption}", f"real_vs_generated[{index}].generated", shown=192)
        cards.append(
            f'<article class="card">{image}<blockquote>{escape(caption)}</blockquote>{factor_list(factors)}</article>'
        )
    return (
        '<p class="lead">Each picture was generated from the text under it. The list says what was then measured in '
        f'the picture: ✓ as asked, ✗ not as asked, · cannot be compared.</p><div class="cards">{"".join(cards)}</div>'
    )


def _swap_grid(grid: SwapGrid | None) -> str:
    if grid is None or not len(grid.row_texts) or not len(grid.column_texts):
        return ""
    if len(grid.images) != len(grid.row_texts) or any(len(row) != len(grid.column_texts) for row in grid.images):
        raise ConfigError(
            "report: swap_grid.images must hold one row for each row text, one image for each column text."
        )
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in grid.column_texts)
    body = ""
    for r, anatomy in enumerate(grid.row_texts):
        cells = ""
        for c, modality in enumerate(grid.column_texts):
            alt = f"Anatomy from: {anatomy}. Modality from: {modality}."
            cells += f"<td>{picture(grid.images[r][c], alt, f'swap_grid.images[{r}][{c}]')}</td>"
        body += f'<tr><th scope="row">{escape(anatomy)}</th>{cells}</tr>'
    return (
        '<p class="lead">Anatomy comes from the text of the row, modality from the text of the column. Along a row '
        "only the look should change; down a column only the structure.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Swap grid"><table class="grid-table">'
        "<caption>Rows: anatomy text. Columns: modality text.</caption>"
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _control_table(rows: Sequence[ControlRow]) -> str:
    if not rows:
        return ""
    left, right = ("factor", "verdict", "channel"), ("interval", "chance", "real", "above chance", "n")
    head = "".join(f'<th scope="col">{name}</th>' for name in left)
    head += '<th scope="colgroup" colspan="2">accuracy</th>'
    head += "".join(f'<th scope="col" class="n">{name}</th>' for name in right)
    return (
        '<p class="lead">A text asks for a level of each factor; the level is then measured in the generated picture. '
        "Above chance is (accuracy − chance) / (1 − chance): 0 is guessing, 1 is always as asked.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Control table"><table>'
        "<caption>How often the requested level is the measured one</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(map(_control_row, rows))}</tbody></table></div>"
        '<p class="facts">Bar: accuracy; thin line: its interval; upright mark: chance; ring: the same measure on real '
        "pictures. Verdict by the column above chance: follows from 0.8, partly from 0.4, weakly from 0.1; near chance "
        "below that or where the interval reaches chance. Not judged: on real pictures the measure itself does not get "
        "halfway from chance to perfect.</p>"
    )


def _control_row(row: ControlRow) -> str:
    shares = [row.accuracy, row.chance, *([] if row.on_real is None else [row.on_real]), *(row.interval or ())]
    if not all(0 <= share <= 1 for share in shares) or row.chance == 1:
        raise ConfigError(f"report: control row '{row.factor}' has a share outside [0, 1] or chance 1; got {shares}.")
    spoken = f"{row.factor}: accuracy {percent(row.accuracy)}, chance {percent(row.chance)}"
    bar = accuracy_bar(row.accuracy, row.chance, row.on_real, row.interval, spoken)
    interval = "–" if row.interval is None else f"{100 * row.interval[0]:.0f}–{100 * row.interval[1]:.0f}\u202f%"
    real = "–" if row.on_real is None else percent(row.on_real)
    return (
        f'<tr><th scope="row">{escape(row.factor)}</th>'
        f'<td class="verdict {row.verdict.replace(" ", "-")}">{row.verdict}</td><td>{escape(row.channel)}</td>'
        f'<td>{bar}</td><td class="n">{percent(row.accuracy)}</td><td class="n">{interval}</td>'
        f'<td class="n">{percent(row.chance)}</td><td class="n">{real}</td><td class="n">{row.score:.2f}</td>'
        f'<td class="n">{row.n}</td></tr>'
    )


def _pairs(pairs: Sequence[Pair]) -> str:
    body = ""
    for index, (caption, real, generated, _) in enumerate(pairs):
        if real is None:
            continue
        shown = picture(real, f"Real picture described as: {caption}", f"real_vs_generated[{index}].real", shown=144)
        made = picture(generated, f"Generated from: {caption}", f"real_vs_generated[{index}].generated", shown=144)
        body += f'<div class="pair"><div class="row">{figure(shown, "real")}{figure(made, "generated")}</div>'
        body += f"<p>{escape(caption)}</p></div>"
    return body and (
        '<p class="lead">The text describes the real picture on the left; the one on the right was generated from that '
        f'text alone. They should agree in what the text says, not pixel by pixel.</p><div class="pairs">{body}</div>'
    )


def _factor_maps(index: int, item: FactorMaps) -> str:
    """One image, what stage 1 makes of it, and each anatomy factor with the share of the area that it takes."""
    where = f"factor_maps[{index}]"
    anatomy = np.asarray(item.anatomy)
    if anatomy.ndim != 3 or 0 in anatomy.shape:
        raise ConfigError(f"report: {where}.anatomy has shape {anatomy.shape}; pass (H, W, K).")
    said = f"image {index + 1}"
    parts = [figure(picture(item.image, f"Input {said}", f"{where}.image"), "image")]
    for name, values in (("true mask", item.mask), ("segmentation", item.segmentation)):
        drawn = '<div class="absent">not<br>measured</div>'
        if values is not None:
            drawn = picture(gray(values), f"{name} of {said}", f"{where}.{name}")
        parts.append(figure(drawn, name))
    strongest = picture(colour_map(anatomy), f"Strongest anatomy factor of each pixel of {said}", f"{where}.anatomy")
    parts.append(figure(strongest, "strongest factor"))
    parts.append(
        figure(picture(item.reconstruction, f"Reconstruction of {said}", f"{where}.reconstruction"), "rebuilt")
    )
    factors = []
    for k, colour in enumerate(factor_colours(anatomy.shape[-1])):
        area = float(anatomy[..., k].mean())
        drawn = picture(gray(anatomy[..., k]), f"Anatomy factor {k} of {said}", f"{where}.anatomy", shown=72)
        factors.append(figure(drawn, f'<span class="key" style="background:{colour}"></span>{k} · {percent(area)}'))
    lead = ""
    if not index:
        lead = (
            '<p class="lead">Stage 1 splits an image into anatomy factors, finds the lesion from them alone and '
            "rebuilds the image. Below each row: every factor and its mean over the area.</p>"
        )
    rows = "".join(f'<div class="row">{"".join(row)}</div>' for row in (parts, factors))
    return f'{lead}<div class="maps">{rows}</div>'


def _losses(stages: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]) -> str:
    body = ""
    for stage, curves in stages.items():
        charts: dict[str, list[tuple[str, Sequence[float], Sequence[float]]]] = {}
        for name, (steps, values) in curves.items():
            split, _, rest = name.partition("/")
            if split not in ("train", "validation", "test") or not rest:
                split, rest = "", name
            if len(steps) or len(values):
                charts.setdefault(rest, []).append((split, steps, values))
        drawn = "".join(curve_chart(title, lines) for title, lines in charts.items())
        body += f"<h3>{escape(stage)}</h3>" + (f'<div class="charts">{drawn}</div>' if drawn else ABSENT)
    return body


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return '<p class="empty">The run recorded no notes.</p>'
    return f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>'


def _provenance(report: Report) -> str:
    # The run itself stands open; the long tables are for those who look for one value.
    return (
        facts_table("How the run was started and what it ran on", report.provenance, folded=False)
        + facts_table("Every number of this run", dict(sorted(report.metrics.items())))
        + facts_table("Every setting of this run", report.config)
    )
