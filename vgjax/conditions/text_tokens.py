"""A baseline: the tokens of the caption in cross-attention, as in PixArt-alpha (Chen et al. 2023); no factors.

With the vocabulary encoder a token is a word's own entry, so that the projection is a table of learned embeddings.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vgjax import build
from vgjax.conditions.base import Condition, Frozen
from vgjax.config import Config, ConfigError
from vgjax.models.text_encoder import TextEncoder
from vgjax.types import Inputs, Keep, Request, Tokens


class TokenProjection(nn.Module):
    """Token vectors (B, L, D) -> condition tokens; a dropped caption is one learned null token."""

    token_width: int

    @nn.compact
    def __call__(self, tokens_BLD: jax.Array, mask_BL: jax.Array, keep_B: jax.Array) -> Tokens:
        length = tokens_BLD.shape[1]
        null = self.param("null", nn.initializers.normal(0.02), (self.token_width,))
        places = self.param("places", nn.initializers.normal(0.02), (length, self.token_width))
        kept = keep_B[:, None] & mask_BL.astype(bool)
        x = nn.Dense(self.token_width, name="token")(tokens_BLD) + places[None]
        x = jnp.where(keep_B[:, None, None], x, null[None, None])
        # A caption of no token, and a dropped one, are seen as the first place alone.
        seen = kept.at[:, 0].set(kept[:, 0] | ~kept.any(axis=1))
        return Tokens(tokens_BND=x, mask_BN=seen.astype(jnp.float32))


def padded(tokens_ND: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (length, D), cut off or filled with zeros, and their mask (length,): True where there is one."""
    kept = tokens_ND[:length]
    return np.pad(kept, ((0, length - len(kept)), (0, 0))), np.arange(length) < len(kept)


class TextTokens(Condition):
    """The channel "text": token vectors (B, L, D) and their mask."""

    channels = ("text",)
    columns = ("tokens",)
    keys = ("denoiser.condition", "denoiser.token_width", "text_encoder.*")

    def __init__(self, config: Config):
        self._encoder, self._module = config.text_encoder, TokenProjection(config.denoiser.token_width)

    def example(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        tokens, mask = padded(row["tokens"].astype(np.float32), self._encoder.max_length)
        return {"tokens": tokens, "token_mask": mask}

    def init(self, key: jax.Array, frozen: Frozen) -> tuple[Any, Tokens]:
        shape = (2, self._encoder.max_length)
        tokens, variables = self._module.init_with_output(
            key, jnp.zeros((*shape, self._encoder.width)), jnp.ones(shape), jnp.ones(2, bool)
        )
        return variables["params"], tokens

    def from_rows(self, frozen: Frozen, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Inputs:
        return {"text": {"tokens": batch["tokens"], "mask": batch["token_mask"]}}

    def from_requests(
        self, frozen: Frozen, requests: Sequence[Request], request_seeds: Sequence[int], encode: TextEncoder
    ) -> Inputs:
        """One text a picture: that of the prompt, or those of the channels one after another."""
        texts = [request.prompt or f"{request.anatomy} {request.modality}".strip() for request in requests]
        shown = any(request.mask or request.anatomy_image or request.modality_image for request in requests)
        if shown or not all(texts):
            raise ConfigError("condition 'text_tokens' takes words and nothing else: give a prompt")
        columns = zip(*(padded(tokens, self._encoder.max_length) for tokens in encode.sequences(texts)), strict=True)
        return {"text": dict(zip(("tokens", "mask"), (jnp.asarray(np.stack(c)) for c in columns), strict=True))}

    def tokens(self, params: Any, frozen: Frozen, inputs: Inputs, keep: Keep) -> Tokens:
        text = inputs["text"]
        return build.Model(self._module, {"params": params})(text["tokens"], text["mask"], keep["text"])
