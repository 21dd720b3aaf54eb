"""The published condition: area fractions of the anatomy and mu, as text implies them, a token each."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vgjax import build, weights
from vgjax.conditions.base import Frozen
from vgjax.conditions.factors import TextFactors
from vgjax.config import Config
from vgjax.models import hffm
from vgjax.types import Inputs, Keep, Tokens


class PublishedCondition(TextFactors):
    """Anatomy (B, K) and modality (B, Z), read by `ReferenceFusion`; a dropped channel is an all-zero token."""

    def __init__(self, config: Config):
        super().__init__(config)
        self._module = hffm.ReferenceFusion(config.denoiser.hffm_hidden, config.denoiser.token_width)

    def _example_inputs(self) -> tuple[Inputs, Keep]:
        anatomy = jnp.zeros((1, build.anatomy_shape(self.config)[-1]))
        inputs = {"anatomy": anatomy, "modality": jnp.zeros((1, self.config.prior.modality_factors))}
        return inputs, dict.fromkeys(self.channels, jnp.ones(1, bool))

    def init(self, key: jax.Array, frozen: Frozen) -> tuple[Any, Tokens]:
        tokens, variables = self._module.init_with_output(key, *self._example_inputs())
        return variables["params"], tokens

    def pretrained(self) -> Any | None:
        source = self.config.denoiser.hffm_weights
        if not source:
            return None
        return weights.into(self._module, self._example_inputs(), "hffm", source, "denoiser.hffm_weights")["params"]

    def from_rows(self, frozen: Frozen, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Inputs:
        factors = self.factors(frozen, batch["embedding"])
        return {"anatomy": factors.pooled(), "modality": factors.modality_BZ}
