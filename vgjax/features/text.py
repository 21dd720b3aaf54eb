"""The columns "text", one pooled embedding a caption, and "tokens", one a token, by a frozen text encoder."""

import functools
import pathlib
from typing import Any

import numpy as np

from vgjax.context import Context, Producer
from vgjax.features.base import write_column
from vgjax.models.text_encoder import TextEncoder
from vgjax.text import load_text_encoder
from vgjax.types import SPLITS

EMBED_BATCH = 256


def pooled(encoder: TextEncoder, captions: list[str]) -> list[dict[str, np.ndarray]]:
    """The field "embedding" (D,) float16 of each caption."""
    return [{"embedding": embedding.astype(np.float16)} for embedding in encoder(captions)]


def sequences(encoder: TextEncoder, captions: list[str]) -> list[dict[str, np.ndarray]]:
    """The field "tokens" (n, D) float16 of each caption, n its own; `padded` makes batches of them."""
    return [{"tokens": tokens.astype(np.float16)} for tokens in encoder.sequences(captions)]


def padded(tokens_ND: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (length, D), cut off or filled with zeros, and their mask (length,): True where there is one."""
    kept = tokens_ND[:length]
    filled = np.zeros((length, tokens_ND.shape[1]), tokens_ND.dtype)
    filled[: len(kept)] = kept
    return filled, np.arange(length) < len(kept)


def make(compute, context: Context, folder: pathlib.Path) -> dict[str, Any]:
    """Writes the column for all splits."""
    encoder = load_text_encoder(context.config.text_encoder)
    sources = {split: context.rows(["pictures"], split) for split in SPLITS}
    captioned = lambda rows: compute(encoder, [row["caption"] for row in rows])
    return write_column(folder, "text", sources, captioned, EMBED_BATCH)


TEXT, TOKENS = (
    Producer(
        name,
        functools.partial(make, compute),
        keys=("text_encoder.*",),
        needs=("pictures",),
        files=lambda c: [c.text_encoder.path],
    )
    for name, compute in (("text", pooled), ("tokens", sequences))
)
