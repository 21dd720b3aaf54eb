"""The published ablation without alignment: the diffusion loss alone trains the text heads, without visual prior."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax import build
from vgjax.conditions.base import Frozen
from vgjax.conditions.factors import WORDED, TextFactors, fusion
from vgjax.config import Config
from vgjax.models import hffm
from vgjax.types import Inputs, Tokens


class TextHeadsCondition(TextFactors):
    """The text embedding (B, D) of each channel's words, read by `TextHeads`."""

    columns, needs, worded = ("wordings",), (), WORDED

    def __init__(self, config: Config):
        super().__init__(config)
        rows, columns, maps = build.anatomy_shape(config)
        sizes = (config.disentangler.hidden, rows * columns * maps, config.prior.modality_factors)
        self._module = hffm.TextHeads(*sizes, fusion(config))

    def example(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        return {name: row[name].astype(np.float32) for name in WORDED}

    def init(self, key: jax.Array, frozen: Frozen) -> tuple[Any, Tokens]:
        inputs = dict.fromkeys(self.channels, jnp.zeros((2, self.config.text_encoder.width)))
        keep = dict.fromkeys(self.channels, jnp.ones(2, bool))
        tokens, variables = self._module.init_with_output(key, inputs, keep)
        return variables["params"], tokens

    def from_rows(self, frozen: Frozen, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Inputs:
        return {name: batch[f"{name}_text"] for name in self.channels}
