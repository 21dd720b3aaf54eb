"""Commands on the real store, recipes and runs, with makers that take milliseconds and note what they were made of.

What a maker writes is a pure function of its declared keys and of what it reads: the digest of a `Made`.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import types
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from vgjax import artefacts, capacity, checkpoint, export, sample, stages, train
from vgjax.atomic import read_regular, write_json, write_text
from vgjax.config import ConfigError
from vgjax.context import VARIABLES, Context, Producer, Run
from vgjax.evaluation import evaluate, summary
from vgjax.recipes import declared
from vgjax.store import Artefact

HIGHEST = 0.1  # learning rate with which training comes to an end
RAW = "raw.txt"
FILES = ("a", "below/b")
VERSIONS: dict[str, int] = {}  # of makers, by which they are raised


class Made(NamedTuple):
    """What something was made of: all that decides it."""

    name: str
    version: int
    keys: str
    raw: str
    rates: tuple[tuple[str, int], ...]  # other learning rates than its own, with the steps taken at each
    inputs: tuple[tuple[str, str], ...]  # need, content


MADE: dict[str, Made] = {}  # by content


def content_of(made: Made) -> str:
    content = hashlib.sha256(repr(made).encode()).hexdigest()
    MADE[content] = made
    return content


def keys_of(producer: Producer, flat: dict[str, Any]) -> str:
    return json.dumps(declared(flat, producer.keys), sort_keys=True)


def told_of(estimates: dict[str, Any]) -> str:
    """The content of the evaluation that wrote these."""
    return estimates["control/accuracy_mean"]["content"]


def written(folder: pathlib.Path, file: str) -> str:
    """The content that a file of an artefact tells."""
    path = folder / file
    if file == VARIABLES:
        return checkpoint.load_export(path)["params"]["w"].tobytes().hex()
    if file in (train.DONE, train.NOT_FINITE):
        return ""
    if file == evaluate.METRICS_FILE:
        return told_of(json.loads(path.read_text()))
    content, name = path.read_text().split()
    assert name == file, f"{path} holds what belongs to {name}"
    return content


def read(artefact: Artefact) -> str:
    """The content of an artefact, of all whose files that is asked."""
    for file in artefact.files:
        artefact.path(file)
    (content,) = {written(artefact.folder, file) for file in artefact.files} - {""}
    return content


def _column(content: str, folder: pathlib.Path) -> dict[str, Any]:
    for file in FILES:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(f"{content} {file}")  # not synced: the store has to
    return {"content": content, "fingerprint": content} | {"counts": {"train": 1, "validation": 1}, "sided": 0}


def _evaluation(content: str, folder: pathlib.Path) -> dict[str, Any]:
    write_json(folder / evaluate.METRICS_FILE, {"control/accuracy_mean": {"value": 1.0, "content": content}})
    told = dict.fromkeys(("command", "commit", "hardware"), "")
    return {"content": content, "peak_rss_mb": 1.0, "seed": 0, **told}


def _stage(made: Made, rate: float, folder: pathlib.Path) -> dict[str, Any]:
    """Two steps, a checkpoint after the first one; what is not finite shows in the second."""
    if done := train._finished(folder):
        return {**done, "content": written(folder, VARIABLES)}
    kept = folder / "checkpoints" / "1.json"
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(read_regular(kept))
        if found["digest"] == hashlib.sha256(json.dumps(found["rates"]).encode()).hexdigest():
            made = made._replace(rates=tuple((one, step) for one, step in found["rates"] if one != str(rate)))
    if not made.rates:
        rates = [[str(rate), 1]]
        write_json(kept, {"rates": rates, "digest": hashlib.sha256(json.dumps(rates).encode()).hexdigest()})
    rows = train.read_log(folder / train.LOG)
    write_text(
        folder / train.LOG,
        "".join(json.dumps(row) + "\n" for row in [*rows, {"step": 1, "kind": "train", "elapsed_s": 0.0}]),
    )
    if rate > HIGHEST:
        stage = types.SimpleNamespace(name=made.name, training=types.SimpleNamespace(learning_rate=rate))
        saved = types.SimpleNamespace(latest=lambda: 1)
        train.Log._refuse(
            types.SimpleNamespace(_stage=stage, _saved=saved, _folder=folder, _writes=True), 2, {"loss": np.nan}
        )
    content = content_of(made)
    params = {"w": np.frombuffer(bytes.fromhex(content), np.uint8)}
    return {**train._export(folder, made.name, params, {}, 2, 1.0), "content": content}


def _make(producer: Producer, flat: dict[str, Any], seen: Context, folder: pathlib.Path) -> dict[str, Any]:
    inputs = tuple((need, read(seen.artefact(need))) for need in producer.needs)
    raw = ""
    if producer.name == "pictures":
        try:
            raw = (pathlib.Path(flat["data.root"]) / RAW).read_text()
        except OSError as error:
            raise ConfigError(f"config key 'data.root': its files cannot be read ({error.strerror})") from None
    made = Made(producer.name, producer.version, keys_of(producer, flat), raw, (), inputs)
    if producer.trained:
        return _stage(made, flat[f"{producer.name}.train.learning_rate"], folder)
    return (_evaluation if producer.name == "evaluation" else _column)(content_of(made), folder)


def producers(real: Any, config: Any) -> dict[str, Producer]:
    """Those of a config, with stubs as makers."""

    def stub(one: Producer) -> Producer:
        raised = dataclasses.replace(one, version=one.version + VERSIONS.get(one.name, 0))
        return dataclasses.replace(raised, make=functools.partial(_make, raised, config.flat()))

    return {name: stub(one) for name, one in real(config).items()}


def drawn_with(run: Run) -> dict[str, str]:
    """Contents of what drawing reads."""
    names = [*(stage.name for stage in stages.plan(run.config)), "condition", "factors", "vocabulary"]
    return {name: read(run.artefact(name)) for name in names}


def _sample(run: Run, asked: Any, *others: Any) -> list[pathlib.Path]:
    path = run.workdir / "samples" / "0.json"
    write_json(path, drawn_with(run))
    return [path]


def _export(run: Run, prompt: str) -> pathlib.Path:
    write_json(run.workdir / "export" / "0.json", drawn_with(run))
    return run.workdir / "export"


def _collect(run: Run) -> dict[str, str]:
    _, origin = summary.results(run)
    told = told_of(origin["estimates"])
    summary._curves(run, "denoiser")
    return {name: told if name == "evaluation" else read(run.artefact(name)) for name in run.producers}


@contextlib.contextmanager
def stubs() -> Iterator[None]:
    """All that would compute does not, while the block runs."""
    with contextlib.ExitStack() as stack:
        patch = lambda *what: stack.enter_context(mock.patch.object(*what))
        patch(artefacts, "producers", functools.partial(producers, artefacts.producers))
        patch(capacity, "check", lambda run, counts: None)
        patch(sample, "sample_request", _sample)
        patch(export, "export", _export)
        patch(summary, "collect", _collect)
        patch(summary, "write_report", lambda path, reports: write_json(path, reports[0]))
        yield
