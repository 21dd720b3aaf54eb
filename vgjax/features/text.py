"""What frozen text encoders make of captions: the vocabulary that one of them needs, and the columns of embeddings.

"text" is one pooled embedding a caption. In "wordings" and "tokens", embeddings and token numbers, a training picture
has several captions, those of `vgjax.data.caption.wordings`, and a validation picture its own.
"""

import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from vgjax.context import Context, Producer
from vgjax.data.caption.wordings import BOTH
from vgjax.data.records import Rows
from vgjax.features.base import TRAINING_SPLITS, Row, write_column
from vgjax.models.text_encoder import TextEncoder, padded
from vgjax.text import load_text_encoder, write_vocabulary
from vgjax.types import CHANNELS, SPLITS

EMBED_BATCH = 256
VOCABULARY_FILE = "vocabulary.json"


def make_vocabulary(context: Context, folder: pathlib.Path) -> dict[str, Any]:
    """Writes the words of all training captions; nothing for encoders that bring their own."""
    c = context.config.text_encoder
    if c.kind != "vocabulary":
        return {}
    captions = _captions(context.rows(["pictures"], "train"))
    return {"entries": write_vocabulary(folder / VOCABULARY_FILE, captions, c.width)}


def _captions(rows: Rows) -> Iterator[str]:
    for row in (rows[i] for i in range(len(rows))):
        yield row["caption"]
        for channel in CHANNELS:
            yield from row["wordings"][channel]


def encoder_of(context: Context) -> TextEncoder:
    """The encoder of a run, with its vocabulary where it needs one."""
    c = context.config.text_encoder
    vocabulary = context.artefact("vocabulary").path(VOCABULARY_FILE) if c.kind == "vocabulary" else None
    return load_text_encoder(c, vocabulary)


def embeddings(encoder: TextEncoder, rows: Sequence[Row]) -> list[dict[str, np.ndarray]]:
    """The field "embedding" (D,) float16."""
    return [{"embedding": found.astype(np.float16)} for found in encoder([row["caption"] for row in rows])]


def _captions_for(row: Row, channel: str) -> list[str]:
    return row["wordings"].get(channel) or [row["caption"]]


def reworded(encoder: TextEncoder, rows: Sequence[Row]) -> list[dict[str, np.ndarray]]:
    """The fields "anatomy_text" and "modality_text", (n, D) float16, of n captions."""
    found: list[dict[str, np.ndarray]] = []
    for row in rows:
        read = functools.cache(lambda captions: encoder(captions).astype(np.float16))  # channels may share theirs
        found.append({f"{name}_text": read(tuple(_captions_for(row, name))) for name in CHANNELS})
    return found


def tokens(encoder: TextEncoder, rows: Sequence[Row]) -> list[dict[str, np.ndarray]]:
    """The field "tokens" (n, L), `padded` to the longest of n captions that are true in both channels."""
    found = [encoder.ids(_captions_for(row, BOTH)) for row in rows]
    return [{"tokens": padded(ids, max(1, *map(len, ids)))} for ids in found]


def make(compute: Callable[..., Any], splits: Sequence[str], context: Context, folder: pathlib.Path) -> dict[str, Any]:
    """Writes the column for some splits."""
    encoder = encoder_of(context)
    sources = {split: context.rows(["pictures"], split) for split in splits}
    return write_column(folder, "text", sources, functools.partial(compute, encoder), EMBED_BATCH)


VOCABULARY = Producer("vocabulary", make_vocabulary, ("text_encoder.kind", "text_encoder.width"), ("pictures",))
TEXT, WORDINGS, TOKENS = (
    Producer(
        name,
        functools.partial(make, compute, splits),
        keys=("text_encoder.*",),
        needs=("pictures", "vocabulary"),
        files=lambda c: [c.text_encoder.path],
    )
    for name, compute, splits in (
        ("text", embeddings, SPLITS),
        ("wordings", reworded, TRAINING_SPLITS),
        ("tokens", tokens, TRAINING_SPLITS),
    )
)
