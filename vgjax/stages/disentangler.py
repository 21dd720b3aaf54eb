"""Stage 2: text embeddings learn to predict the factors that stage 1 found in the pictures."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax import build, losses, weights
from vgjax.config import Config
from vgjax.context import Context
from vgjax.data.records import InMemory, PermutedFields, Rows
from vgjax.stages.base import Batch, Stage, Terms


class Alignment(Stage):
    """The stage on text embeddings and factors."""

    name, columns, small = "disentangler", ("text", "factors"), True

    def __init__(self, context: Context):
        super().__init__(context)
        self._module = build.disentangler(context.config)
        self.weights = {"anatomy": 1.0, "modality": 1.0, "rebuild": context.config.disentangler.weight_reconstruction}

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        variables = self._module.init(key, jnp.zeros((2, self._config.text_encoder.width)), train=False)
        return variables["params"], {}

    def loss(self, params: Any, model_state: Any, frozen: Any, batch: Batch, key: jax.Array):
        return self._terms(params, batch, train=True, rngs={"dropout": key}), {}

    def validate(self, params: Any, model_state: Any, frozen: Any, batch: Batch, key: jax.Array) -> Terms:
        values = self._terms(params, batch, train=False)
        return {"score": values["anatomy"] + values["modality"], **values}

    def _terms(self, params: Any, batch: Batch, **how: Any) -> Terms:
        outputs = build.Model(self._module, {"params": params})(batch["embedding"], **how)
        targets = (batch["anatomy"], batch["modality"])
        return losses.text_terms(outputs, targets, batch["embedding"], self._config.disentangler.alignment)

    def source(self, split: str) -> Rows:
        return InMemory(paired(self._context, self.columns, split))

    def example(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        return {name: row[name].astype(np.float32) for name in ("embedding", "anatomy", "modality")}

    def pretrained(self) -> tuple[Any, Any] | None:
        return load_pretrained(self._config)


def paired(context: Context, columns: Sequence[str], split: str) -> Rows:
    """Rows of texts and factors, those of some channels permuted where the config asks for that control experiment."""
    rows, c = context.rows(columns, split), context.config.disentangler
    permuted = {"anatomy": c.shuffle_anatomy_targets, "modality": c.shuffle_modality_targets}
    fields = [name for name, on in permuted.items() if on]
    return PermutedFields(rows, fields, context.config.seed) if fields else rows


def load_pretrained(config: Config) -> tuple[Any, Any] | None:
    """Parameters from the file that config key `disentangler.weights` names in the place of training.

    Raises:
      ConfigError: it cannot be read, or does not fit the config's sizes.
    """
    source = config.disentangler.weights
    if not source:
        return None
    module, inputs = build.disentangler(config), (jnp.zeros((1, config.text_encoder.width)), False)
    return weights.into(module, inputs, "text_disentangler", source, "disentangler.weights")["params"], {}
