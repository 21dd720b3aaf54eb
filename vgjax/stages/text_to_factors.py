"""Stage 2, the default: a flow a channel learns which factors a picture with a given text (or mask) may have."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax import build, losses, pipeline
from vgjax.conditions.factors import WORDED
from vgjax.context import Context
from vgjax.data.records import InMemory, Rows, Worded
from vgjax.stages.base import Batch, Stage, Terms
from vgjax.stages.disentangler import paired
from vgjax.types import CHANNELS, Factors

RIDGE = 1e-2  # of the regression that assigns words to channels, in mean squares of an entry


class TextToFactors(Stage):
    """The stage on embeddings of captions, mask coverages and whitened factors of pictures."""

    name, columns = "disentangler", ("wordings", "factors")
    worded, small = WORDED, True

    def __init__(self, context: Context):
        super().__init__(context)
        self._flows = build.factor_flows(context.config)
        self.weights = dict.fromkeys(CHANNELS, 1.0) | {"independence": context.config.disentangler.weight_independence}

    @functools.cached_property
    def frozen(self) -> Any:
        """The principal components that the flows work in, and where words are assigned to channels, their shares."""
        basis = self._context.variables("condition")
        if not self._config.disentangler.weight_independence:
            return {"basis": basis}
        rows = paired(self._context, self.columns, "train")
        examples = [self.example(Worded([rows[i]], self.worded)[0]) for i in range(len(rows))]
        batch = {name: np.stack([one[name] for one in examples]) for name in examples[0]}
        parts = pipeline.to_components(Factors(batch["anatomy"], batch["modality"]), basis)
        return {
            "basis": basis,
            "shares": word_shares({name: (batch[f"{name}_text"], parts[name]) for name in CHANNELS}),
        }

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
        c, batch = self._config.disentangler, build.cast(batch, jnp.float32)
        keys = jax.random.split(key, 4)
        if c.word_dropout:
            heard = lambda k, x: x * jax.random.bernoulli(k, 1 - c.word_dropout, x.shape)
            batch = batch | {n: heard(jax.random.fold_in(keys[3], i), batch[n]) for i, n in enumerate(self.worded)}
        drop = lambda k, rate: ~jax.random.bernoulli(k, rate, (len(batch["mask"]),))
        keep = {"text": drop(keys[0], c.text_dropout), "mask": drop(keys[1], c.mask_dropout)}
        terms = self._errors(params, frozen, batch, keep, keys[2])
        if c.weight_independence:
            foreign = lambda name: losses.foreign_words(
                params[name]["text"]["kernel"], frozen["shares"][name], batch[f"{name}_text"]
            )
            terms["independence"] = foreign("anatomy") + foreign("modality")
        return terms, {}

    def validate(self, params: Any, model_state: Any, frozen: Any, batch: Batch, key: jax.Array) -> Terms:
        """Errors for text alone."""
        batch = build.cast(batch, jnp.float32)
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
        return {name: row[name] for name in (*self.worded, *CHANNELS, "mask")}  # cast in the step: quicker there


def word_shares(told: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """How far each entry of texts speaks of each channel rather than of the others, (D,) in [0, 1].

    By ridge regression on all entries at once, so that a word that merely stands with others explains nothing beside
    them. Channels share an entry as their Wald statistics, less what chance gives: the number of components.

    Args:
      told: by channel, its texts (N, D) and components (N, M).
    """
    evidence = {}
    for name, (text_ND, parts_NM) in told.items():
        x_ND = np.asarray(text_ND - text_ND.mean(0), np.float64)
        gram_DD = x_ND.T @ x_ND
        inverse_DD = np.linalg.inv(gram_DD + RIDGE * np.trace(gram_DD) / len(gram_DD) * np.eye(len(gram_DD)))
        wald_D = np.square(inverse_DD @ (x_ND.T @ parts_NM)).sum(1) / np.diag(inverse_DD)
        evidence[name] = np.maximum(wald_D - parts_NM.shape[1], 0) + 1  # what tells nothing is shared alike
    return {name: (one_D / sum(evidence.values())).astype(np.float32) for name, one_D in evidence.items()}
