"""A run: the checks before any long work, its workdir and store, and what each mode does."""

import json
import logging
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence

import jax
import ml_collections

from vgjax import artefacts, capacity, conditions, export, parallel, sample, stages
from vgjax import config as configs
from vgjax.atomic import nearest, read_regular, write_json
from vgjax.config import Config, ConfigError
from vgjax.context import Run
from vgjax.data.prepare import pictures
from vgjax.evaluation import evaluate as evaluation
from vgjax.evaluation import networks, summary
from vgjax.store import Store
from vgjax.text import check_pretrained
from vgjax.types import SPLITS

CONFIG_FILE = "config.json"


def open_run(config_dict: ml_collections.ConfigDict, workdir: str, store: str = "") -> Run:
    """Checks all that can be checked without work; makes nothing.

    `workdir`, for people, is by default runs/<config name>; `store`, of the artefacts, "store" beside it.

    Raises:
      ConfigError: bad config, unreadable data, a mesh that does not fit, a folder that cannot be written or is none.
    """
    config = configs.from_config_dict(config_dict)
    conditions.check(config)
    evaluation.check(config)
    folder = pathlib.Path(workdir or f"runs/{config.name}")
    where = pathlib.Path(store) if store else folder.parent / "store"
    there = [path.name for path in folder.iterdir() if path.name[0] != "."] if folder.is_dir() else []
    if there and CONFIG_FILE not in there:
        raise ConfigError(f"workdir {folder} holds files but no config.json: name an empty or a new folder")
    run = Run(config, folder, parallel.make_mesh(config.mesh), Store(where), artefacts.producers(config))
    check_batches(run)
    if not run.find("pictures"):
        pictures.check(config)
    _check_writable(folder)
    _check_writable(where)
    return run


def _check_writable(folder: pathlib.Path) -> None:
    """Raises ConfigError unless files can be made in the folder, or in the nearest one above it that is there."""
    try:
        with tempfile.TemporaryFile(dir=nearest(folder)):
            pass
    except OSError as error:
        raise ConfigError(
            f"folder {folder} cannot be written ({error.strerror}): name another --workdir or --store"
        ) from None


def check_batches(run: Run) -> None:
    """Raises ConfigError unless every batch size divides over the mesh."""
    flat = run.config.flat()
    trained = [name for name, producer in run.producers.items() if producer.trained]
    for key in (*(f"{name}.train.batch_size" for name in trained), "sample.batch_size"):
        parallel.check_batch(run.mesh, key, flat[key])


def check_weights(run: Run) -> None:
    """Reads the files of weights that stages not yet trained will need: a fault must show before the first one's work.

    Raises:
      ConfigError: a file cannot be read, or does not fit the config.
    """
    for stage in stages.plan(run.config):
        if not run.find(stage.name):
            stage.check(run.config)
    if not run.find("evaluation"):
        check_pretrained(run.config.text_encoder)
    if not all(map(run.find, evaluation.evaluations(run.config))):
        networks.check(run.config, run.mesh)


def prepare(run: Run) -> None:
    """Makes the pictures and those of the derived columns that need no trained network."""
    c = run.config.data
    if not run.find("pictures"):  # else they are counted below
        rendered = {split: getattr(c, f"{split}_items") for split in SPLITS} if c.source == "phantom" else {}
        capacity.check(run, rendered)
    info = run.artefact("pictures").manifest["info"]
    capacity.check(run, info["counts"])
    logging.info("pictures: %s", ", ".join(f"{n} {split}" for split, n in info["counts"].items()))
    check_mirroring(run.config, info["sided"], info["counts"]["train"] + info["counts"]["validation"])
    trained: set[str] = set()  # or made from what is
    for name, producer in run.producers.items():
        if producer.trained or trained.intersection(producer.needs):
            trained.add(name)
        else:
            run.artefact(name)


def check_mirroring(config: Config, sided: int, captions: int) -> None:
    """Raises ConfigError where a mirrored picture would contradict a caption that tells the sides apart."""
    if config.denoiser.flip and sided:
        raise ConfigError(
            f"config key 'denoiser.flip' is True, but {sided} of {captions} captions say left or right: set it to False"
        )


def train(run: Run) -> None:
    """Prepares, then trains what is not trained yet."""
    check_weights(run)
    prepare(run)
    _begin(run)
    for stage in stages.plan(run.config):
        run.artefact(stage.name)
        logging.info("stage %s: trained", stage.name)


def _begin(run: Run) -> None:
    """Makes the workdir and notes the config there, for `reopen`."""
    # Relative, so that workdir and store may move together.
    store = os.path.relpath(run.store.root.resolve(), run.workdir.resolve())
    write_json(run.workdir / CONFIG_FILE, {"config": run.config.model_dump(), "store": store})


def reopen(workdir: str, mesh: jax.sharding.Mesh) -> Run:
    """The run whose config was noted in a workdir, on whichever devices are at hand.

    Raises:
      ConfigError: there is none, or one of another version.
    """
    path = pathlib.Path(workdir) / CONFIG_FILE
    try:
        noted = json.loads(read_regular(path))
        config, store = configs.build(Config, noted["config"]), Store(path.parent.resolve() / noted["store"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"--compare: '{path}' cannot be read ({reason}): name the workdir of a run that this version has evaluated"
        ) from None
    return Run(config, path.parent, mesh, store, artefacts.producers(config))


def evaluate(run: Run) -> None:
    """Measures control and writes metrics.json."""
    _need_trained(run)
    values = evaluation.evaluate(run)
    _begin(run)
    if "control/accuracy_mean" in values:
        logging.info("control accuracy, mean over factors: %.3f", values["control/accuracy_mean"])


def report(run: Run, compare: Sequence[str] = ()) -> None:
    """Writes report.html; `compare` names the workdirs of runs to show beside this one."""
    _need_workdir(run)
    summary.report([run, *(reopen(workdir, run.mesh) for workdir in compare)])
    logging.info("report: %s", run.workdir / "report.html")


def run_all(run: Run) -> None:
    """Everything, from where it was stopped."""
    train(run)
    evaluate(run)
    report(run)


def draw(
    run: Run, n: int, seed: int | None, strength: float | None = None, refuse_copies: bool = False, **asked: str
) -> None:
    """Draws `n` pictures of what is asked for; the arguments are those of `sample.sample_request`."""
    _need_trained(run)
    for path in sample.sample_request(run, asked, n, seed, strength, refuse_copies):
        logging.info("wrote %s", path)


def write_export(run: Run, prompt: str = "") -> None:
    """Writes what diffusers and peft read."""
    _need_trained(run)
    logging.info("wrote %s", export.export(run, prompt))


def _need_workdir(run: Run) -> None:
    """A workdir of another name shares the store, so only this tells a mistyped one."""
    if not (run.workdir / CONFIG_FILE).exists():
        raise ConfigError(f"workdir {run.workdir} holds no run: name that of a run, or make one by --mode=train or run")


def _need_trained(run: Run) -> None:
    for stage in stages.plan(run.config):
        if not run.find(stage.name):
            raise ConfigError(
                f"stage '{stage.name}' of this config is not trained: run --mode=train first (--mode=status says why)"
            )
    _need_workdir(run)


def status(run: Run) -> None:
    """Prints which artefacts of the config are there, which are not and why, and what the store holds besides."""
    recipes = [run.recipe(name) for name in run.producers]
    rows = run.store.status(recipes)
    width = max(len(name) for name, _, _ in rows)
    for name, state, why in rows:
        print(f"{name:{width}}  {state:10}  {why}".rstrip())
    for folder, size in run.store.unused(recipes):
        print(f"{folder.name:{width}}  not needed  {size / 1e6:.1f} MB, delete {folder} if no other config needs it")


# Those that `main.TAKES` names are called with the flags there besides.
MODES: dict[str, Callable[..., None]] = {
    "run": run_all,
    "prepare": prepare,
    "train": train,
    "sample": draw,
    "evaluate": evaluate,
    "report": report,
    "export": write_export,
    "status": status,
}
