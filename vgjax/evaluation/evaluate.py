"""Evaluation of a trained run: draws one picture a test caption, reads it back, writes metrics.json and the report."""

from __future__ import annotations

import datetime
import json
import logging
import time
from typing import Any

import numpy as np

from vgjax import losses
from vgjax.config import ConfigError
from vgjax.context import Run
from vgjax.data import records
from vgjax.data.entries import Levels, Reader
from vgjax.data.sources import SOURCES
from vgjax.evaluation import control, metrics
from vgjax.evaluation.control import TestCase
from vgjax.evaluation.readouts import PriorView
from vgjax.evaluation.report import FactorMaps, Pair, Report, SwapGrid, write_report
from vgjax.sample import Sampler
from vgjax.stages import plan
from vgjax.train import finished, read_log
from vgjax.types import Request

SWAP_ROWS, SWAP_COLUMNS, SHOWN_PAIRS, SHOWN_MAPS = 4, 5, 16, 5
SEED_OFFSET = 10_000  # test pictures never share their noise with --mode=sample


def load_cases(run: Run) -> list[TestCase]:
    """The first `evaluate.prompts` test captions with the levels that they name."""
    rows = run.rows(["images"], "test")
    count = min(run.config.evaluate.prompts, len(rows))
    cases = []
    for row in (rows[i] for i in range(count)):
        requested = {name: row["factors"][name] for name in row["named"]}
        cases.append(TestCase(row["caption"], requested, records.from_png(row["image"]), records.from_png(row["mask"])))
    return cases


def evaluate(run: Run) -> dict[str, Any]:
    """Computes all metrics, writes metrics.json and pictures.npz, and returns the metrics; a finished one is skipped.

    Raises:
      ConfigError: a stage is not trained yet.
    """
    path = run.workdir / "metrics.json"
    flat = json.loads(json.dumps(run.config.flat()))
    if path.exists() and (before := json.loads(path.read_text())).get("config") == flat:
        logging.info("evaluation: finished before, skipped")
        return before
    for stage in plan(run.config):
        if not finished(run, stage.name):
            raise ConfigError(f"workdir {run.workdir}: stage '{stage.name}' is not trained; run --mode=train first")
    started, began = time.monotonic(), datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    c, cases = run.config.evaluate, load_cases(run)
    view, sampler = PriorView(run), Sampler(run)
    manifest = json.loads((run.workdir / "records" / "manifest.json").read_text())
    reader = SOURCES[run.config.data.source].reader(manifest["thresholds"])
    drawn = _draw(run, sampler, [case.caption for case in cases], 0)
    read, read_real = (_read(reader, view, seen) for seen in (drawn, np.stack([case.image for case in cases])))
    chance = {factor: reader.chance([case.requested for case in cases], factor) for factor in reader.channels}
    rows = control.control_rows(cases, read, read_real, reader.channels, chance, run.config.seed, c.bootstrap_draws)
    values = control.as_metrics(rows, len(cases)) | _prior_metrics(cases, view)
    if c.baseline == "shuffled_captions":
        values |= _baseline(run, sampler, reader, view, cases, read)
    texts, swaps = swap_grid(run, sampler, reader)
    np.savez(run.workdir / "pictures.npz", drawn=drawn[:SHOWN_PAIRS], swaps=swaps)
    shown = {"read": read[:SHOWN_PAIRS], "swap_texts": texts, "control": [row.__dict__ for row in rows]}
    (run.workdir / "shown.json").write_text(json.dumps(shown, indent=1))
    values |= _stage_metrics(run) | {"wall_s/evaluate": time.monotonic() - started}
    fingerprints = {f"fingerprint/{s.name}": _done(run, s.name)["fingerprint"] for s in plan(run.config)}
    origin = metrics.provenance(run.config.seed) | {"config": flat, "started": began} | fingerprints
    metrics.write_metrics(path, values, origin)
    return values


def _draw(run: Run, sampler: Sampler, texts: list[str], offset: int) -> np.ndarray:
    seeds = [SEED_OFFSET + offset + run.config.seed * 1_000_003 + i for i in range(len(texts))]
    return sampler(sampler.inputs([Request(prompt=text) for text in texts]), seeds)


def _read(reader: Reader, view: PriorView, pictures: np.ndarray) -> list[Levels]:
    return reader.read(pictures, view(pictures)["lesion"])


def _baseline(
    run: Run, sampler: Sampler, reader: Reader, view: PriorView, cases: list[TestCase], read: list[Levels]
) -> dict[str, float]:
    """Accuracy under the true caption minus accuracy under another picture's caption.

    Both are means over `evaluate.draws` pictures of each caption, each draw with other strangers' captions; the
    interval resamples captions.
    """
    c, count, rng = run.config.evaluate, len(cases), np.random.default_rng(run.config.seed)
    reads, reads_other = [read], []
    for draw in range(c.draws):
        if draw:
            drawn = _draw(run, sampler, [case.caption for case in cases], 2 * draw * count)
            reads.append(_read(reader, view, drawn))
        order = rng.permutation(count)
        stranger = order[(np.argsort(order) + 1) % count]  # a single cycle: nobody keeps its own caption
        captions = [cases[i].caption for i in stranger]
        reads_other.append(_read(reader, view, _draw(run, sampler, captions, (2 * draw + 1) * count)))
    values: dict[str, float] = {}
    for factor in reader.channels:
        if not any(factor in case.requested for case in cases):
            continue
        true, other = (np.mean([control.hits(cases, r, factor) for r in rs], axis=0) for rs in (reads, reads_other))
        low, high = metrics.bootstrap_interval(true - other, run.config.seed, c.bootstrap_draws)
        values |= {f"control_true/{factor}": float(true.mean()), f"control_shuffled/{factor}": float(other.mean())}
        values |= {f"control_gain/{factor}": float((true - other).mean())}
        values |= {f"control_gain/low/{factor}": low, f"control_gain/high/{factor}": high}
    return values


def _prior_metrics(cases: list[TestCase], view: PriorView) -> dict[str, float]:
    """Dice of the stage-1 segmentor and reconstruction error on the test pictures."""
    images, masks = np.stack([w.image for w in cases]), np.stack([w.mask for w in cases]) > 0
    seen = view(images)
    found = seen["lesion"] > 0.5
    dice = np.asarray(losses.dice_score(masks, found))
    error = np.abs(seen["reconstruction"].astype(float) - images).mean() / 127.5
    return {"prior/dice": float(dice.mean()), "prior/reconstruction_l1": float(error), "prior/n": len(cases)}


def swap_grid(run: Run, sampler: Sampler, reader: Reader) -> tuple[dict[str, list[str]], np.ndarray]:
    """Pictures (R, C, H, W, 3) with the anatomy of row texts and the modality of column texts, all from one noise."""
    rows = run.rows(["images"], "test")
    channel = lambda name: [factor for factor, c in _all_channels(reader).items() if c == name]
    rng = np.random.default_rng(run.config.seed)
    texts: dict[str, list[str]] = {"rows": [], "columns": []}
    for i in range(min(SWAP_ROWS + SWAP_COLUMNS, len(rows))):
        side, name = ("rows", "anatomy") if i < SWAP_ROWS else ("columns", "modality")
        levels = rows[i]["factors"]
        named = [f for f in levels if (f in channel("anatomy")) == (name == "anatomy")]
        # Where captions are the dataset's own, the model has learned those words and no others.
        texts[side].append(reader.describe(levels, rng, named) if rows[i]["named"] else rows[i]["caption"])
    given = {side: sampler.inputs([Request(prompt=text) for text in side_texts]) for side, side_texts in texts.items()}
    r, c = len(texts["rows"]), len(texts["columns"])
    mixed = {
        "anatomy": np.repeat(np.asarray(given["rows"]["anatomy"]), c, axis=0),
        "modality": np.tile(np.asarray(given["columns"]["modality"]), (r, 1)),
    }
    pictures = sampler(mixed, [SEED_OFFSET + run.config.seed] * (r * c))
    return texts, pictures.reshape(r, c, *pictures.shape[1:])


def _all_channels(reader: Reader) -> dict[str, str]:
    return {"shape": "anatomy", **reader.channels}


def _done(run: Run, stage: str) -> dict[str, Any]:
    return json.loads(run.done(stage).read_text())


def _stage_metrics(run: Run) -> dict[str, float]:
    done = {stage.name: _done(run, stage.name) for stage in plan(run.config)}
    values = {f"wall_s/{stage}": record["wall_s"] for stage, record in done.items()}
    peak = max([metrics.peak_rss_mb(), *(record["peak_rss_mb"] for record in done.values())])
    return values | {"peak_rss_mb": peak}


def notes(run: Run, values: dict[str, Any]) -> list[str]:
    """What is off and what fell short, one sentence each."""
    said = []
    if not run.config.prior.weight_perceptual:
        said.append("The perceptual term of stage 1 is off: prior.vgg_path names no VGG-19 weights.")
    if "control/accuracy_mean" not in values:
        said.append("Control was not measured: no test caption names a factor that can be read back from pictures.")
    for name, value in values.items():
        if name.startswith("control/score/") and value < 0.3:
            said.append(
                f"Control of {name.rsplit('/', 1)[-1]} is weak: {value:.2f} on a scale from chance (0) to perfect (1)."
            )
    skipped = json.loads((run.workdir / "records" / "manifest.json").read_text())["skipped"]
    if skipped:
        said.append(f"{skipped} source files were left out; records/prepare_report.json lists each with its reason.")
    return said


def report(run: Run) -> None:
    """Writes report.html from what evaluation left in the workdir.

    Raises:
      ConfigError: there is no evaluation yet.
    """
    path = run.workdir / "metrics.json"
    if not path.exists():
        raise ConfigError(f"workdir {run.workdir} has no metrics.json: run --mode=evaluate first")
    values, shown = json.loads(path.read_text()), json.loads((run.workdir / "shown.json").read_text())
    numbers = {k: v for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    pictures = np.load(run.workdir / "pictures.npz")
    cases = load_cases(run)[: len(pictures["drawn"])]
    pairs = [
        Pair(w.caption, w.image, drawn, {f: (w.requested.get(f, ""), levels.get(f) or "unreadable") for f in levels})
        for w, drawn, levels in zip(cases, pictures["drawn"], shown["read"], strict=True)
    ]
    seen = PriorView(run)(np.stack([w.image for w in cases[:SHOWN_MAPS]]))
    maps = [
        FactorMaps(w.image, w.mask, seen["lesion"][i], seen["anatomy"][i], seen["reconstruction"][i])
        for i, w in enumerate(cases[:SHOWN_MAPS])
    ]
    origin = {k: v for k, v in values.items() if k not in numbers and k != "config"} | {"seed": values["seed"]}
    write_report(
        run.workdir / "report.html",
        Report(
            title=f"vgjax: {run.config.name}",
            config=values["config"],
            provenance=origin,
            metrics={k: v for k, v in numbers.items() if k not in ("seed", "device_count")},
            notes=notes(run, numbers),
            loss_curves={stage.name: _curves(run, stage.name) for stage in plan(run.config)},
            real_vs_generated=pairs,
            factor_maps=maps,
            swap_grid=SwapGrid(shown["swap_texts"]["rows"], shown["swap_texts"]["columns"], pictures["swaps"]),
            control=[control.ControlRow(**row) for row in shown["control"]],
        ),
    )


def _curves(run: Run, stage: str) -> dict[str, tuple[list[float], list[float]]]:
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for row in read_log(run.workdir / "logs" / f"{stage}.jsonl"):
        for name, value in row.items():
            if name not in ("step", "kind", "elapsed_s", "data_wait_share"):
                steps, column = curves.setdefault(f"{row['kind']}/{name}", ([], []))
                steps.append(row["step"])
                column.append(value)
    return curves
