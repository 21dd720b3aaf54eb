"""What a run's report shows, collected from its artefacts."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vgjax.config import ConfigError
from vgjax.context import Run
from vgjax.data import records
from vgjax.evaluation.draw import load_cases, options_of, read_drawn
from vgjax.evaluation.evaluate import READINGS_FILE, computed, drawn_sets, evaluations, results
from vgjax.evaluation.metrics import METRICS, swap
from vgjax.evaluation.metrics.base import CAPTIONS
from vgjax.evaluation.privacy import PAIRS
from vgjax.evaluation.readouts import PriorView
from vgjax.evaluation.report import Closest, ControlRow, FactorMaps, Pair, Report, SwapGrid, write_report
from vgjax.features.text import encoder_of
from vgjax.stages import plan
from vgjax.train import LOG, read_log

SHOWN_PAIRS, SHOWN_MAPS = 16, 5
WEAK = 0.3  # control score below which the report says so


def report(runs: Sequence[Run]) -> None:
    """Writes report.html into the first run's workdir: that run, beside the others where there are any.

    Raises:
      ConfigError: a run has no evaluation yet.
    """
    for run in runs:
        if not all(map(run.find, evaluations(run.config))):
            raise ConfigError(f"workdir {run.workdir} holds no evaluation of its config: run --mode=evaluate first")
    write_report(runs[0].workdir / "report.html", [collect(run) for run in runs])


def collect(run: Run) -> Report:
    """The report of one run."""
    (numbers, origin), context, sets = results(run), run.context, drawn_sets(run)
    cases, options = load_cases(context), options_of(context)
    pairs = []
    readings = json.loads(run.artefact("evaluation").path(READINGS_FILE).read_text())
    if CAPTIONS in readings:
        pictures = read_drawn(context, CAPTIONS).pictures
        for case, drawn, levels in zip(cases[:SHOWN_PAIRS], pictures, readings[CAPTIONS], strict=False):
            factors = {f: (case.requested.get(f, ""), levels[f] or "unreadable") for f in levels}
            pairs.append(Pair(case.caption, case.image, drawn, factors))
    grid = None
    if swap.SWAP in sets:
        asked, _, swapped = read_drawn(context, swap.SWAP)
        width = len(swap.grid(cases)[1])
        rows, columns = [one.anatomy for one in asked[::width]], [one.modality for one in asked[:width]]
        grid = SwapGrid(rows, columns, swapped.reshape(len(rows), width, *swapped.shape[1:]))
    maps = []
    if "prior" in run.producers:
        seen = PriorView(context)(np.stack([case.image for case in cases[:SHOWN_MAPS]]))
        found = zip(cases, seen["lesion"], seen["anatomy"], seen["reconstruction"], strict=False)
        maps = [FactorMaps(case.image, case.mask, *images) for case, *images in found]
    return Report(
        title=f"vgjax: {run.config.name}",
        config=origin["config"],
        provenance={name: value for name, value in origin.items() if name not in ("config", "estimates")},
        metrics=numbers,
        notes=notes(run, numbers),
        loss_curves={stage.name: _curves(run, stage.name) for stage in plan(run.config)},
        real_vs_generated=pairs,
        factor_maps=maps,
        swap_grid=grid,
        control=control_rows(origin["estimates"], options.reader.channels),
        closest=closest_pairs(run) if "privacy" in run.producers else (),
        compared={name: one for name, one in origin["estimates"].items() if "net" in one},
    )


def closest_pairs(run: Run) -> list[Closest]:
    """Those that the evaluation "privacy" kept."""
    rows = records.Records([run.artefact("privacy").path(PAIRS)])
    shown = lambda row: row | {name: records.from_png(row[name]) for name in ("drawn", "training")}
    return [Closest(**shown(rows[i])) for i in range(len(rows))]


def control_rows(estimates: dict[str, Any], channels: Mapping[str, str]) -> list[ControlRow]:
    """The control table, of the factors that were measured."""
    rows = []
    for factor, channel in channels.items():
        if accuracy := estimates.get(f"control/accuracy/{factor}"):
            chance, real = (estimates[f"{name}/{factor}"]["value"] for name in ("control/chance", "control_real"))
            value, n, interval = (accuracy[name] for name in ("value", "n", "interval"))
            rows.append(ControlRow(factor, channel, value, chance, real, n, interval))
    return rows


def notes(run: Run, values: Mapping[str, float]) -> list[str]:
    """What is off and what fell short, one sentence each."""
    found = []
    if not run.config.prior.weight_perceptual:
        found.append("The perceptual term of stage 1 is off: prior.vgg_path names no VGG-19 weights.")
    if "control/accuracy_mean" not in values:
        found.append("Control was not measured: no test caption names a factor that can be read back from pictures.")
    found += [
        f"Control of {name.rsplit('/', 1)[-1]} is weak: {value:.2f} on a scale from chance (0) to perfect (1)."
        for name, value in values.items()
        if name.startswith("control/score/") and value < WEAK
    ]
    for stage in plan(run.config):
        for rate, step in run.artefact(stage.name).manifest["info"].get("not_finite", {}).items():
            found.append(f"Stage '{stage.name}' had a learning rate of {rate} up to step {step}, and lower ones since.")
    found += [
        f"Metric '{name}' was not computed: it needs {' and '.join(METRICS[name].needs)}, which this config has not."
        for name in run.config.evaluate.metrics
        if name not in computed(run.config)
    ]
    pictures = run.artefact("pictures")
    if skipped := pictures.manifest["info"]["skipped"]:
        where = f"{pictures.folder.name}/prepare_report.json"
        found.append(f"{skipped} source files were left out; {where} lists each with its reason.")
    if "vocabulary" in run.producers and run.config.text_encoder.kind == "vocabulary":
        captions = [case.caption for case in load_cases(run.context)]
        if unknown := encoder_of(run.context).unknown(captions):
            found.append(f"Words of test captions that are not in the training captions: {', '.join(unknown)}.")
    return found


def _curves(run: Run, stage: str) -> dict[str, tuple[list[float], list[float]]]:
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for row in read_log(run.artefact(stage).folder / LOG):
        for name, value in row.items():
            if name not in ("step", "kind", "elapsed_s", "data_wait_share"):
                steps, column = curves.setdefault(f"{row['kind']}/{name}", ([], []))
                steps.append(row["step"])
                column.append(value)
    return curves
