"""Frozen text encoders: captions in, one vector each out.

`VocabularyEncoder`, the default, knows the words of the training captions and no others. `SynonymEncoder` reads others
as known ones. `Hashing` knows all words, two of which may fall together. `PooledBert` runs a (clinical) BERT or
DistilBERT. `vgjax.text` builds each from a config.
"""

import functools
import itertools
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, Self

import jax
import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer
from tokenizers import Tokenizer

from vgjax.config import ConfigError
from vgjax.models import bert

WORD = re.compile(r"(?u)\b\w+\b")
ALIKE = 0.45  # least cosine of a word that is read as another; below, the nearest is often of another kind
MIN_TOKENS = 3  # [CLS], one piece, [SEP]
SMALLEST_BUCKET = 32  # tokens of the shortest padded sequence
BATCH_SIZE = 16  # rows of every batch, filled up with padding


class TextEncoder(Protocol):
    """Texts to vectors: (B, width) float32, each independent of the others in the batch."""

    width: int

    def __call__(self, texts: Sequence[str]) -> np.ndarray: ...

    def unknown(self, texts: Sequence[str]) -> list[str]:
        """Words that the encoder does not hear."""
        ...

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Numbers of each text's tokens in order; below `width`, but for word pieces."""
        ...


def padded(ids: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """Token numbers (n, length) int32 of n texts, cut off, or filled up with -1."""
    return np.array([[*one, *[-1] * length][:length] for one in ids], np.int32)


class Hashing:
    """Words and pairs of neighbouring words, hashed into `width` signed counts (Weinberger et al. 2009).

    Case and punctuation do not count. Each vector has length sqrt(width), so its entries have mean square 1, the scale
    that normalised network activations have; a text without a word becomes zeros.
    """

    def __init__(self, width: int):
        self.width = width
        # Single letters and digits are words too ("grade 3"), which scikit-learn's own pattern would drop.
        self._vectorizer = HashingVectorizer(
            n_features=width, ngram_range=(1, 2), lowercase=True, norm="l2", token_pattern=WORD.pattern
        )

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        if not texts:
            return np.zeros((0, self.width), np.float32)
        return (self._vectorizer.transform(texts).toarray() * math.sqrt(self.width)).astype(np.float32)

    def unknown(self, texts: Sequence[str]) -> list[str]:
        """None: every word has an entry, if not of its own."""
        return []

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The entry of each word."""
        words = [WORD.findall(text) for text in texts]
        return [self._vectorizer.transform(found).indices.tolist() if found else [] for found in words]


def words_of(text: str) -> list[str]:
    """Its words in lower case; single letters and digits are words too ("grade 3")."""
    return WORD.findall(text.lower())


def _entries(text: str) -> set[str]:
    """Its words and pairs of neighbouring words."""
    words = words_of(text)
    return {*words, *(f"{one} {next_one}" for one, next_one in itertools.pairwise(words))}


class VocabularyEncoder:
    """Words, then pairs of neighbouring words, of the training captions: each an entry of the embedding of its own.

    An entry is `scale` where the text holds it, else 0, however much else is said: one word by itself is as strong as
    among others.

    Attributes:
      entries: the commonest words, and where there is room the commonest pairs.
      scale: brings the mean square of the training captions' entries to 1, the scale that network activations have.
    """

    def __init__(self, width: int, entries: Sequence[str], scale: float):
        self.width, self.entries, self.scale = width, tuple(entries), scale
        self._places = {entry: place for place, entry in enumerate(self.entries)}

    @classmethod
    def fit(cls, texts: Iterable[str], width: int) -> Self:
        """The vocabulary of training captions.

        Raises:
          ConfigError: they hold no word.
        """
        found = [_entries(text) for text in texts]
        counts = Counter(itertools.chain.from_iterable(found))
        commonest = lambda entry: (-counts[entry], entry)
        words = sorted((entry for entry in counts if " " not in entry), key=commonest)
        if not words:
            raise ConfigError("no training caption holds a word: give them text, or set data.captions to 'measured'")
        if len(words) > width:
            logging.warning(
                "text_encoder.width is %d: %d of %d words of the training captions, the rarest, are left out",
                *(width, len(words) - width, len(words)),
            )
        pairs = sorted((entry for entry in counts if " " in entry), key=commonest)
        kept = [*words, *pairs][:width]
        held = sum(len(entries.intersection(kept)) for entries in found)
        return cls(width, kept, math.sqrt(width * len(found) / held))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        out_BD = np.zeros((len(texts), self.width), np.float32)
        for row, text in enumerate(texts):
            out_BD[row, [self._places[entry] for entry in _entries(text) if entry in self._places]] = self.scale
        return out_BD

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The entry of each known word."""
        return [[self._places[word] for word in words_of(text) if word in self._places] for text in texts]

    def unknown(self, texts: Sequence[str]) -> list[str]:
        """The words that the training captions never used, each once, in the order of the texts."""
        return list(dict.fromkeys(word for text in texts for word in words_of(text) if word not in self._places))


class SynonymEncoder:
    """A vocabulary that reads an unknown word as the known one most like it in a pretrained encoder's embedding space.

    Candidates are the words that stood before the next word in the training captions ("huge lesion": "large", "small"):
    among all words, nearness in such a space is as often that of topics. An unknown word without any, or with none
    that is like it, stays ignored.
    """

    def __init__(self, vocabulary: VocabularyEncoder, pretrained: Callable[[Sequence[str]], np.ndarray]):
        self.width, self._vocabulary, self._pretrained = vocabulary.width, vocabulary, pretrained
        self._before: dict[str, list[str]] = {}
        for one, next_one in (entry.split() for entry in vocabulary.entries if " " in entry):
            self._before.setdefault(next_one, []).append(one)
        self._alike = functools.cache(self._most_alike)

    def _most_alike(self, word: str, next_one: str) -> str:
        """The candidate, or "" where none is like the word."""
        candidates = self._before.get(next_one, [])
        if not candidates:
            return ""
        found = self._pretrained([word, *candidates])
        unit = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        likeness = dict(zip(candidates, unit[1:] @ unit[0], strict=True))
        best = max(candidates, key=lambda one: likeness[one])
        return best if likeness[best] >= ALIKE else ""

    def _read(self, text: str) -> tuple[list[str], dict[str, str]]:
        """The words of a text as they are heard, and for each unknown one what it is heard as."""
        heard: list[str] = []
        unknown = dict.fromkeys(self._vocabulary.unknown([text]), "")
        for word in reversed(words_of(text)):  # the next word is read before this one
            if word in unknown:
                unknown[word] = self._alike(word, heard[0] if heard else "")
            heard = [one for one in [unknown.get(word, word)] if one] + heard
        return heard, unknown

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return self._vocabulary([" ".join(self._read(text)[0]) for text in texts])

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The entry of each word as it is heard."""
        return self._vocabulary.ids([" ".join(self._read(text)[0]) for text in texts])

    def unknown(self, texts: Sequence[str]) -> list[str]:
        """The words that the training captions never used, with what they are read as."""
        told = {word: one for text in texts for word, one in self._read(text)[1].items()}
        return [f"{word} (read as {one})" if one else word for word, one in told.items()]


class PooledBert:
    """Mean over the attention mask of the last hidden states of a frozen BERT or DistilBERT.

    Attributes:
      module, variables: the network, from ids and a mask to hidden states.
      limit: most tokens of a text.
    """

    def __init__(self, module: bert.Bert, variables: Mapping[str, Any], tokenizer: Tokenizer, max_length: int):
        """Takes the parts of one model.

        Args:
          tokenizer: cutting off and padding are set here.
          max_length: texts are cut off at this many tokens, and at the network's own limit.

        Raises:
          ConfigError: max_length leaves no room for a word.
        """
        if max_length < MIN_TOKENS:
            raise ConfigError(
                f"config key 'text_encoder.max_length' is {max_length}: it must be at least {MIN_TOKENS} tokens"
            )
        self.width = module.config.width
        self.limit = min(max_length, module.config.positions)
        self._tokenizer = tokenizer
        self._tokenizer.enable_truncation(self.limit)
        self._tokenizer.no_padding()
        self.module, self.variables = module, jax.device_put(variables)
        self._pooled = jax.jit(lambda variables, ids, mask: bert.mean_pool(module.apply(variables, ids, mask), mask))

    def unknown(self, texts: Sequence[str]) -> list[str]:
        """None: word pieces spell every word."""
        return []

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Word pieces, [CLS] and [SEP] among them."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """A text is padded to its own bucket, not to its longest neighbour.

        So there are few shapes to compile, and the result is the same whatever a text is batched with.
        """
        out_BD, pieces = np.zeros((len(texts), self.width), np.float32), self.ids(texts)
        # The next power of two, within these bounds.
        buckets = [min(self.limit, max(SMALLEST_BUCKET, 1 << (len(ids) - 1).bit_length())) for ids in pieces]
        for bucket in sorted(set(buckets)):
            rows = [row for row, own in enumerate(buckets) if own == bucket]
            for start in range(0, len(rows), BATCH_SIZE):
                chunk = rows[start : start + BATCH_SIZE]
                ids_BL = padded([*(pieces[row] for row in chunk), *[[]] * (BATCH_SIZE - len(chunk))], bucket)
                out_BD[chunk] = self._pooled(self.variables, np.maximum(ids_BL, 0), ids_BL >= 0)[: len(chunk)]
        return out_BD
