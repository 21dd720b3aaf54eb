"""Stage 2, the default: a flow a channel learns which factors a picture with a given text (or mask) may have."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax import build, pipeline
from vgjax.conditions.factors import WORDED
from vgjax.context import Context
from vgjax.data.records import InMemory, Rows, Worded
from vgjax.stages.base import Batch, Stage, Terms
from vgjax.stages.disentangler import paired
from vgjax.types import CHANNELS, Factors


class TextToFactors(Stage):
    """The stage on embeddings of captions, mask coverages and whitened factors of pictures."""

    name, columns = "disentangler", ("wordings", "factors")
    worded = WORDED
    weights = dict.fromkeys(CHANNELS, 1.0)

    def __init__(self, context: Context):
        super().__init__(context)
        self._flows = build.factor_flows(context.config)

    @functools.cached_property
    def frozen(self) -> Any:
        """The principal components that the flows work in."""
        return {"basis": self._context.variables("condition")}

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        c, two = self._config, jnp.ones(2, bool)
        given = {"text": jnp.zeros((2, c.text_encoder.width)), "mask": jnp.zeros((2, build.mask_cells(c) ** 2))}
        params = {}
        for i, (name, flow) in enumerate(self._flows.items()):
            seen = {k: v for k, v in given.items() if k == "text" or name == "anatomy"}
            variables = flow.init(
                jax.random.fold_in(key, i), jnp.zeros((2, flow.features)), jnp.zeros(2), seen, dict.fromkeys(seen, two)
            )
            params[name] = variables["params"]
        return params, {}

    def loss(self, params: Any, model_state: Any, frozen: Any, batch: Batch, key: jax.Array):
        c = self._config.disentangler
        keys = jax.random.split(key, 4)
        if c.word_dropout:
            heard = lambda k, x: x * jax.random.bernoulli(k, 1 - c.word_dropout, x.shape)
            batch = batch | {n: heard(jax.random.fold_in(keys[3], i), batch[n]) for i, n in enumerate(self.worded)}
        drop = lambda k, rate: ~jax.random.bernoulli(k, rate, (len(batch["mask"]),))
        keep = {"text": drop(keys[0], c.text_dropout), "mask": drop(keys[1], c.mask_dropout)}
        return self._errors(params, frozen, batch, keep, keys[2]), {}

    def validate(self, params: Any, model_state: Any, frozen: Any, batch: Batch, key: jax.Array) -> Terms:
        """Errors for text alone."""
        kept = jnp.ones(len(batch["mask"]), bool)
        errors = self._errors(params, frozen, batch, {"text": kept, "mask": ~kept}, key)
        return {"score": errors["anatomy"] + errors["modality"], **errors}

    def _errors(self, params: Any, frozen: Any, batch: Batch, keep: dict[str, jax.Array], key: jax.Array) -> Terms:
        factors = Factors(anatomy_BggK=batch["anatomy"], modality_BZ=batch["modality"])
        errors = {}
        for i, (name, parts_BM) in enumerate(pipeline.to_components(factors, frozen["basis"]).items()):
            given = {"text": batch[f"{name}_text"]} | ({"mask": batch["mask"]} if name == "anatomy" else {})
            flow = build.Model(self._flows[name], {"params": params[name]})
            kept = {k: keep[k] for k in given}
            errors[name] = pipeline.factor_flow_errors(flow, parts_BM, given, kept, jax.random.fold_in(key, i))
        return errors

    def source(self, split: str) -> Rows:
        return Worded(InMemory(paired(self._context, self.columns, split)), self.worded)

    def example(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        return {name: row[name].astype(np.float32) for name in (*self.worded, *CHANNELS, "mask")}
