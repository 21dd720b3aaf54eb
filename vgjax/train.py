"""The one training loop, for every stage: mesh, data, state, restore, step, log, validate, save; read top to bottom."""

from __future__ import annotations

import functools
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np
import optax
from tensorboardX import SummaryWriter
from tqdm import tqdm

from vgjax import checkpoint, optim, parallel
from vgjax.checkpoint import Checkpoints
from vgjax.context import Run
from vgjax.data.records import write_json
from vgjax.data.stream import ordered_batches, training_batches
from vgjax.evaluation.metrics import fingerprint, peak_rss_mb
from vgjax.stages.base import Stage, Terms
from vgjax.state import TrainState, after_validation, apply_gradients, create, final_params

# What stages were called when their initial parameters were first drawn.
SEED_NAMES = {"disentangler": "text", "denoiser": "fusion"}


def train_step(
    stage: Stage,
    tx: optax.GradientTransformation,
    seed: int,
    state: TrainState,
    frozen: Any,
    batch: dict[str, jax.Array],
) -> tuple[TrainState, Terms]:
    """One optimiser step; its randomness is fold_in(seed, step), so a restored state goes on as if never stopped."""
    key = jax.random.fold_in(jax.random.key(seed), state.step)

    def total(params: Any) -> tuple[jax.Array, tuple[Terms, Any]]:
        terms, model_state = stage.loss(params, state.model_state, frozen, batch, key)
        means = {name: term.mean() for name, term in terms.items()}
        weighted = [weight * means[name] for name, weight in stage.weights.items() if weight]
        return sum(weighted[1:], weighted[0]), (means, model_state)

    (loss, (means, model_state)), grads = jax.value_and_grad(total, has_aux=True)(state.params)
    state = apply_gradients(state, grads, model_state, tx, stage.training.ema_decay)
    return state, {"loss": loss, "gradient_norm": optax.tree.norm(grads), **means}


def finished(run: Run, stage: str) -> bool:
    """Whether the stage was trained to its end."""
    return run.done(stage).exists()


def train(run: Run, stage: Stage) -> Any:
    """Trains a stage to its end, from its latest checkpoint where there is one, and returns the exported variables.

    Raises:
      FloatingPointError: the loss is not finite.
    """
    if pretrained := stage.pretrained():
        return _export(run, stage, *pretrained, step=0, wall_s=0.0)
    folder, c, seed = run.workdir / "stages" / stage.name, stage.training, run.config.seed
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)

    # ---- state: born on its shardings, never materialised whole
    tx = optim.optimizer(c)
    key = jax.random.fold_in(jax.random.key(seed), sum(SEED_NAMES.get(stage.name, stage.name).encode()))
    create_state = lambda key: create(*stage.init(key), tx, c.ema_decay)
    shapes = jax.eval_shape(create_state, key)
    places = parallel.shardings(shapes, run.mesh)
    placed = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, places)
    frozen = jax.device_put(stage.frozen, parallel.shardings(stage.frozen, run.mesh))

    # ---- data and step
    data = training_batches(stage.source("train"), stage.example, c.batch_size, seed)
    step_fn = jax.jit(functools.partial(train_step, stage, tx, seed), donate_argnums=0, out_shardings=(places, None))
    validate = Validation(run, stage)

    with jax.set_mesh(run.mesh), Checkpoints(folder / "checkpoints") as saved, Log(run.workdir, stage) as log:
        # ---- restore
        step = saved.latest() or 0
        if step:
            state, position = saved.restore(step, placed)
            data.set_state(position)
        else:
            state = jax.jit(create_state, out_shardings=places)(key)
        log.start(step)
        while step < c.steps:
            # ---- step
            waited = time.monotonic()
            rows = next(data)
            waited = time.monotonic() - waited
            state, terms = step_fn(state, frozen, parallel.to_global(rows, run.mesh))
            step += 1
            log.step(step, terms, waited)
            # ---- validate and save
            if step % c.checkpoint_every_steps == 0 or step == c.steps:
                scores = validate(state, frozen)
                state = after_validation(state, scores["score"], c.schedule == "plateau")
                log.validation(step, scores)
                saved.save(step, state, data.get_state(), scores["score"])
        # ---- export
        best = (saved.best() or step) if c.keep == "best" else step
        if best != step:
            state, _ = saved.restore(best, placed)
    data.close()
    wall_s = time.monotonic() - started + log.seconds_before
    return _export(run, stage, final_params(state), state.model_state, best, wall_s)


def _export(run: Run, stage: Stage, params: Any, model_state: Any, step: int, wall_s: float) -> Any:
    """Finishes the stage, writes its variables, and only then that it is done."""
    exported = jax.tree.map(np.asarray, stage.finish(*jax.device_get((params, model_state))))
    run.export(stage.name).parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save_export(run.export(stage.name), exported)
    record = {"fingerprint": fingerprint(exported), "step": step, "wall_s": wall_s, "peak_rss_mb": peak_rss_mb()}
    write_json(run.done(stage.name), record)
    return exported


class Validation:
    """Means of a stage's validation values over its whole validation split, with the weights that would be exported."""

    def __init__(self, run: Run, stage: Stage):
        self._run, self._stage = run, stage
        self._step = jax.jit(stage.validate)

    def __call__(self, state: TrainState, frozen: Any) -> dict[str, float]:
        stage, count = self._stage, 0
        totals: dict[str, float] = {}
        for rows, valid in ordered_batches(stage.source("validation"), stage.example, stage.training.batch_size):
            values = self._step(
                final_params(state), state.model_state, frozen, parallel.to_global(rows, self._run.mesh)
            )
            for name, value in jax.device_get(values).items():
                totals[name] = totals.get(name, 0.0) + float(np.sum(value[:valid]))
            count += valid
        return {name: total / count for name, total in totals.items()}


class Log:
    """Progress bar, JSONL and TensorBoard rows of one stage."""

    def __init__(self, workdir: pathlib.Path, stage: Stage):
        self._stage = stage
        self._path = workdir / "logs" / f"{stage.name}.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._board = SummaryWriter(str(workdir / "tensorboard" / stage.name))
        self.seconds_before = 0.0

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
        self._board.close()

    def start(self, step: int) -> None:
        """Drops rows after `step`, which a killed run wrote past its last checkpoint and this one writes again."""
        rows = read_log(self._path)
        kept = [row for row in rows if row["step"] <= step]
        self._path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self.seconds_before = max((row["elapsed_s"] for row in kept), default=0.0)
        total, name = self._stage.training.steps, self._stage.name
        self._bar = tqdm(total=total, initial=step, desc=f"stage {name}", unit="step", mininterval=1.0)
        self._began, self._since, self._waited = time.monotonic(), time.monotonic(), 0.0

    def step(self, step: int, terms: Terms, waited: float) -> None:
        """Counts a step; every `log_every_steps` fetches its values and writes a row."""
        self._waited += waited
        self._bar.update()
        if step % self._stage.training.log_every_steps:
            return
        values = {name: float(value) for name, value in jax.device_get(terms).items()}
        if not np.isfinite(values["loss"]):
            raise FloatingPointError(
                f"stage {self._stage.name}: the loss is {values['loss']} at step {step}; lower its train.learning_rate"
            )
        now = time.monotonic()
        share = self._waited / max(now - self._since, 1e-9)
        self._since, self._waited = now, 0.0
        self._bar.set_postfix(loss=f"{values['loss']:.4f}", data_wait=f"{share:.0%}")
        self._write(step, "train", {**values, "data_wait_share": share})

    def validation(self, step: int, scores: dict[str, float]) -> None:
        self._write(step, "validation", scores)

    def _write(self, step: int, kind: str, values: dict[str, float]) -> None:
        elapsed = self.seconds_before + time.monotonic() - self._began
        row = {"step": step, "kind": kind, "elapsed_s": elapsed, **values}
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)


def read_log(path: pathlib.Path) -> list[dict[str, Any]]:
    """Rows of a JSONL log; a last line that a kill cut short is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
