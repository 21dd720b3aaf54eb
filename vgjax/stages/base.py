"""What a stage is: functions and data for the one training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from vgjax.config import Config
from vgjax.context import Run
from vgjax.data.records import Rows
from vgjax.schema import Training

Terms = dict[str, jax.Array]


class Stage(Protocol):
    """One trained stage.

    Attributes:
      name: of the stage, its folder and its config group.
      training: steps, batch size, optimiser.
      weights: factor of each term of the loss; terms without one are logged only.
      frozen: variables of earlier stages that loss and validate read.
    """

    @property
    def name(self) -> str: ...

    @property
    def training(self) -> Training: ...

    @property
    def weights(self) -> Mapping[str, float]: ...

    @property
    def frozen(self) -> Any: ...

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Fresh (params, model_state)."""
        ...

    def loss(
        self, params: Any, model_state: Any, frozen: Any, batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[Terms, Any]:
        """Terms, each (B,) or a scalar, and the new model_state."""
        ...

    def validate(self, params: Any, model_state: Any, frozen: Any, batch: dict[str, jax.Array]) -> Terms:
        """Values (B,) by name, among them "score": lower is better."""
        ...

    def source(self, split: str) -> Rows:
        """The rows of a split."""
        ...

    def example(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        """The arrays of one row."""
        ...

    def finish(self, params: Any, model_state: Any) -> Any:
        """Exported variables; writes what later stages read."""
        ...

    def pretrained(self) -> tuple[Any, Any] | None:
        """(params, model_state) from elsewhere, which are finished as they are in the place of training."""
        ...


class StageSpec(NamedTuple):
    """A stage of a config's plan.

    Attributes:
      name: of the stage.
      make: the stage on a run whose earlier stages are trained.
      check: reads the files of weights that the stage will need; ConfigError where one cannot be used.
      needs: stages that must be trained before.
    """

    name: str
    make: Callable[[Run], Stage]
    check: Callable[[Config], Any]
    needs: tuple[str, ...]
