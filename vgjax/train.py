"""The one training loop, for every stage: mesh, data, state, restore, step, log, validate, save; read top to bottom."""

import contextlib
import dataclasses
import functools
import json
import logging
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors import SafetensorError
from tensorboardX import SummaryWriter
from tqdm import tqdm

from vgjax import checkpoint, optim, parallel, seeds
from vgjax.atomic import read_regular, write_json, write_text
from vgjax.checkpoint import Checkpoints
from vgjax.config import Config, ConfigError
from vgjax.context import VARIABLES, Context, Producer
from vgjax.data.stream import ordered_batches, training_batches
from vgjax.provenance import fingerprint, peak_rss_mb
from vgjax.stages.base import Loss, Stage, Terms
from vgjax.state import TrainState, after_validation, apply_gradients, create, final_params, largest
from vgjax.store import NOT_FINITE, UNREADABLE

LOG, DONE = "log.jsonl", "done.json"


def train_step(
    stage: Stage,
    tx: optax.GradientTransformation,
    base_key: jax.Array,
    loss: Loss,
    state: TrainState,
    frozen: Any,
    batch: dict[str, jax.Array],
) -> tuple[TrainState, Terms]:
    """One optimiser step; its randomness is fold_in(base_key, step): a restored state goes on as if never stopped."""
    key = jax.random.fold_in(base_key, state.step)

    def total(params: Any) -> tuple[jax.Array, tuple[Terms, Any]]:
        terms, model_state = loss(params, state.model_state, frozen, batch, key)
        means = {name: term.mean() for name, term in terms.items()}
        weighted = [
            weight * means[name]
            for name, weight in stage.weights.items()
            if weight and name not in stage.rare - set(means)
        ]
        return sum(weighted[1:], weighted[0]), (means, model_state)

    (value, (means, model_state)), grads = jax.value_and_grad(total, has_aux=True)(state.params)
    norm = optax.tree.norm(grads)
    # One that is not finite leaves no weight finite, for good: seen at the log and before each save, no step waits.
    scale = jnp.where(jnp.isfinite(value) & jnp.isfinite(norm), state.plateau.scale, jnp.nan)
    state = dataclasses.replace(state, plateau=state.plateau._replace(scale=scale))
    state = apply_gradients(state, grads, model_state, tx, stage.training.ema_decay)
    return state, {"loss": value, "gradient_norm": norm, **means}


def train(context: Context, stage: Stage, folder: pathlib.Path) -> dict[str, Any]:
    """Trains a stage to its end, from the latest checkpoint in the folder where there is one, and exports it there.

    Returns the exported variables' fingerprint and step, seconds and memory.

    Raises:
      ConfigError: a loss, gradient, weight or validation score is not finite; the last checkpoint, which is, stays.
    """
    if done := _finished(folder):
        return done
    if pretrained := stage.pretrained():
        return _export(folder, stage.name, *pretrained, step=0, wall_s=0.0)
    c, mesh, started = stage.training, parallel.mesh_of(context.mesh, stage.small), time.monotonic()
    seed_for = lambda use: seeds.derive(context.config.seed, stage.name, use)

    # ---- state: born on its shardings, never materialised whole
    tx = optim.optimizer(c)
    create_state = lambda key: create(*stage.init(key), tx, c.ema_decay)
    placed = parallel.placed(jax.eval_shape(create_state, jax.random.key(0)), mesh)
    places = jax.tree.map(lambda a: a.sharding, placed)
    frozen = jax.device_put(stage.frozen, parallel.shardings(stage.frozen, mesh))

    # ---- data and step
    data = training_batches(stage.source("train"), stage.example, c.batch_size, seed_for("order"), stage.small)
    one_step = functools.partial(train_step, stage, tx, seeds.key_of(seed_for("train")))
    jitted = jax.jit(one_step, static_argnums=0, donate_argnums=1, out_shardings=(places, None))
    step_fn = parallel.few_in_flight(parallel.fitting(jitted, f"{stage.name}.train.batch_size", mesh.size), mesh)
    validate, greatest = Validation(mesh, stage, seeds.key_of(seed_for("validation"))), jax.jit(largest)

    with jax.set_mesh(mesh), Checkpoints(folder / "checkpoints") as saved, Log(folder, stage, saved) as log:
        # ---- restore
        step = saved.latest() or 0
        if step:
            state, position = saved.restore(step, placed)
            data.set_state(position)
        else:
            state = jax.jit(create_state, out_shardings=places)(seeds.key_of(seed_for("init")))
        log.start(step)
        while step < c.steps:
            # ---- step
            waited = time.monotonic()
            rows = next(data)
            waited = time.monotonic() - waited
            state, terms = step_fn(stage.loss_at(step), state, frozen, parallel.to_global(rows, mesh))
            step += 1
            log.step(step, terms, waited)
            # ---- validate and save
            if step % c.checkpoint_every_steps == 0 or step == c.steps:
                scores = validate(state, frozen)
                if c.schedule == "plateau":
                    state = after_validation(state, scores["score"])
                log.validation(step, scores, float(greatest(state)))
                saved.save(step, state, data.get_state(), scores["score"])
        # ---- export
        best = (saved.best() or step) if c.keep == "best" else step
        if best != step:
            state, _ = saved.restore(best, placed)
    data.close()
    wall_s = time.monotonic() - started + log.seconds_before
    return _export(folder, stage.name, final_params(state), state.model_state, best, wall_s)


def producer(
    name: str,
    stage: Callable[[Context], Stage],
    keys: Sequence[str],
    needs: Iterable[str],
    files: Callable[[Config], Sequence[str]] = lambda config: (),
) -> Producer:
    """How a stage is made that config group `name` says how to train; the arguments are `Producer`'s."""
    make = lambda context, folder: train(context, stage(context), folder)
    logging_key, loose = f"{name}.train.log_every_steps", (LOG, "tensorboard/*")
    keys = (*keys, f"-{logging_key}")
    return Producer(name, make, keys, tuple(needs), (logging_key,), files, trained=True, collective=True, loose=loose)


def _finished(folder: pathlib.Path) -> dict[str, Any] | None:
    """What a training noted that was killed between its end and the artefact's publication, if its export is whole."""
    if not (folder / DONE).exists():
        return None
    try:
        done = json.loads(read_regular(folder / DONE))
        if fingerprint(checkpoint.load_export(folder / VARIABLES)) == done["fingerprint"]:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # the kill may have come before or within this
            return done
    except (*UNREADABLE, SafetensorError):
        pass
    logging.warning("%s: the export of a finished training is damaged or gone: the stage is trained again", folder)
    return None


def _export(folder: pathlib.Path, name: str, params: Any, model_state: Any, step: int, wall_s: float) -> dict[str, Any]:
    """Writes the stage's variables; its checkpoints have served. ConfigError where any of these is not finite."""
    exported = parallel.gather({"params": params, **model_state})
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(exported)):
        raise ConfigError(f"stage '{name}': its weights hold numbers that are not finite: name other {name}.weights")
    done = {"fingerprint": fingerprint(exported), "step": step, "wall_s": wall_s, "peak_rss_mb": peak_rss_mb()}
    done |= {"not_finite": earlier} if (earlier := rates_left(folder)) else {}
    if parallel.is_main():
        checkpoint.save_export(folder / VARIABLES, exported)
        write_json(folder / DONE, done)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return done


class Validation:
    """Means of a stage's validation values over its whole validation split, with the weights that would be exported."""

    def __init__(self, mesh: jax.sharding.Mesh, stage: Stage, base_key: jax.Array):
        self._mesh, self._stage, self._base_key = mesh, stage, base_key
        self._step = jax.jit(stage.validate)

    def __call__(self, state: TrainState, frozen: Any) -> dict[str, float]:
        stage, count = self._stage, 0
        totals: dict[str, float] = {}
        batches = ordered_batches(stage.source("validation"), stage.example, stage.training.batch_size)
        for number, (rows, valid) in enumerate(batches):
            mine = jax.tree.map(lambda a: a[parallel.process_rows(len(a))], rows)
            batch = parallel.to_global(mine, self._mesh)
            key = jax.random.fold_in(self._base_key, number)  # each batch has draws of its own, the same at each call
            values = self._step(final_params(state), state.model_state, frozen, batch, key)
            for name, value in parallel.gather(values).items():
                totals[name] = totals.get(name, 0.0) + float(np.sum(value[:valid]))
            count += valid
        return {name: total / count for name, total in totals.items()}


class Log(contextlib.AbstractContextManager["Log"]):
    """Progress bar, JSONL and TensorBoard rows of one stage; the first process alone writes."""

    def __init__(self, folder: pathlib.Path, stage: Stage, saved: Checkpoints):
        self._stage, self._folder, self._path, self._saved = stage, folder, folder / LOG, saved
        self._writes = parallel.is_main()
        self._board = SummaryWriter(str(folder / "tensorboard"), write_to_disk=self._writes)
        self.seconds_before = 0.0

    def __exit__(self, *error: object) -> None:
        self._bar.close()
        self._board.close()

    def start(self, step: int) -> None:
        """Drops rows after `step`, which a killed run wrote past its last checkpoint and this one writes again."""
        kept = [row for row in read_log(self._path) if row["step"] <= step]
        if self._writes:
            write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self.seconds_before = max((row["elapsed_s"] for row in kept), default=0.0)
        total, name = self._stage.training.steps, self._stage.name
        self._bar = tqdm(total=total, initial=step, desc=f"stage {name}", unit="step", mininterval=1.0)
        self._began, self._since, self._waited = time.monotonic(), time.monotonic(), 0.0

    def step(self, step: int, terms: Terms, waited: float) -> None:
        """Counts a step; every `log_every_steps`, and after a rare loss, fetches its values and writes a row."""
        self._waited += waited
        self._bar.update()
        if step % self._stage.training.log_every_steps and self._stage.loss_at(step - 1) == self._stage.loss:
            return
        values = {name: float(value) for name, value in jax.device_get(terms).items()}
        self._refuse(step, {name: values[name] for name in ("loss", "gradient_norm")})
        now = time.monotonic()
        share = self._waited / max(now - self._since, 1e-9)
        self._since, self._waited = now, 0.0
        self._bar.set_postfix(loss=f"{values['loss']:.4f}", data_wait=f"{share:.0%}")
        self._write(step, "train", {**values, "data_wait_share": share})

    def _refuse(self, step: int, values: dict[str, float]) -> None:
        """ConfigError where a value is not finite; notes the learning rate that led there, for a lower one to go on."""
        for name, value in values.items():
            if not np.isfinite(value):
                rate, kept = self._stage.training.learning_rate, self._saved.latest() or 0
                if self._writes:
                    write_json(self._folder / NOT_FINITE, {**rates_left(self._folder), str(rate): kept})
                raise ConfigError(
                    f"stage '{self._stage.name}': a {name} is {value} by step {step}: lower config key"
                    f" '{self._stage.name}.train.learning_rate', which is {rate}, and training goes on from step {kept}"
                )

    def validation(self, step: int, scores: dict[str, float], most: float) -> None:
        """Writes a row; ConfigError where the score, or `most`, the largest number in the state, is not finite."""
        self._refuse(step, {"weight": most, "validation score": scores["score"]})
        self._write(step, "validation", scores)

    def _write(self, step: int, kind: str, values: dict[str, float]) -> None:
        elapsed = self.seconds_before + time.monotonic() - self._began
        row = {"step": step, "kind": kind, "elapsed_s": elapsed, **values}
        if self._writes:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)


def rates_left(folder: pathlib.Path) -> dict[str, int]:
    """Learning rates that led to what is not finite, each with the step up to which the training kept it."""
    path = folder / NOT_FINITE
    try:
        return json.loads(read_regular(path)) if path.exists() else {}
    except ValueError:
        raise ConfigError(f"'{path}' is damaged: delete it and run again") from None


def read_log(path: pathlib.Path) -> list[dict[str, Any]]:
    """Rows of a JSONL log; those that a kill cut short or that are damaged are left out."""
    rows = []
    for line in read_regular(path).splitlines() if path.exists() else ():
        with contextlib.suppress(*UNREADABLE):
            row = json.loads(line)
            rows += [row] if {"step", "kind", "elapsed_s"} <= row.keys() else []
    return rows
