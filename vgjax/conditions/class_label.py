"""A condition on the class alone, without text or factors: the baseline of Peebles & Xie 2023, section 3.2.

Labels come from the dataset. It is the one condition, and the only thing trained, that reads them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vgjax import build
from vgjax.conditions.base import Condition, Frozen, RowsOf
from vgjax.config import Config, ConfigError
from vgjax.models.text_encoder import TextEncoder
from vgjax.types import Inputs, Keep, Request, Tokens

NAME_BYTES = 64  # a class is told by its name, cut off here


class LabelEmbedding(nn.Module):
    """A table of class embeddings, the last row of which is the null: one token, and the style of the timestep."""

    token_width: int
    width: int

    @nn.compact
    def __call__(self, one_hot_BC: jax.Array) -> Tokens:
        token = nn.Dense(self.token_width, use_bias=False, name="token")(one_hot_BC)
        style = nn.Dense(self.width, use_bias=False, name="style")(one_hot_BC)
        return Tokens(tokens_BND=token[:, None], mask_BN=jnp.ones((len(token), 1)), style_BD=style)


def encode(label: str) -> np.ndarray:
    """A class name as (NAME_BYTES,) uint8."""
    return np.frombuffer(label.encode()[:NAME_BYTES].ljust(NAME_BYTES, b"\0"), np.uint8)


class ClassLabelCondition(Condition):
    """The name of the class, (B, NAME_BYTES)."""

    channels = ("class",)
    columns = ("pictures",)
    reads_text = False
    fit_columns = ("pictures",)
    fit_keys = ("denoiser.condition",)
    keys = ("denoiser.condition", "denoiser.token_width", "denoiser.width")

    def __init__(self, config: Config):
        self._module = LabelEmbedding(config.denoiser.token_width, config.denoiser.width)

    def fit(self, rows: RowsOf) -> dict[str, np.ndarray]:
        """The classes of the training pictures, (C, NAME_BYTES).

        Raises:
          ConfigError: no picture has a class.
        """
        source = rows(self.fit_columns, "train")
        names = {source[i]["label"] for i in range(len(source))} - {""}
        if not names:
            raise ConfigError("config key 'denoiser.condition' is 'class_label', but the dataset names no classes")
        return {"classes": np.unique([encode(name) for name in names], axis=0)}  # sorted

    def example(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        return {"label": encode(row["label"])}

    def init(self, key: jax.Array, frozen: Frozen) -> tuple[Any, Tokens]:
        one_hot = jnp.zeros((1, len(frozen["basis"]["classes"]) + 1))
        tokens, variables = self._module.init_with_output(key, one_hot)
        return variables["params"], tokens

    def from_rows(self, frozen: Frozen, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Inputs:
        return {"class": batch["label"]}

    def from_requests(
        self, frozen: Frozen, requests: Sequence[Request], request_seeds: Sequence[int], encoder: TextEncoder
    ) -> Inputs:
        known = {bytes(row) for row in np.asarray(frozen["basis"]["classes"])}
        for label in (request.label for request in requests):
            if bytes(encode(label)) not in known:
                names = ", ".join(repr(row.rstrip(b"\0").decode(errors="ignore")) for row in sorted(known))
                raise ConfigError(f"class {label!r} is not in the training pictures: choose one of {names}")
        return {"class": jnp.stack([encode(request.label) for request in requests])}

    def tokens(self, params: Any, frozen: Frozen, inputs: Inputs, keep: Keep) -> Tokens:
        """An unknown class and a dropped one are both the null."""
        same = (inputs["class"][:, None] == frozen["basis"]["classes"][None]).all(-1) & keep["class"][:, None]
        one_hot = jnp.concatenate([same, ~same.any(-1, keepdims=True)], axis=-1).astype(jnp.float32)
        return build.Model(self._module, {"params": params})(one_hot)
