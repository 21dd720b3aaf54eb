"""A run: its workdir, the checks before any long work, and what each mode does."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import tempfile
from collections.abc import Callable

import ml_collections

from vgjax import config as configs
from vgjax import export, parallel, sample
from vgjax.config import Config, ConfigError
from vgjax.context import Run
from vgjax.data.prepare import pictures as preparation
from vgjax.data.records import write_json
from vgjax.evaluation import evaluate as evaluation
from vgjax.features import latents
from vgjax.stages import plan
from vgjax.train import finished, train

# Groups that may differ between two runs on one workdir: they decide how a model is used, not what it becomes.
FREE_GROUPS = ("sample", "evaluate", "mesh")


def open_run(config_dict: ml_collections.ConfigDict, workdir: str) -> Run:
    """Checks all that can be checked without work, then makes the workdir.

    Raises:
      ConfigError: bad config, unreadable data, a mesh that does not fit, a workdir unwritable or of another config.
    """
    config = configs.from_config_dict(config_dict)
    folder = pathlib.Path(workdir or f"runs/{config.name}")
    kept = folder / "config.json"
    if kept.exists():
        _check_same(config, kept, folder)
    elif folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"workdir {folder} holds files but no config.json: name an empty or a new folder")
    run = Run(config, folder, parallel.make_mesh(config.mesh))
    check_batches(run)
    if not (folder / "records" / "manifest.json").exists():
        preparation.check(config)
    _make_writable(folder)
    if not kept.exists():
        write_json(kept, dataclasses.asdict(config))
    return run


def _check_same(config: Config, kept: pathlib.Path, folder: pathlib.Path) -> None:
    try:
        before = configs.from_json(kept.read_text())
    except ValueError as error:
        raise ConfigError(f"{kept} cannot be read ({error}): name another --workdir") from None
    differing = [key for key in configs.difference(config, before) if key.split(".")[0] not in FREE_GROUPS]
    if differing:
        key = differing[0]
        raise ConfigError(
            f"workdir {folder} was made by another config: '{key}' was {before.flat()[key]!r} and is now"
            f" {config.flat()[key]!r} ({len(differing)} keys differ); name another --workdir"
        )


def _make_writable(folder: pathlib.Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"workdir {folder} cannot be written ({error.strerror}): name another --workdir") from None


def prepare(run: Run, prompt: str = "") -> None:
    """Writes the records."""
    counts = preparation.prepare(run.config, run.workdir / "records")
    logging.info("pictures: %s", ", ".join(f"{n} {split}" for split, n in counts.items()))
    preparation.verify(run.config, run.workdir / "records")
    latents.write(run)


def train_stages(run: Run, prompt: str = "") -> None:
    """Prepares, then trains what is not trained yet."""
    check_weights(run)
    prepare(run)
    for stage in plan(run.config):
        if finished(run, stage.name):
            logging.info("stage %s: finished before, skipped", stage.name)
        else:  # made only now: it reads what the stage before it wrote
            train(run, stage.make(run))


def check_weights(run: Run) -> None:
    """Reads the files of weights that stages not yet trained will need: a fault must show before the first one's work.

    Raises:
      ConfigError: a file cannot be read, or does not fit the config.
    """
    for stage in plan(run.config):
        if not finished(run, stage.name):
            stage.check(run.config)


def check_batches(run: Run) -> None:
    """Raises ConfigError unless every batch size divides over the mesh; called before any long work."""
    sizes = {f"{s.name}.train.batch_size": getattr(run.config, s.name).train.batch_size for s in plan(run.config)}
    for key, size in {**sizes, "sample.batch_size": run.config.sample.batch_size}.items():
        parallel.check_batch(run.mesh, key, size)


def evaluate(run: Run, prompt: str = "") -> None:
    """Measures control and writes metrics.json."""
    values = evaluation.evaluate(run)
    if "control/accuracy_mean" in values:
        logging.info("control accuracy, mean over factors: %.3f", values["control/accuracy_mean"])


def report(run: Run, prompt: str = "") -> None:
    """Writes report.html."""
    evaluation.report(run)
    logging.info("report: %s", run.workdir / "report.html")


def run_all(run: Run, prompt: str = "") -> None:
    """Everything, from where it was stopped."""
    train_stages(run)
    evaluate(run)
    report(run)


def draw(run: Run, prompt: str) -> None:
    """Draws pictures of one prompt."""
    _need_trained(run)
    for path in sample.sample_prompt(run, prompt):
        logging.info("wrote %s", path)


def write_export(run: Run, prompt: str) -> None:
    """Writes what diffusers and peft read."""
    _need_trained(run)
    logging.info("wrote %s", export.export(run, prompt))


def _need_trained(run: Run) -> None:
    if not finished(run, "denoiser"):
        raise ConfigError(f"workdir {run.workdir} holds no trained model: run --mode=train first")


MODES: dict[str, Callable[[Run, str], None]] = {
    "run": run_all,
    "prepare": prepare,
    "train": train_stages,
    "sample": draw,
    "evaluate": evaluate,
    "report": report,
    "export": write_export,
}
