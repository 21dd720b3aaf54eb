"""What a stage is: functions and data for the one training loop."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from vgjax.config import Config, Training
from vgjax.context import Context
from vgjax.data.records import Rows, Worded

Terms = dict[str, jax.Array]
Batch = dict[str, jax.Array]
Loss = Callable[[Any, Any, Any, Batch, jax.Array], tuple[Terms, Any]]


class Stage(abc.ABC):
    """One trained stage; its parameters, with the collections that training moves, are what it exports.

    Attributes:
      name: of the stage, its artefact and its config group.
      columns: that its rows are joined from.
      worded: fields that hold something of each of a picture's captions, where a row is of one caption.
      training: steps, batch size, optimiser.
      weights: factor of each term of the loss; terms without one are logged only.
      rare: terms that are not there in every step.
      frozen: variables of earlier stages that loss and validate read.
      small: its network is so small that one device trains it sooner than several, and its rows lie in memory.
    """

    name: str
    columns: tuple[str, ...]
    worded: tuple[str, ...] = ()
    training: Training
    weights: dict[str, float]
    rare: frozenset[str] = frozenset()
    frozen: Any = None
    small: bool = False

    def __init__(self, context: Context):
        self._context, self._config = context, context.config
        self.training = getattr(context.config, self.name).train

    @abc.abstractmethod
    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Fresh (params, model_state)."""

    def pretrained(self) -> tuple[Any, Any] | None:
        """(params, model_state) from elsewhere, which are taken as they are in the place of training."""
        return None

    @abc.abstractmethod
    def loss(self, params: Any, model_state: Any, frozen: Any, batch: Batch, key: jax.Array) -> tuple[Terms, Any]:
        """Terms, each (B,) or a scalar, and the new model_state."""

    def loss_at(self, step: int) -> Loss:
        """What training minimises in a step, counted from 0: `loss`, or a rare one that is compiled beside it."""
        return self.loss

    @abc.abstractmethod
    def validate(self, params: Any, model_state: Any, frozen: Any, batch: Batch, key: jax.Array) -> Terms:
        """Values (B,) by name, among them "score": lower is better."""

    def source(self, split: str) -> Rows:
        """The rows of a split."""
        rows = self._context.rows(self.columns, split)
        return Worded(rows, self.worded) if self.worded else rows

    @abc.abstractmethod
    def example(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        """The arrays of one row."""


class StageSpec(NamedTuple):
    """A stage of a config's plan.

    Attributes:
      make: the stage, on artefacts that are there.
      check: reads the files of weights that the stage will need; ConfigError where one cannot be used.
      needs: stages that must be trained before.
      artefacts: what else it is made from: pictures, derived columns, the fitted condition.
      keys: config keys that decide it.
      files: of weights that it reads.
    """

    name: str
    make: Callable[[Context], Stage]
    needs: tuple[str, ...]
    artefacts: tuple[str, ...]
    keys: tuple[str, ...]
    check: Callable[[Config], Any] = lambda config: None
    files: Callable[[Config], Sequence[str]] = lambda config: ()
