"""The contract of a condition: what the transformer is conditioned on, read from rows and from requests."""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vgjax.data.records import Rows
from vgjax.models.text_encoder import TextEncoder
from vgjax.types import Inputs, Keep, Request, Tokens

Frozen = Mapping[str, Any]
RowsOf = Callable[[Sequence[str], str], Rows]  # (columns, split) -> rows that carry those columns


class Condition(abc.ABC):
    """One way of telling the transformer; it holds its Flax module and knows sizes, but no weights.

    Attributes:
      channels: names, in the order of guidance; each has a null, a dropout rate and a guidance weight.
      columns: derived columns that training rows must carry.
      worded: fields of those that hold something of each of a picture's captions, one of which makes a row.
      needs: stages whose exported variables training reads in `frozen`, each under its name.
      request_needs: the same for drawing.
      fit_columns: derived columns that `fit` reads, under the config keys `fit_keys`.
      keys: config keys that training reads, and `request_keys` those that drawing reads besides.
      reads_text: whether requests are read by the text encoder.
      takes_masks: whether a request may give pictures and a lesion mask.
    """

    channels: tuple[str, ...]
    columns: tuple[str, ...]
    worded: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    request_needs: tuple[str, ...] = ()
    fit_columns: tuple[str, ...] = ()
    fit_keys: tuple[str, ...] = ()
    keys: tuple[str, ...]
    request_keys: tuple[str, ...] = ()
    reads_text: bool = True
    takes_masks: bool = False

    def fit(self, rows: RowsOf) -> dict[str, np.ndarray]:
        """What is fixed before training and then joins `frozen` as "basis": means, whitening, classes; may be empty."""
        return {}

    def frozen(self) -> dict[str, Any]:
        """Variables of networks that come pretrained and stay as they are, which join `frozen`."""
        return {}

    def pretrained(self) -> Any | None:
        """Parameters from a file that the config names in the place of training; None where it names none."""
        return None

    @abc.abstractmethod
    def example(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        """The arrays of one training row."""

    @abc.abstractmethod
    def init(self, key: jax.Array, frozen: Frozen) -> tuple[Any, Tokens]:
        """Parameters of the module, and tokens of the shapes that the transformer is to be initialised for."""

    @abc.abstractmethod
    def from_rows(self, frozen: Frozen, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Inputs:
        """Inputs of a batch of examples; with a key, with the noise of training."""

    @abc.abstractmethod
    def from_requests(
        self, frozen: Frozen, requests: Sequence[Request], request_seeds: Sequence[int], encode: TextEncoder
    ) -> Inputs:
        """Inputs of what is to be drawn.

        Args:
          request_seeds: of each request, for what is drawn at random.
          encode: reads their texts; None for a condition that reads none.

        Raises:
          ConfigError: a request asks for nothing that this condition can express.
        """

    @abc.abstractmethod
    def tokens(self, params: Any, frozen: Frozen, inputs: Inputs, keep: Keep) -> Tokens:
        """What the transformer reads; channels whose `keep` is False use their null."""


def in_parts(call: Callable[[Any], Any], columns: Any, count: int, together: int) -> Any:
    """What `call` makes of `count` rows of a tree of arrays, given to it `together` at a time, always as many."""
    parts = []
    for start in range(0, count, together):
        rows = np.minimum(np.arange(start, start + together), count - 1)
        parts.append(jax.device_get(call(jax.tree.map(lambda a, r=rows: a[r], columns))))
    return jax.tree.map(lambda *of_each: np.concatenate(of_each)[:count], *parts)
