"""The default condition: whitened components of the factors that text implies, an anatomy and a modality channel."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax import build, pipeline
from vgjax.conditions.base import Condition, Frozen, RowsOf
from vgjax.config import Config, ConfigError
from vgjax.models import hffm
from vgjax.text import load_text_encoder
from vgjax.types import Factors, Inputs, Keep, Request, Tokens


class TextFactors(Condition):
    """What the conditions on factors share: the road from text embeddings to the two factors."""

    channels = hffm.CHANNELS
    columns = ("text",)
    needs = ("disentangler",)
    keys: tuple[str, ...] = (
        *("prior.*", "-prior.train.*", "disentangler.*", "-disentangler.train.*", "text_encoder.*", "seed"),
        *("denoiser.condition", "denoiser.hffm_hidden", "denoiser.token_width", "denoiser.hffm_weights"),
    )

    def __init__(self, config: Config):
        self.config = config
        self._disentangler = build.disentangler(config)

    def example(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        return {"embedding": row["embedding"].astype(np.float32)}

    @functools.cached_property
    def _encode(self):
        return load_text_encoder(self.config.text_encoder)

    def factors(self, frozen: Frozen, embedding_BD: jax.Array) -> Factors:
        """What stage 2 reads from text embeddings."""
        model = build.Model(self._disentangler, frozen["disentangler"])
        return pipeline.text_factors(model, embedding_BD, self.config.prior.grid)

    def from_requests(self, frozen: Frozen, requests: Sequence[Request]) -> Inputs:
        @functools.cache  # channels that share their texts are read once
        def read(texts: tuple[str, ...]) -> Inputs:
            embedding = jnp.asarray(self._encode(list(texts)), jnp.float32)
            return self.from_rows(frozen, {"embedding": embedding}, None)

        asked = {channel: tuple(request.text(channel) for request in requests) for channel in self.channels}
        if not all(map(all, asked.values())):
            raise ConfigError(f"condition '{self.config.denoiser.condition}' takes words: give a prompt")
        return {channel: read(texts)[channel] for channel, texts in asked.items()}


class FactorsCondition(TextFactors):
    """Components of either channel (B, M), read by `FactorFusion`."""

    fit_columns = ("text", "factors")
    keys = (*TextFactors.keys, "denoiser.components", "denoiser.condition_noise", "denoiser.width")

    def __init__(self, config: Config):
        super().__init__(config)
        c = config.denoiser
        self._module = hffm.FactorFusion(c.hffm_hidden, c.token_width, c.width, config.prior.grid)

    def fit(self, frozen: Frozen, rows: RowsOf) -> dict[str, np.ndarray]:
        """Mean and whitening of the text-predictable part of each channel."""
        predict = jax.jit(lambda e: self._disentangler.apply(frozen["disentangler"], e, train=False)[:2])

        def column(split: str, name: str) -> np.ndarray:
            source = rows(self.fit_columns, split)
            return np.stack([source[i][name].ravel() for i in range(len(source))]).astype(np.float32)

        predicted = [predict(column(split, "embedding")) for split in ("train", "validation")]
        basis: dict[str, np.ndarray] = {}
        for channel, *predictions in zip(self.channels, *predicted, strict=True):
            train, validation = (np.asarray(prediction, np.float64) for prediction in predictions)
            truth = column("validation", channel)
            mean, whiten, back = pipeline.whitening(train, validation, truth, self.config.denoiser.components)
            basis |= {f"{channel}_mean": mean, f"{channel}_whiten": whiten, f"{channel}_back": back}
        return basis

    def init(self, key: jax.Array, frozen: Frozen) -> tuple[Any, Tokens]:
        inputs = self.from_rows(frozen, {"embedding": jnp.zeros((2, self.config.text_encoder.width))}, None)
        keep = dict.fromkeys(self.channels, jnp.ones(2, bool))
        tokens, variables = self._module.init_with_output(key, inputs, keep, frozen["basis"])
        return variables["params"], tokens

    def from_rows(self, frozen: Frozen, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Inputs:
        """Components, in training with noise: what lies below its level cannot be told apart by the transformer."""
        factors, basis = self.factors(frozen, batch["embedding"]), frozen["basis"]
        flat = {"anatomy": factors.anatomy_BggK.reshape(len(factors.modality_BZ), -1), "modality": factors.modality_BZ}
        inputs = {}
        for i, (name, flat_BF) in enumerate(flat.items()):
            parts_BM = (flat_BF - basis[f"{name}_mean"][None]) @ basis[f"{name}_whiten"]
            if key is not None:
                level = self.config.denoiser.condition_noise
                parts_BM += level * jax.random.normal(jax.random.fold_in(key, i), parts_BM.shape)
            inputs[name] = parts_BM
        return inputs

    def tokens(self, params: Any, frozen: Frozen, inputs: Inputs, keep: Keep) -> Tokens:
        return build.Model(self._module, {"params": params})(inputs, keep, frozen["basis"])
