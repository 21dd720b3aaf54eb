"""Stage 2: text embeddings learn to predict the factors that stage 1 found in the pictures."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax import losses, pipeline, weights
from vgjax.config import Config
from vgjax.data.records import Rows
from vgjax.stages.stage import Run, Stage, Terms


class PermutedTargets:
    """Rows whose target fields come from another row: the control experiment that must bring accuracy to chance.

    Args:
      rows: embedding, anatomy, modality.
      fields: which of them to take from the permuted row.
    """

    def __init__(self, rows: Rows, fields: list[str], seed: int):
        self._rows, self._fields = rows, fields
        self._order = np.random.default_rng(seed).permutation(len(rows))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        other = self._rows[int(self._order[row])]
        return {**self._rows[row], **{name: other[name] for name in self._fields}}


def make(run: Run) -> Stage:
    """The stage on this run's text embeddings and factors."""
    config, c = run.config, run.config.disentangler
    module = pipeline.make_disentangler(config)

    def init(key: jax.Array) -> tuple[Any, Any]:
        variables = module.init(key, jnp.zeros((2, config.text_encoder.width)), train=False)
        return variables["params"], {}

    def loss(params: Any, model_state: Any, frozen: Any, batch: dict[str, jax.Array], key: jax.Array):
        return terms(params, batch, train=True, rngs={"dropout": key}), {}

    def terms(params: Any, batch: dict[str, jax.Array], **how: Any) -> Terms:
        outputs = pipeline.Model(module, {"params": params})(batch["embedding"], **how)
        return losses.text_terms(outputs, (batch["anatomy"], batch["modality"]), batch["embedding"], c.alignment)

    def validate(params: Any, model_state: Any, frozen: Any, batch: dict[str, jax.Array]) -> Terms:
        values = terms(params, batch, train=False)
        return {"score": values["anatomy"] + values["modality"], **values}

    def source(split: str):
        rows = run.rows(["text", "factors"], split, ["embedding", "anatomy", "modality"])
        shuffled = {"anatomy": c.shuffle_anatomy_targets, "modality": c.shuffle_modality_targets}
        fields = [name for name, on in shuffled.items() if on]
        return PermutedTargets(rows, fields, config.seed) if fields else rows

    pretrained = load_pretrained(config)
    return Stage(
        name="disentangler",
        training=c.train,
        init=init,
        loss=loss,
        weights={"anatomy": 1.0, "modality": 1.0, "rebuild": c.weight_reconstruction},
        validate=validate,
        keep_best=True,
        frozen=None,
        source=source,
        to_example=lambda row: {name: row[name].astype(np.float32) for name in ("embedding", "anatomy", "modality")},
        finish=lambda params, model_state: {"params": params},
        pretrained=(pretrained["params"], {}) if pretrained else None,
    )


def load_pretrained(config: Config) -> dict[str, Any] | None:
    """Variables from the file that config key `disentangler.weights` names in the place of training.

    Raises:
      ConfigError: it cannot be read, or does not fit the config's sizes.
    """
    source = config.disentangler.weights
    inputs = (jnp.zeros((1, config.text_encoder.width)), False)
    module = pipeline.make_disentangler(config)
    return weights.into(module, inputs, "text_disentangler", source, "disentangler.weights") if source else None
