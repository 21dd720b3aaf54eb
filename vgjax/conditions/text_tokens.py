"""A baseline: the tokens of the caption in cross-attention, as in PixArt-alpha (Chen et al. 2023); no factors.

Each token has a learned embedding or, with text_encoder.kind "bert", the frozen encoder's hidden state.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vgjax import build
from vgjax.conditions.base import Condition, Frozen
from vgjax.config import Config, ConfigError
from vgjax.models.text_encoder import PooledBert, TextEncoder, padded
from vgjax.text import load_text_encoder
from vgjax.types import Inputs, Keep, Request, Tokens


class TokenProjection(nn.Module):
    """Token numbers (B, L), -1 where there is none -> condition tokens; a dropped caption is one learned null token."""

    token_width: int
    entries: int  # of the table of embeddings

    @nn.compact
    def __call__(self, ids_BL: jax.Array, states_BLD: jax.Array | None, keep_B: jax.Array) -> Tokens:
        """`states_BLD` are read in the place of embeddings where they are given."""
        length = ids_BL.shape[1]
        null = self.param("null", nn.initializers.normal(0.02), (self.token_width,))
        places = self.param("places", nn.initializers.normal(0.02), (length, self.token_width))
        kept = keep_B[:, None] & (ids_BL >= 0)
        if states_BLD is None:
            x = nn.Embed(self.entries, self.token_width, name="token")(jnp.maximum(ids_BL, 0))
        else:
            x = nn.Dense(self.token_width, name="token")(states_BLD)
        x = x + places[None]
        x = jnp.where(kept.any(1)[:, None, None], x, null[None, None])
        # A caption of no token, and a dropped one, are seen as the first place alone.
        seen = kept.at[:, 0].set(kept[:, 0] | ~kept.any(axis=1))
        return Tokens(tokens_BND=x, mask_BN=seen.astype(jnp.float32))


class TextTokens(Condition):
    """The channel "text": token numbers (B, L)."""

    channels = ("text",)
    columns = worded = ("tokens",)
    keys = ("denoiser.condition", "denoiser.token_width", "text_encoder.*")

    def __init__(self, config: Config):
        c = self._encoder = config.text_encoder
        self._module = TokenProjection(config.denoiser.token_width, c.width)

    @functools.cached_property
    def _pretrained(self) -> PooledBert | None:
        encoder = load_text_encoder(self._encoder) if self._encoder.kind == "bert" else None
        return encoder if isinstance(encoder, PooledBert) else None

    @property
    def _length(self) -> int:
        """L; a pretrained encoder has no states beyond its own limit."""
        return self._pretrained.limit if self._pretrained else self._encoder.max_length

    def frozen(self) -> dict[str, Any]:
        return {"text_encoder": self._pretrained.variables} if self._pretrained else {}

    def _states(self, frozen: Frozen, ids_BL: jax.Array) -> jax.Array | None:
        if not self._pretrained:
            return None
        return build.Model(self._pretrained.module, frozen["text_encoder"])(jnp.maximum(ids_BL, 0), ids_BL >= 0)

    def example(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        return {"tokens": padded([row["tokens"]], self._length)[0]}

    def init(self, key: jax.Array, frozen: Frozen) -> tuple[Any, Tokens]:
        ids = jnp.zeros((2, self._length), jnp.int32)
        tokens, variables = self._module.init_with_output(key, ids, self._states(frozen, ids), jnp.ones(2, bool))
        return variables["params"], tokens

    def from_rows(self, frozen: Frozen, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Inputs:
        return {"text": batch["tokens"]}

    def from_requests(
        self, frozen: Frozen, requests: Sequence[Request], request_seeds: Sequence[int], encode: TextEncoder
    ) -> Inputs:
        """One text a picture: that of the prompt, or those of the channels one after another."""
        texts = [request.prompt or f"{request.anatomy} {request.modality}".strip() for request in requests]
        if any(request.shows_pictures for request in requests) or not all(texts):
            raise ConfigError("condition 'text_tokens' takes words and nothing else: give a prompt, and no pictures")
        return {"text": jnp.asarray(padded(encode.ids(texts), self._length))}

    def tokens(self, params: Any, frozen: Frozen, inputs: Inputs, keep: Keep) -> Tokens:
        states = self._states(frozen, inputs["text"])
        return build.Model(self._module, {"params": params})(inputs["text"], states, keep["text"])
