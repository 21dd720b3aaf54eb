"""The columns "text", one pooled embedding a caption, and "tokens", one a token, by a frozen text encoder."""

import functools
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from vgjax.context import Context, Producer
from vgjax.features.base import write_column
from vgjax.text import load_text_encoder
from vgjax.types import SPLITS

EMBED_BATCH = 256


def padded(tokens_ND: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (length, D), cut off or filled with zeros, and their mask (length,): True where there is one."""
    kept = tokens_ND[:length]
    return np.pad(kept, ((0, length - len(kept)), (0, 0))), np.arange(length) < len(kept)


def make(field: str, context: Context, folder: pathlib.Path) -> dict[str, Any]:
    """Writes "embedding" (D,) or "tokens" (n, D), n each caption's own, as float16, for all splits."""
    encoder = load_text_encoder(context.config.text_encoder)
    encode: Callable[..., Iterable[np.ndarray]] = encoder.sequences if field == "tokens" else encoder
    sources = {split: context.rows(["pictures"], split) for split in SPLITS}
    compute = lambda rows: [{field: found.astype(np.float16)} for found in encode([row["caption"] for row in rows])]
    return write_column(folder, "text", sources, compute, EMBED_BATCH)


TEXT, TOKENS = (
    Producer(
        name,
        functools.partial(make, field),
        keys=("text_encoder.*",),
        needs=("pictures",),
        files=lambda c: [c.text_encoder.path],
    )
    for name, field in (("text", "embedding"), ("tokens", "tokens"))
)
