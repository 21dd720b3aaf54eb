"""Further captions of a training picture, from which the text stage learns what words mean and what they leave open.

Each channel has captions of its own: they say what is true of the picture in that channel, and of the other channel
what is true of some other training picture. So neither channel can learn from words that are about the other one.
Captions of `BOTH` are true throughout, for baselines that know no channels. Which facts are said, and how, is drawn
anew for each.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vgjax.types import CHANNELS

BOTH = "both"
SENTENCE = re.compile(r"(?<=[.!?;])\s+")
KEPT = 0.7  # probability that a sentence of the dataset's own text is kept
TRIES = 20  # other pictures that are looked at for one whose levels may stand beside these

Levels = Mapping[str, str]


def swapped(
    levels: Levels,
    others: Sequence[Levels],
    channels: Mapping[str, str],
    describe: Callable[[Levels, np.random.Generator], str],
    count: int,
    rng: np.random.Generator,
    allowed: Callable[[Levels], bool] = lambda levels: True,
) -> dict[str, list[str]]:
    """`count` captions of each channel, the other channel's clause taken from other pictures, and of `BOTH`.

    Args:
      levels: factor -> level, of the picture.
      others: the same of the training pictures.
      channels: factor -> "anatomy" or "modality".
      describe: draws which of the levels to name, and how.
      allowed: whether levels may be named together (False for combinations kept out of training).
    """
    found: dict[str, list[str]] = {}
    for channel in CHANNELS:
        own = {factor: level for factor, level in levels.items() if channels[factor] == channel}
        found[channel] = []
        for _ in range(count):
            for place in rng.integers(len(others), size=TRIES):
                other = {f: level for f, level in others[place].items() if channels[f] != channel}
                if allowed(own | other):
                    break
            else:
                other = {f: level for f, level in levels.items() if channels[f] != channel}
            found[channel].append(describe({f: (own | other)[f] for f in channels if f in own or f in other}, rng))
    return found | {BOTH: [describe(levels, rng) for _ in range(count)]}


def shortened(text: str, count: int, rng: np.random.Generator) -> dict[str, list[str]]:
    """`count` copies of a text of unknown clauses, sentences left out at random; the same whatever they are for."""
    sentences = SENTENCE.split(text)
    copies = []
    for _ in range(count):
        kept = rng.random(len(sentences)) < KEPT
        kept[rng.integers(len(sentences))] = True
        copies.append(" ".join(sentence for sentence, keep in zip(sentences, kept, strict=True) if keep))
    return dict.fromkeys((*CHANNELS, BOTH), copies)
