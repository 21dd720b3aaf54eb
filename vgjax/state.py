"""What one stage's training carries from step to step."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

PLATEAU_PATIENCE = 5
PLATEAU_FACTOR = 0.1


@flax.struct.dataclass
class TrainState:
    """All of it is saved in a checkpoint; randomness is a function of (seed, step) and needs no entry.

    Attributes:
      step: optimiser steps taken, int32 scalar.
      params: trained parameters.
      model_state: other collections that training moves (batch statistics), possibly empty.
      opt_state: optax state.
      ema: moving average of params; empty where it is off.
      plateau: best validation score so far, evaluations since, and the learning-rate factor.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    ema: Any
    plateau: dict[str, jax.Array]


def create(params: Any, model_state: Any, tx: optax.GradientTransformation, ema_decay: float) -> TrainState:
    """The state before the first step."""
    plateau = {"best": jnp.float32(jnp.inf), "since": jnp.int32(0), "factor": jnp.float32(1.0)}
    ema = jax.tree.map(jnp.copy, params) if ema_decay else {}
    return TrainState(jnp.int32(0), params, model_state, tx.init(params), ema, plateau)


def apply_gradients(
    state: TrainState, grads: Any, model_state: Any, tx: optax.GradientTransformation, ema_decay: float
) -> TrainState:
    """One optimiser step. The moving average warms up as (1 + step) / (10 + step), so it forgets the start."""
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda u: u * state.plateau["factor"].astype(u.dtype), updates)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema_decay:
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = optax.incremental_update(params, ema, 1.0 - decay)
    return dataclasses.replace(
        state, step=state.step + 1, params=params, model_state=model_state, opt_state=opt_state, ema=ema
    )


def after_validation(state: TrainState, score: float, reduce_on_plateau: bool) -> TrainState:
    """Notes a validation score (lower is better); cuts the learning rate after `PLATEAU_PATIENCE` without progress."""
    best, since, factor = (float(state.plateau[k]) for k in ("best", "since", "factor"))
    since = 0 if score < best else since + 1
    if reduce_on_plateau and since > PLATEAU_PATIENCE:
        since, factor = 0, factor * PLATEAU_FACTOR
    place = lambda name, value: jax.device_put(
        jnp.asarray(value, state.plateau[name].dtype), state.plateau[name].sharding
    )
    values = dict(best=min(best, score), since=int(since), factor=factor)
    return dataclasses.replace(state, plateau={name: place(name, value) for name, value in values.items()})


def final_params(state: TrainState) -> Any:
    """The weights that everything after training uses: the moving average where there is one."""
    return state.ema or state.params
