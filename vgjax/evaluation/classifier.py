"""A classifier that learns from real and drawn pictures: what usefulness is measured by.

All is fixed beforehand (config group `downstream`): the network, its steps, and how training changes pictures. Every
batch holds as many pictures of each class as of any other, in expectation, however rare it is.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import optax
from flax import linen as nn

from vgjax import build, optim, pipeline, seeds
from vgjax.config import ConfigError, Downstream, Training
from vgjax.evaluation import domain
from vgjax.evaluation.readouts import in_batches
from vgjax.models.layers import dense
from vgjax.models.resnet import ResNet18

CROP = 0.9  # least side of a crop: size may be what tells a class from another
DECAY = 0.05  # of weights, decoupled

State = tuple[Any, Any, optax.OptState]  # parameters, running statistics


class Pool(NamedTuple):
    """Pictures (N, h, w, 3) uint8 of one size, and the place of each one's class (N,)."""

    pictures: np.ndarray
    labels: np.ndarray

    def balanced(self, rng: np.random.Generator, count: int) -> "Pool":
        """`count` of them at random: a class, then one of its pictures."""
        order, (present, of_each) = np.argsort(self.labels, kind="stable"), np.unique(self.labels, return_counts=True)
        chosen = rng.integers(len(present), size=count)
        places = order[(np.cumsum(of_each) - of_each)[chosen] + rng.integers(of_each[chosen])]
        return Pool(self.pictures[places], self.labels[places])


class Network(nn.Module):
    """Pictures in [-1, 1] to logits of `classes` classes."""

    width: int
    classes: int

    @nn.compact
    def __call__(self, image_BHWC: chex.Array, train: bool) -> chex.Array:
        """(B, classes)."""
        return dense(self.classes, name="out")(ResNet18(self.width, name="network")(image_BHWC, train))


class Classifier:
    """A network that is trained any number of times by one compiled step; `symmetries` as in `domain.views`."""

    def __init__(self, config: Downstream, classes: int, symmetries: int):
        self._config, self._symmetries, self._module = config, symmetries, Network(config.width, classes)
        rates = {name: getattr(config, name) for name in ("steps", "batch_size", "learning_rate")}
        self._tx = optim.optimizer(Training(**rates, weight_decay=DECAY, warmup_steps=config.steps // 20))
        self._init, self._step = jax.jit(self._fresh), jax.jit(self._moved, donate_argnums=0)
        self._apply = jax.jit(self._probabilities)

    def __call__(
        self, real: Pool, drawn: Pool, shares: np.ndarray, seed: int, seen: Sequence[Pool]
    ) -> list[np.ndarray]:
        """Trains and returns the probabilities (N, classes) of what is `seen`; `shares`: in each step, that of drawn.

        Raises:
          ConfigError: training came to numbers that are not finite.
        """
        rng, key, size = np.random.default_rng(seed), seeds.key_of(seed), self._config.batch_size
        state = self._init(key, real.pictures[:2])
        for step, share in enumerate(shares):
            either = rng.random(size) < share
            pick = lambda one, other, either=either: np.where(either.reshape(-1, *[1] * (one.ndim - 1)), one, other)
            batch = map(pick, drawn.balanced(rng, size), real.balanced(rng, size))
            state = self._step(state, *batch, jax.random.fold_in(key, step))
        found = [in_batches(functools.partial(self._apply, state), pool.pictures) for pool in seen]
        if not all(np.isfinite(one).all() for one in found):
            rate = self._config.learning_rate
            raise ConfigError(f"config key 'downstream.learning_rate' is {rate}: weights are not finite, so lower it")
        return found

    def _fresh(self, key: jax.Array, image_BHWC: jax.Array) -> State:
        variables = self._module.init(key, pipeline.to_unit_range(image_BHWC, domain.INTENSITY), False)
        params = variables.pop("params")
        return params, variables, self._tx.init(params)

    def _moved(self, state: State, image_BHWC: jax.Array, label_B: jax.Array, key: jax.Array) -> State:
        params, model_state, moments = state
        x = pipeline.to_unit_range(image_BHWC, domain.INTENSITY)
        x = domain.views(key, x, self._symmetries, CROP)

        def loss(params: Any) -> tuple[jax.Array, Any]:
            logits, moved = self._module.apply({"params": params, **model_state}, x, True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, label_B).mean(), moved

        grads, moved = jax.grad(loss, has_aux=True)(params)
        updates, moments = self._tx.update(grads, moments, params)
        return optax.apply_updates(params, updates), moved, moments

    def _probabilities(self, state: State, image_BHWC: jax.Array) -> jax.Array:
        x = pipeline.to_unit_range(image_BHWC, domain.INTENSITY)
        return jax.nn.softmax(build.Model(self._module, {"params": state[0], **state[1]})(x, False))
