"""The types that pass between packages: what one stage hands to the next.

Axes are written into the names: B batch, H W C image, g coarse grid, K anatomy factors, Z modality factors,
D width, N tokens.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import numpy as np

SPLITS = ("train", "validation", "test")
CHANNELS = ("anatomy", "modality")

# What a condition makes of a batch: by channel, arrays with a leading batch axis.
Inputs = dict[str, Any]
# Channel -> (B,) bool, False where its null takes the place of the input.
Keep = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Item:
    """One picture of a dataset as its source yields it, before any resizing.

    Attributes:
      id: unique within the dataset.
      split: one of `SPLITS`.
      image: (H, W, 3) uint8.
      mask: (H, W) uint8, 1 where the lesion is.
      caption: what the text stages see.
      label: class name; used by evaluation only, never by a training stage.
      factors: ground-truth (or measured) attributes, name -> level; used by evaluation only.
      named: the factors that the caption names; the others were left unsaid.
    """

    id: str
    split: str
    image: np.ndarray
    mask: np.ndarray
    caption: str
    label: str = ""
    factors: dict[str, str] = dataclasses.field(default_factory=dict)
    named: tuple[str, ...] = ()


@flax.struct.dataclass
class Factors:
    """The pair of channels that every condition consists of, wherever it came from (image, text or mask).

    Attributes:
      anatomy_BggK: spatial structure on a coarse grid (the full-resolution map inside stage 1).
      modality_BZ: global imaging style.
    """

    anatomy_BggK: Any
    modality_BZ: Any

    def pooled(self) -> Any:
        """Area fraction of each anatomy factor, (B, K): what the published system passes on."""
        return self.anatomy_BggK.mean(axis=(1, 2))


@flax.struct.dataclass
class Tokens:
    """What the diffusion transformer is conditioned on.

    Attributes:
      tokens_BND: for cross-attention, one a channel.
      mask_BN: 1 where a token may be attended to.
      spatial_BggD: anatomy on its coarse grid, added to the patch tokens; None in the reference.
      style_BD: modality, added to the timestep embedding; None in the reference.
    """

    tokens_BND: Any
    mask_BN: Any
    spatial_BggD: Any = None
    style_BD: Any = None


@dataclasses.dataclass(frozen=True)
class Request:
    """What a picture to be drawn is asked to show; a channel of which nothing is asked is drawn at random.

    Attributes:
      prompt: text for all channels; "" where nothing is asked in words.
      anatomy, modality: text for this channel in the place of the prompt.
      anatomy_image, modality_image: PNG of a picture that this channel is taken from; goes before text and mask.
      mask: PNG of a lesion mask, 1 or more where the lesion is, that the anatomy is to fit, beside any text.
      source: PNG of a picture to be edited: gives the noise, and every channel of which nothing else is asked.
      label: class name, for conditions that take one.
      seed: of its noise; None: of its place among the requests.
    """

    prompt: str = ""
    anatomy: str = ""
    modality: str = ""
    anatomy_image: bytes = b""
    modality_image: bytes = b""
    mask: bytes = b""
    source: bytes = b""
    label: str = ""
    seed: int | None = None

    def text(self, channel: str) -> str:
        """What is asked of a channel in words."""
        return getattr(self, channel, "") or self.prompt

    def picture(self, channel: str) -> bytes:
        """PNG of the picture that a channel is taken from; b"" where words, a mask or chance decide."""
        asked = self.text(channel) or (channel == "anatomy" and self.mask)
        return getattr(self, f"{channel}_image") or (b"" if asked else self.source)

    @property
    def shows_pictures(self) -> bool:
        """Whether anything is asked for by a picture or a mask."""
        return any((self.anatomy_image, self.modality_image, self.mask, self.source))
