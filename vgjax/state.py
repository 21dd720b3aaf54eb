"""What one stage's training carries from step to step."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

# Cuts the learning rate to a tenth at the sixth validation in a row without progress, however small; one of the two
# tolerances has to be positive.
PLATEAU = optax.contrib.reduce_on_plateau(factor=0.1, patience=6, rtol=0.0, atol=float(jnp.finfo(jnp.float32).tiny))


@flax.struct.dataclass
class TrainState:
    """All of it is saved in a checkpoint; randomness is a function of (seed, step) and needs no entry.

    Attributes:
      step: optimiser steps taken, int32 scalar.
      model_state: other collections than `params` that training moves (batch statistics), possibly empty.
      ema: moving average of params; empty where it is off.
      plateau: optax's state of the schedule "plateau": best validation score, validations since, and the scale of the
        learning rate; stays as it begins in the other schedules.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    ema: Any
    plateau: optax.contrib.ReduceLROnPlateauState


def create(params: Any, model_state: Any, tx: optax.GradientTransformation, ema_decay: float) -> TrainState:
    """The state before the first step."""
    ema = jax.tree.map(jnp.copy, params) if ema_decay else {}
    return TrainState(jnp.int32(0), params, model_state, tx.init(params), ema, PLATEAU.init(jnp.float32(0.0)))


def apply_gradients(
    state: TrainState, grads: Any, model_state: Any, tx: optax.GradientTransformation, ema_decay: float
) -> TrainState:
    """One optimiser step. The moving average warms up as (1 + step) / (10 + step), so it forgets the start."""
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda u: u * state.plateau.scale.astype(u.dtype), updates)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema_decay:
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = optax.incremental_update(params, ema, 1.0 - decay)
    return TrainState(state.step + 1, params, model_state, opt_state, ema, state.plateau)


def after_validation(state: TrainState, score: float) -> TrainState:
    """Notes a validation score (lower is better), for the schedule "plateau"."""
    _, plateau = jax.jit(PLATEAU.update)({}, state.plateau, value=score)
    return dataclasses.replace(state, plateau=plateau)


def largest(state: TrainState) -> jax.Array:
    """Largest absolute number in what a checkpoint keeps, but for the plateau's; not finite where any is not."""
    return optax.tree.norm((state.params, state.model_state, state.opt_state, state.ema), ord="inf")


def final_params(state: TrainState) -> Any:
    """The weights that everything after training uses: the moving average where there is one."""
    return state.ema or state.params
