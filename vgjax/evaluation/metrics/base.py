"""The contract of a metric: which pictures it wants drawn, and the estimates that it makes of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vgjax.data.entries import Levels, Reader
from vgjax.types import Request

CAPTIONS = "captions"  # the set that most metrics share: every test caption, `draws` times over


class Estimate(NamedTuple):
    """A measured number: a mean over `n` pictures or captions, with its 95 % interval where computed."""

    value: float
    n: int
    interval: tuple[float, float] | None = None


Results = Iterator[tuple[str, Estimate]]  # by name


class TestCase(NamedTuple):
    """What a test caption asks for, and which picture it was written about.

    Attributes:
      levels: level of each factor of the real picture, as far as the dataset tells.
      requested: of each factor that the caption names.
      image: (H, W, 3) uint8, the real picture.
      mask: (H, W) uint8.
    """

    caption: str
    label: str
    levels: Mapping[str, str]
    requested: Mapping[str, str]
    image: np.ndarray
    mask: np.ndarray

    def request(self) -> Request:
        """A picture of this caption (or class)."""
        return Request(prompt=self.caption, label=self.label)


class Seen(NamedTuple):
    """Pictures and what is read from them.

    Attributes:
      pictures: (N, H, W, 3) uint8.
      levels: factor -> level, of each picture.
      lesion: its probability (N, h, w) as the reader sees it; None where it looks at pictures alone.
      segmentation: the same by stage 1; None where the run has no stage 1.
      reconstruction: (N, h, w, 3) uint8 by stage 1, or None.
      factors: by channel, what stage 1 finds, (N, F); or None.
    """

    pictures: np.ndarray
    levels: Sequence[Levels]
    lesion: np.ndarray | None = None
    segmentation: np.ndarray | None = None
    reconstruction: np.ndarray | None = None
    factors: Mapping[str, np.ndarray] | None = None

    def first(self, count: int) -> "Seen":
        """The first `count` of them."""
        cut = lambda part: None if part is None else part[:count]
        factors = self.factors and {name: x[:count] for name, x in self.factors.items()}
        lesion, segmentation, reconstruction = map(cut, (self.lesion, self.segmentation, self.reconstruction))
        return Seen(self.pictures[:count], self.levels[:count], lesion, segmentation, reconstruction, factors)


class Options(NamedTuple):
    """What metrics get besides pictures.

    Attributes:
      draws: pictures a caption.
      resamples: of a bootstrap interval.
      training: the training pictures (H, W, 3) uint8, read anew on each call.
    """

    reader: Reader
    seed: int
    draws: int
    resamples: int
    training: Callable[[], Iterable[np.ndarray]] = tuple


RequestsOf = Callable[[Sequence[TestCase], Options], Sequence[Request]]


class Metric(NamedTuple):
    """A row of the table `vgjax.evaluation.metrics.METRICS`.

    Attributes:
      run: (cases, drawn sets by name, real pictures, options) -> estimates by name.
      sets: name -> the requests of a set of pictures; sets of equal names are one, drawn once and shared.
      needs: stages, styles of the reader, "held_out" pairs, a condition on "words" or "masks" (and pictures), "edits",
        without which it is left out.
      most: how many cases it looks at, the first ones; 0: all.
    """

    run: Callable[[Sequence[TestCase], Mapping[str, Seen], Seen, Options], Results]
    sets: Mapping[str, RequestsOf] = {}
    needs: tuple[str, ...] = ()
    most: int = 0

    def chosen(self, cases: Sequence[TestCase]) -> Sequence[TestCase]:
        """The cases that it looks at."""
        return cases[: self.most or None]

    def estimates(self, cases: Sequence[TestCase], drawn: Mapping[str, Seen], real: Seen, options: Options) -> Results:
        """Of all that was drawn."""
        chosen = self.chosen(cases)
        return self.run(chosen, drawn, real.first(len(chosen)), options)


def caption_requests(cases: Sequence[TestCase], options: Options) -> list[Request]:
    """Every caption in order, `draws` times over."""
    return [case.request() for case in cases] * options.draws


def other_case(cases: Sequence[TestCase], place: int) -> TestCase:
    """The case half of all further on, whose levels stand in for those of the one at a place."""
    return cases[(place + len(cases) // 2) % len(cases)]
