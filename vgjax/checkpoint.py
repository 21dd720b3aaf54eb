"""Checkpoints of a stage (Orbax v1) and its final export (safetensors)."""

import contextlib
import json
import logging
import pathlib
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import safetensors.numpy
from orbax.checkpoint import v1 as ocp

from vgjax import parallel
from vgjax.atomic import read_regular, replacing, write_json
from vgjax.state import TrainState
from vgjax.store import UNREADABLE, file_digests

DIGESTS = "digests.json"  # of a checkpoint's files, beside them: Orbax would restore flipped bytes unseen
_policies = ocp.training.preservation_policies


class Checkpoints(contextlib.AbstractContextManager["Checkpoints"]):
    """Training checkpoints in one folder: the latest two and the best by score; damaged ones are deleted, and told."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        if parallel.is_main():
            _delete_damaged(folder)
        parallel.barrier("checkpoints")
        best = _policies.BestN(get_metric_fn=lambda metrics: metrics["score"], reverse=True, n=1)
        context = ocp.Context()
        # Cutting arrays below 1 MiB into a slice a device, for all of them to write, costs more than writing them.
        context.array.saving.min_slice_bytes_for_replica_parallel = 1 << 20
        self._checkpointer = ocp.training.Checkpointer(
            folder.absolute(),
            context=context,
            cleanup_tmp_directories=True,
            preservation_policy=_policies.AnyPreservationPolicy([_policies.LatestN(2), best]),
        )

    def __exit__(self, *error: object) -> None:
        self._checkpointer.close()

    def save(self, step: int, state: TrainState, data: dict[str, Any], score: float) -> None:
        entries = {"state": state, "data": data}
        with _uninterrupted():
            self._checkpointer.save_checkpointables(step, entries, metrics={"score": score}, force=True)
            if parallel.is_main():
                write_json(self._folder / str(step) / DIGESTS, file_digests(self._folder / str(step)))

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return max((c.step for c in self._checkpointer.checkpoints), default=None)

    def best(self) -> int | None:
        """Step of the checkpoint with the lowest validation score."""
        kept = self._checkpointer.checkpoints
        return min(kept, key=lambda c: (c.metrics["score"], c.step)).step if kept else None

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """State (on the shardings of `abstract`) and data position of one step."""
        loaded = self._checkpointer.load_checkpointables(step, {"state": abstract, "data": None})
        return loaded["state"], jax.tree.map(int, loaded["data"])


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """An interrupt waits for the block's end, a second one does not: Orbax's threads would go on, fail and print."""
    handler, came = signal.getsignal(signal.SIGINT), list[Any]()

    def wait(*told: Any) -> None:
        came.append(told)
        signal.signal(signal.SIGINT, handler)

    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if came:
        handler(*came[0])


def _delete_damaged(folder: pathlib.Path) -> None:
    for step in (path for path in folder.glob("*") if path.name.isdigit()):
        try:
            whole = json.loads(read_regular(step / DIGESTS)) == file_digests(step, [DIGESTS])
        except UNREADABLE:  # or there are none: a kill came before they were noted, or while it was being deleted
            whole = False
        if not whole:
            logging.warning("checkpoint %s is damaged and deleted: the newest whole one is gone on with", step)
            shutil.rmtree(step)


def save_export(path: pathlib.Path, variables: Any) -> None:
    """Writes nested variables as one safetensors file, atomically; names are joined by '/'."""
    save_tensors(path, flax.traverse_util.flatten_dict(dict(variables), sep="/"))


def save_tensors(path: pathlib.Path, tensors: Mapping[str, Any]) -> None:
    """Writes named arrays as one safetensors file, atomically."""
    with replacing(path) as part:
        safetensors.numpy.save_file({name: np.asarray(one, order="C") for name, one in tensors.items()}, part)


def load_export(path: pathlib.Path) -> dict[str, Any]:
    """The inverse of `save_export`, as numpy arrays."""
    return flax.traverse_util.unflatten_dict(safetensors.numpy.load_file(path), sep="/")
