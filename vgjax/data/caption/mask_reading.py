"""Reads position and size of a picture's lesion back from a mask of it, in the levels of the dataset's captions."""

from collections.abc import Mapping, Sequence

import numpy as np

from vgjax.data.caption.measure import ALWAYS_NAMED, describe, levels_from_mask
from vgjax.data.caption.words import Vocabulary
from vgjax.data.entries import Levels, Reader, Thresholds


def mask_reader(vocabulary: Vocabulary, thresholds: Thresholds) -> Reader:
    """The reader of what a mask tells; the lesion is where its probability is above one half."""

    def read(pictures: np.ndarray, lesion: np.ndarray) -> list[Levels]:
        return [levels_from_mask(mask, thresholds, vocabulary) or {} for mask in lesion > 0.5]

    return Reader(
        channels={factor: "anatomy" for factor in ALWAYS_NAMED if factor in vocabulary.anatomy},
        described=dict.fromkeys(vocabulary.anatomy, "anatomy") | dict.fromkeys(vocabulary.modality, "modality"),
        read=read,
        chance=majority,
        # It has no style but the one that training knows.
        describe=lambda levels, rng, named, style="": describe(levels, rng, named, vocabulary),
    )


def majority(requested: Sequence[Mapping[str, str]], factor: str) -> float:
    """Share of the commonest requested level: what always answering it would score."""
    levels = [one[factor] for one in requested if factor in one]
    return max((levels.count(level) for level in set(levels)), default=0) / max(len(levels), 1)
