"""Reads a picture's factors back from a mask of its lesion and from its pixels, in the levels of its captions."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from vgjax.data.caption.measure import ALWAYS_NAMED, attribute_levels, describe, measure_attributes
from vgjax.data.caption.words import Vocabulary
from vgjax.data.entries import Levels, Reader, Thresholds


def mask_reader(vocabulary: Vocabulary, thresholds: Thresholds) -> Reader:
    """The reader of position, size and all of modality; the lesion is where its probability is above one half."""
    channels = {factor: "anatomy" for factor in ALWAYS_NAMED if factor in vocabulary.anatomy}
    channels |= dict.fromkeys(vocabulary.modality, "modality")
    # Of a picture without lesion the style can be read, whether or not its caption could say so.
    measured = dataclasses.replace(vocabulary, empty=vocabulary.empty or ("nothing",))

    def read(pictures: np.ndarray, lesion: np.ndarray) -> list[Levels]:
        found: list[Levels] = []
        for picture, mask in zip(pictures, lesion > 0.5, strict=True):
            levels = attribute_levels(measure_attributes(picture, mask, measured), thresholds, vocabulary)
            found.append({factor: level for factor, level in levels.items() if factor in channels})
        return found

    return Reader(
        channels=channels,
        described=dict.fromkeys(vocabulary.anatomy, "anatomy") | dict.fromkeys(vocabulary.modality, "modality"),
        read=read,
        chance=majority,
        # It has no style but the one that training knows.
        describe=lambda levels, rng, named, style="": describe(levels, rng, named, vocabulary),
        from_mask=True,
    )


def majority(requested: Sequence[Mapping[str, str]], factor: str) -> float:
    """Share of the commonest requested level: what always answering it would score."""
    levels = [one[factor] for one in requested if factor in one]
    return max((levels.count(level) for level in set(levels)), default=0) / max(len(levels), 1)
