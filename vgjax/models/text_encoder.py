"""Frozen text encoders: captions in, one vector each out.

`hashing` has no weights and reads words alone; it serves as the default of development and as the floor that a
language model has to beat. `bert` runs a (clinical) BERT or DistilBERT from a local folder. Neither ever reaches for
the network.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Protocol

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from sklearn.feature_extraction.text import HashingVectorizer
from tokenizers import BertWordPieceTokenizer, Tokenizer

from vgjax.config import ConfigError
from vgjax.models import bert

MIN_TOKENS = 3  # [CLS], one piece, [SEP]
SMALLEST_BUCKET = 32  # tokens of the shortest padded sequence
BATCH_SIZE = 16  # rows of every batch, filled up with padding


class TextEncoder(Protocol):
    """Texts to vectors: (B, width) float32, each independent of the others in the batch.

    Attributes:
      width: D.
    """

    width: int

    def __call__(self, texts: Sequence[str]) -> np.ndarray: ...


def make_text_encoder(kind: str, width: int, path: str, max_length: int) -> TextEncoder:
    """Builds the encoder of config group `text_encoder`.

    Args:
      kind: "hashing" or "bert".
      width: D; with bert the model's hidden size.
      path: bert's folder, or the hub id of a model in the local cache; unused by hashing.
      max_length: bert's texts are cut off at this many tokens, and at the model's own limit; unused by hashing.

    Raises:
      ConfigError: an unknown kind, or a model that is absent, broken or does not fit.
    """
    if kind == "hashing":
        return Hashing(width)
    if kind == "bert":
        return PooledBert(width, path, max_length)
    raise ConfigError(f"config key 'text_encoder.kind' is '{kind}': choose hashing or bert")


class Hashing:
    """Words and pairs of neighbouring words, hashed into `width` signed counts (Weinberger et al. 2009).

    Case and punctuation do not count. Each vector has length sqrt(width), so its entries have mean square 1, the scale
    that normalised network activations have; a text without a word becomes zeros.
    """

    def __init__(self, width: int):
        if width < 1:
            raise ConfigError(f"config key 'text_encoder.width' is {width}: it must be at least 1")
        self.width = width
        # Single letters and digits are words too ("grade 3"), which scikit-learn's own pattern would drop.
        self._vectorizer = HashingVectorizer(
            n_features=width, ngram_range=(1, 2), lowercase=True, norm="l2", token_pattern=r"(?u)\b\w+\b"
        )

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        if not texts:
            return np.zeros((0, self.width), np.float32)
        return (self._vectorizer.transform(texts).toarray() * math.sqrt(self.width)).astype(np.float32)


class PooledBert:
    """Mean over the attention mask of the last hidden states of a frozen BERT or DistilBERT."""

    def __init__(self, width: int, path: str, max_length: int):
        if max_length < MIN_TOKENS:
            raise ConfigError(
                f"config key 'text_encoder.max_length' is {max_length}: it must be at least {MIN_TOKENS} tokens"
            )
        folder = _folder(path)
        config = bert.config_from_json(_read_json(folder / "config.json"), str(folder / "config.json"))
        if config.width != width:
            raise ConfigError(
                f"config key 'text_encoder.width' is {width} but the model in '{folder}' is {config.width} wide: set it"
                f" to {config.width}"
            )
        self.width = width
        self._limit = min(max_length, config.positions)
        self._tokenizer = _tokenizer(folder, config.vocabulary)
        self._tokenizer.enable_truncation(self._limit)
        self._tokenizer.no_padding()
        self._params = bert.import_weights(_read_tensors(folder), config, str(folder / "model.safetensors"))
        self._encode = jax.jit(
            lambda params, ids_BL, mask_BL: bert.mean_pool(
                bert.Bert(config).apply({"params": params}, ids_BL, mask_BL), mask_BL
            )
        )

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        pieces = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        out_BD = np.zeros((len(pieces), self.width), np.float32)
        # A text is padded to its own bucket, not to its longest neighbour: few shapes to compile, and the same result
        # whatever it is batched with.
        buckets = [self._bucket(len(ids)) for ids in pieces]
        for bucket in sorted(set(buckets)):
            rows = [row for row, own in enumerate(buckets) if own == bucket]
            for start in range(0, len(rows), BATCH_SIZE):
                chunk = rows[start : start + BATCH_SIZE]
                ids_BL = np.zeros((BATCH_SIZE, bucket), np.int32)
                mask_BL = np.zeros((BATCH_SIZE, bucket), bool)
                for place, row in enumerate(chunk):
                    ids_BL[place, : len(pieces[row])] = pieces[row]
                    mask_BL[place, : len(pieces[row])] = True
                out_BD[chunk] = np.asarray(self._encode(self._params, ids_BL, mask_BL))[: len(chunk)]
        return out_BD

    def _bucket(self, length: int) -> int:
        """The next power of two, no less than `SMALLEST_BUCKET` and no more than the limit."""
        return min(self._limit, max(SMALLEST_BUCKET, 1 << (length - 1).bit_length()))


def _folder(path: str) -> pathlib.Path:
    """A local folder as it is, or that of a hub id in the local cache."""
    if not path:
        raise ConfigError("config key 'text_encoder.path' is empty: name the folder or hub id of the BERT weights")
    if pathlib.Path(path).is_dir():
        return pathlib.Path(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return pathlib.Path(snapshot_download(path, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        raise ConfigError(
            f"config key 'text_encoder.path': '{path}' is neither a folder nor a model in the local Hugging Face cache:"
            " download it first (config.json, model.safetensors, and tokenizer.json or vocab.txt)"
        ) from None


def _read_json(path: pathlib.Path) -> dict:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config key 'text_encoder.path': no file '{path}': name the folder that holds it") from None
    except ValueError as error:
        raise ConfigError(f"config key 'text_encoder.path': '{path}' is not JSON ({error}): fetch it again") from None
    if not isinstance(values, dict):
        raise ConfigError(f"config key 'text_encoder.path': '{path}' is not a JSON object: fetch it again")
    return values


def _read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    path = folder / "model.safetensors"
    if not path.is_file():
        raise ConfigError(
            f"config key 'text_encoder.path': no file '{path}': fetch the model's safetensors file or convert it"
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"config key 'text_encoder.path': '{path}' is damaged ({error}): fetch it again") from None


def _tokenizer(folder: pathlib.Path, vocabulary: int) -> Tokenizer:
    """The tokenizer of tokenizer.json, or one built on vocab.txt."""
    whole, words = folder / "tokenizer.json", folder / "vocab.txt"
    if not whole.is_file() and not words.is_file():
        raise ConfigError(
            f"config key 'text_encoder.path': '{folder}' has neither tokenizer.json nor vocab.txt: fetch one of them"
        )
    settings = folder / "tokenizer_config.json"
    lowercase = _read_json(settings).get("do_lower_case", True) if settings.is_file() else True
    try:
        tokenizer = (
            Tokenizer.from_file(str(whole))
            if whole.is_file()
            else BertWordPieceTokenizer(str(words), lowercase=lowercase)
        )
    # The tokenizers library raises plain Exception for whatever it cannot read.
    except Exception as error:
        raise ConfigError(
            f"config key 'text_encoder.path': broken tokenizer in '{folder}' ({error}): fetch it again"
        ) from None
    known = 1 + max(tokenizer.get_vocab().values(), default=0)
    if known > vocabulary:
        raise ConfigError(
            f"config key 'text_encoder.path': the tokenizer in '{folder}' knows {known} pieces but the model"
            f" {vocabulary}: fetch both of one model"
        )
    return tokenizer
