"""How well a dataset's configs control pictures, row by row:  python -m vgjax.evaluation.control --config=phantom.

Each row is a config variant, trained and measured under one or several seeds. Rows share what they share (see
`vgjax.store`), finished ones are written to results/control_<config>.json at once, and the same command goes on with
those that are missing or stale.
"""

import argparse
import json
import logging
import pathlib
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.stats

from vgjax import run as runs
from vgjax.atomic import read_regular, write_json, write_text
from vgjax.boundary import guarded, leave
from vgjax.config import ConfigError
from vgjax.context import Run
from vgjax.evaluation.evaluate import results
from vgjax.evaluation.metrics import style
from vgjax.stages import plan
from vgjax.types import CHANNELS

REAL_METRICS = ("control", "gain", "diversity", "prior")
EDITS = ("accuracy", "effect", "kept", "redrawn", "spill")
METRICS = ("control", "leakage", "wording", "composition", "mask", "edit", "style", "prior", "marginal", "dci")


class Row(NamedTuple):
    """A row of the table."""

    variants: str  # of the config, joined by "+"
    seeds: int = 1
    keys: Mapping[str, Any] = {}  # in the place of the config's
    guidance: Sequence[float] = ()  # scales, the same for all channels, to choose one of; empty: the config's
    encoder: str = ""  # text_encoder.kind under which the BERT in the folder that --text_encoder names is read


SCALES = (1.0, 1.5, 2.0, 3.0, 4.5)
CHOICE = {"evaluate.split": "validation", "evaluate.prompts": 256, "evaluate.metrics": ("control",)}
WIDE_HEADS = {"disentangler.hidden": 640}
ACCURACY = {"evaluate.metrics": ("control",)}
SHUFFLED = {f"disentangler.shuffle_{channel}_targets": True for channel in CHANNELS}
MINILM_WIDTH = 384  # of all-MiniLM-L6-v2, the BERT that rows with one were made with

# Baselines take as many steps as `default`, ablations differ from `quick` by one thing each, but that a regression has
# its own recipe (one caption a picture, few steps); all have as many parameters, stage 1 apart, within 5 %. "One scale"
# is no row: the default's two are equal, so that its guidance drops both channels at once as it is.
ROWS: dict[str, Row] = {
    "quick": Row(""),
    "default": Row("long", seeds=3),
    "reference": Row("reference+long", 3, {"denoiser.width": 176}, SCALES),
    "pixart_text": Row("pixart_text+long", 3, guidance=SCALES),
    "pixart_text, pretrained tokens": Row(
        "pixart_text+long", keys={"text_encoder.width": MINILM_WIDTH}, guidance=SCALES, encoder="bert"
    ),
    "medart": Row("medart+long", guidance=SCALES),
    "class": Row("class_label+long", keys={"denoiser.width": 192, "denoiser.depth": 6}, guidance=SCALES),
    "no_alignment": Row("no_alignment+long", guidance=SCALES),
    "one_channel": Row("one_channel", guidance=SCALES),
    "pretrained words": Row("", encoder="vocabulary"),
    "mean instead of sample": Row("regression", keys=WIDE_HEADS),
    "text factors instead of picture factors": Row("regression", keys={"denoiser.learn_from": "text", **WIDE_HEADS}),
    "no spatial path": Row("", keys={"denoiser.spatial_path": False}),
    "no style path": Row("", keys={"denoiser.style_path": False}),
    "one null": Row("", keys={"denoiser.dropout.anatomy": 0.0, "denoiser.dropout.modality": 0.0}),
    "shuffled targets": Row("", keys={**SHUFFLED, **ACCURACY}),
    "shuffled captions": Row("", keys={"data.shuffle_captions": True, **ACCURACY}),
}
REAL_ROWS = {
    "default": Row("cpu"),
    "reference": Row("cpu+reference", guidance=SCALES),
    "pixart_text": Row("cpu+pixart_text", guidance=SCALES),
}


def rows_of(config: str) -> Mapping[str, Row]:
    """The rows of a config's table."""
    return ROWS if config == "phantom" else REAL_ROWS


def open_row(
    config: str, row: Row, seed: int, options: argparse.Namespace, scale: float | None = None, **keys: Any
) -> Run:
    """The run of one row under one seed, with a guidance scale and further keys in the place of the config's."""
    real = config != "phantom"
    try:
        module = __import__(f"configs.{config}", fromlist=["get_config"])
        c = module.get_config(row.variants + "+pixels" * (real and not options.autoencoder))
    except (ImportError, ValueError) as error:
        raise ConfigError(f"--config names {config!r}, of which there is no table: {error}") from None
    if row.encoder:
        c.text_encoder.update(kind=row.encoder, path=options.text_encoder)
    c.evaluate.update(metrics=REAL_METRICS if real else METRICS, prompts=options.prompts)
    c.update_from_flattened_dict({**row.keys, "seed": seed, "data.root": options.root})
    if real:
        c.autoencoder.path = options.autoencoder
    else:
        c.data.test_items = max(c.data.test_items, options.prompts)
    if scale is not None:
        c.sample.guidance.update(dict.fromkeys(c.sample.guidance, scale))
    c.update_from_flattened_dict(keys)
    return runs.open_run(c, f"{options.workdir}/{config}", options.store)


def guidance_scores(config: str, row: Row, options: argparse.Namespace) -> dict[str, float]:
    """Mean accuracy on validation captions by guidance scale, under the first seed."""
    found = {}
    for scale in row.guidance:
        run = open_row(config, row, 0, options, scale, **CHOICE)
        runs.train(run)
        found[str(scale)] = results(run)[0]["control/accuracy_mean"]
        logging.info("guidance %s: mean accuracy %.3f on validation captions", scale, found[str(scale)])
    return found


def open_seeds(
    config: str, row: Row, seeds: int, scores: Mapping[str, float], options: argparse.Namespace
) -> list[Run]:
    """The runs of a row under the guidance of the best score."""
    scale = float(max(scores, key=lambda name: scores[name])) if scores else None
    return [open_row(config, row, seed, options, scale) for seed in range(seeds)]


def is_fresh(config: str, known: Mapping[str, Any], options: argparse.Namespace) -> bool:
    """Whether a row of the results has the artefacts that the config has today."""
    row, scores = rows_of(config)[known["name"]], known.get("guidance", {})
    if set(scores) != set(map(str, row.guidance)):
        return False
    opened = open_seeds(config, row, known["seeds"], scores, options)
    return known["digest"] == [run.recipe("evaluation").digest for run in opened]


def measure(run: Run) -> dict[str, Any]:
    """Estimates by name, and what else a row tells of one seed."""
    runs.train(run)
    _, origin = results(run)
    params = {
        stage.name: sum(a.size for a in jax.tree.leaves(run.context.variables(stage.name)["params"]))
        for stage in plan(run.config)
    }
    return {
        "estimates": origin["estimates"],
        "captions": min(run.config.evaluate.prompts, run.artefact("pictures").manifest["info"]["counts"]["test"]),
        "parameters": sum(count for name, count in params.items() if name != "prior"),
        "steps": {stage.name: getattr(run.config, stage.name).train.steps for stage in plan(run.config)},
        "commit": origin["commit"],
        "hardware": origin["hardware"],
        "digest": run.artefact("evaluation").digest,
    }


def summary(name: str, found: Sequence[Mapping[str, Any]], prompts: int) -> dict[str, Any]:
    """A row of the results: means over seeds; 95 % intervals over captions, or over seeds where there are several."""
    columns = {
        "accuracy_mean": "control/accuracy_mean",
        "accuracy_joint": "control/accuracy_joint",
        "composition": "composition/gap",
        "leakage_anatomy": "leakage/anatomy",
        "leakage_modality": "leakage/modality",
        "paraphrase": "new_patterns/same",
        "new_wordings": "new_wordings/accuracy",
        "mask_iou": "mask/iou",
        "mask_iou_real": "mask_real/iou",
        "marginal": "marginal/distance",
        "marginal_real": "marginal_real/distance",
        **{name: f"dci/{name}" for name in ("disentanglement", "completeness", "informativeness")},
        "reader_dice": "reader/dice",
        "diversity": "diversity/pairs",
        "diversity_real": "diversity_real/pairs",
        "nearest": "diversity/nearest",
        "nearest_real": "diversity_real/nearest",
        **{f"edit_{what}_{channel}": f"edit/{what}/{channel}" for what in EDITS for channel in CHANNELS},
        **{f"style_{what}_{way}": f"style/{what}/{way}" for what in ("colour", "brightness") for way in style.SETS},
    }
    row: dict[str, Any] = {"name": name, "seeds": len(found), "prompts": prompts}
    intervals = {}
    for column, estimate in columns.items():
        per_seed = [one["estimates"][estimate] for one in found if estimate in one["estimates"]]
        if per_seed:
            row[column] = float(np.mean([one["value"] for one in per_seed]))
            intervals[column] = _interval(per_seed)
    prefixes = {"accuracy": "control/accuracy/", "accuracy_real": "control_real/", "gain": "control_gain/"}
    for column, prefix in prefixes.items():
        factors = [key.removeprefix(prefix) for key in found[0]["estimates"] if key.startswith(prefix)]
        row[column] = {f: float(np.mean([one["estimates"][prefix + f]["value"] for one in found])) for f in factors}
    intervals["gain"] = {f: _interval([one["estimates"][f"control_gain/{f}"] for one in found]) for f in row["gain"]}
    row["accuracy_min"] = min(row["accuracy"].values(), default=None)
    shared = {key: found[0][key] for key in ("captions", "parameters", "steps", "commit", "hardware")}
    return {**row, **shared, "digest": [one["digest"] for one in found], "ci95": intervals}


def _interval(per_seed: Sequence[Mapping[str, Any]]) -> Any:
    """Of the mean of an estimate over seeds, by Student's t; a single seed's own, over captions."""
    values = [one["value"] for one in per_seed]
    if len(values) == 1:
        return per_seed[0]["interval"]
    half = scipy.stats.sem(values) * scipy.stats.t.ppf(0.975, len(values) - 1)
    return [float(np.mean(values) - half), float(np.mean(values) + half)]


def results_path(config: str, options: argparse.Namespace) -> pathlib.Path:
    """The file of a config's rows."""
    return pathlib.Path(options.results) / f"control_{config}.json"


def write_table(config: str, names: Sequence[str], options: argparse.Namespace) -> None:
    """Measures the rows that are missing or stale and writes each as it is finished."""
    path = results_path(config, options)
    known = {row["name"]: row for row in json.loads(read_regular(path))["rows"]} if path.exists() else {}
    for name in names:
        row = rows_of(config)[name]
        seeds = options.seeds or row.seeds
        if row.encoder and not options.text_encoder:
            logging.info("row %s is left out: name the folder of a BERT (--text_encoder=FOLDER)", name)
            continue
        if known.get(name, {}).get("seeds") == seeds and is_fresh(config, known[name], options):
            logging.info("row %s: as it was", name)
            continue
        scores = guidance_scores(config, row, options)
        opened = open_seeds(config, row, seeds, scores, options)
        known[name] = summary(name, [measure(run) for run in opened], options.prompts) | {"guidance": scores}
        write_json(path, {"rows": [known[row] for row in rows_of(config) if row in known]})
        logging.info("row %s: mean accuracy %s", name, known[name].get("accuracy_mean", "not measured"))


COLUMNS = {  # heading of the table -> key of a row
    "mean": "accuracy_mean",
    "least factor": "accuracy_min",
    "joint": "accuracy_joint",
    "unseen pairs": "composition",
    "leak, anatomy": "leakage_anatomy",
    "leak, modality": "leakage_modality",
    "paraphrase": "paraphrase",
    "new words": "new_wordings",
    "mask IoU": "mask_iou",
}
REAL_COLUMNS = {
    "mean": "accuracy_mean",
    "joint": "accuracy_joint",
    **{f"gain, {factor}": f"gain/{factor}" for factor in ("position", "size", "colour", "contrast", "brightness")},
    "diversity": "diversity",
    "of real": "diversity_real",
    "nearest trained": "nearest",
    "of held out": "nearest_real",
}


def markdown(rows: Sequence[Mapping[str, Any]], stale: Collection[str], columns: Mapping[str, str] = COLUMNS) -> str:
    """The table of the README."""

    def number(row: Mapping[str, Any], key: str) -> str:
        group, _, factor = key.partition("/")
        value = row.get(group, {}).get(factor) if factor else row.get(key)
        return "" if value is None else f"{value:.3f}"

    lines = [f"| row | {' | '.join(columns)} | parameters | seeds |", "|---" * (len(columns) + 3) + "|"]
    for row in rows:
        name = row["name"] + " (stale)" * (row["name"] in stale)
        cells = [number(row, key) for key in columns.values()]
        cells = [name, *cells, f"{row['parameters'] / 1e6:.2f} M", str(row["seeds"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def stale_rows(config: str, rows: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> list[str]:
    """Names of rows whose artefacts are no longer those of the config."""
    own = lambda row: argparse.Namespace(**{**vars(options), "prompts": row["prompts"]})
    told = [row for row in rows if not rows_of(config)[row["name"]].encoder or options.text_encoder]
    return [row["name"] for row in told if not is_fresh(config, row, own(row))]


def write_readme(path: pathlib.Path, config: str, table: str) -> None:
    """Puts the table between the README's marks of the config."""
    start, end = f"<!-- control:{config} -->\n", f"\n<!-- /control:{config} -->"
    before, mark, rest = read_regular(path).decode().partition(start)
    if not mark:
        raise ConfigError(
            f"{path} has no line '{start.strip()}': put it and '{end.strip()}' where the table is to stand"
        )
    write_text(path, before + start + table + end + rest.partition(end)[2])


@guarded
def main(arguments: Sequence[str] | None = None) -> None:
    """Parses and dispatches."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="phantom", help="name of a file in configs/")
    parser.add_argument("--rows", default=None, help="names, separated by commas; all: every row; by default the first")
    parser.add_argument("--prompts", type=int, default=2000, help="test captions, where there are as many")
    parser.add_argument("--seeds", type=int, default=0, help="seeds a row; 0: as the row says")
    parser.add_argument("--root", default="", help="folder of the dataset")
    parser.add_argument("--text_encoder", default="", help="folder of a BERT, for the rows that read one")
    parser.add_argument("--autoencoder", default="", help="real pictures: folder of the autoencoder; none: 64 pixels")
    parser.add_argument("--workdir", default="runs/control")
    parser.add_argument("--store", default="runs/store")
    parser.add_argument("--results", default="results")
    parser.add_argument("--readme", default="", help="a README whose table is to be written anew from the results")
    options = parser.parse_args(arguments)
    sys.path.append(str(pathlib.Path(__file__).resolve().parents[2]))  # configs/ stands beside the package
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    rows = rows_of(options.config)
    asked = next(iter(rows)) if options.rows is None else options.rows
    names = list(rows) if asked == "all" else list(filter(None, asked.split(",")))
    if options.config != "phantom" and not options.autoencoder:
        logging.info("--autoencoder names no folder, so pictures are of 64 pixels and drawn without latents")
    if unknown := [name for name in names if name not in rows]:
        raise ConfigError(f"--rows names {unknown[0]!r}: choose among {', '.join(rows)}")
    write_table(options.config, names, options)
    if options.readme:
        found = json.loads(read_regular(results_path(options.config, options)))["rows"]
        columns = COLUMNS if options.config == "phantom" else REAL_COLUMNS
        table = markdown(found, stale_rows(options.config, found, options), columns)
        write_readme(pathlib.Path(options.readme), options.config, table)


if __name__ == "__main__":
    leave(main())
