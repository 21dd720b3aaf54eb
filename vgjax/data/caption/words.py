"""In which words attributes of pictures are named: one vocabulary for each kind of picture.

Levels and their synonyms are data; `vgjax.data.caption.measure` measures and composes.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

MEASURED_ANATOMY = ("position", "size", "shape")
MEASURED_MODALITY = ("colour", "brightness")

POSITIONS = (
    ("upper left", "upper centre", "upper right"),
    ("middle left", "centre", "middle right"),
    ("lower left", "lower centre", "lower right"),
)
SHAPES = ("irregular", "oval", "round")

Words = Mapping[str, Mapping[str, tuple[str, ...]]]

# The whole words "left" and "right" occur in positions only. Levels are in the order of their attribute.
OUTLINE_WORDS: Words = {
    "position": {
        "upper left": ("in the upper left", "at the top left"),
        "upper centre": ("in the upper centre", "at the top"),
        "upper right": ("in the upper right", "at the top right"),
        "middle left": ("in the middle left", "on the left"),
        "centre": ("in the centre", "in the middle"),
        "middle right": ("in the middle right", "on the right"),
        "lower left": ("in the lower left", "at the bottom left"),
        "lower centre": ("in the lower centre", "at the bottom"),
        "lower right": ("in the lower right", "at the bottom right"),
    },
    "size": {"small": ("small", "little"), "medium": ("medium-sized", "mid-sized"), "large": ("large", "big")},
    "shape": {"irregular": ("irregular", "lobed"), "oval": ("oval", "elongated"), "round": ("round", "rounded")},
}
BORDER_WORDS = {
    "smooth": ("with a smooth border", "with a clean outline"),
    "wavy": ("with a wavy border", "with an uneven outline"),
    "ragged": ("with a ragged border", "with a jagged outline"),
}
WORDS: Words = {
    **OUTLINE_WORDS,
    "colour": {"pink": ("pink", "pale pink"), "salmon": ("salmon", "peach"), "orange": ("orange", "deep orange")},
    "brightness": {
        "dark": ("dimly lit", "dark"),
        "normal": ("evenly lit", "moderately lit"),
        "bright": ("brightly lit", "bright"),
    },
}
# Noun phrases, to be strung together.
STYLE_WORDS: Words = {
    "contrast": {
        "low": ("low contrast", "faint contrast"),
        "moderate": ("moderate contrast", "fair contrast"),
        "high": ("high contrast", "strong contrast"),
    },
    "brightness": {
        "dark": ("low brightness", "dark tones"),
        "normal": ("medium brightness", "balanced tones"),
        "bright": ("high brightness", "bright tones"),
    },
}
SKIN_COLOURS = {"pink": ("pink", "rosy"), "tan": ("tan", "beige"), "brown": ("brown", "golden brown")}
TONES = {"cool": ("cool-toned", "cool"), "neutral": ("neutral-toned", "neutral"), "warm": ("warm-toned", "warm")}

ANATOMY_PATTERNS = {
    True: ("{lesion} {position}", "{lesion} is seen {position}", "{position} there is {lesion}"),
    False: ("{lesion}", "{lesion} is seen", "there is {lesion}"),
}
LUNG_PATTERNS = {False: ("{lesion}", "{lesion} are seen", "chest radiograph with {lesion}")}
MODALITY_PATTERNS = {
    ("colour", "brightness"): (
        "the mucosa is {colour} and {brightness}",
        "{brightness} view of {colour} mucosa",
        "{colour} mucosa, {brightness}",
    ),
    ("colour",): ("the mucosa is {colour}", "view of {colour} mucosa", "{colour} mucosa"),
    ("brightness",): ("the mucosa is {brightness}", "{brightness} view", "{brightness} picture"),
}


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """How one kind of picture is put into words."""

    lesion: str  # noun for what the masks outline
    tissue: str  # noun for what surrounds it
    anatomy: tuple[str, ...]  # factors of the mask, in the order in which they are drawn
    modality: tuple[str, ...]  # factors of the picture; without "colour" for grey pictures
    words: Words  # factor -> level -> synonyms
    anatomy_patterns: Mapping[bool, tuple[str, ...]]  # whether the position is named -> clauses
    modality_patterns: Mapping[tuple[str, ...], tuple[str, ...]]  # the factors named of modality -> clauses
    empty: tuple[str, ...] = ()  # clauses for a picture whose mask is empty; none where that cannot be described
    single: bool = True  # whether the lesion is one thing, which takes an article, or several, measured as one

    @property
    def factors(self) -> tuple[str, ...]:
        """All that a caption may name, anatomy first."""
        return self.anatomy + self.modality


def article(noun: str) -> str:
    """The noun with its indefinite article."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _style_patterns(picture: str, tissue: str, modality: Sequence[str]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Clauses that string together whichever factors are named."""
    patterns: dict[tuple[str, ...], tuple[str, ...]] = {}
    for count in range(1, len(modality) + 1):
        for named in itertools.combinations(modality, count):
            parts = [f"{{{name}}} {tissue}" if name == "colour" else f"{{{name}}}" for name in named]
            listed = " and ".join([", ".join(parts[:-1]), parts[-1]] if count > 1 else parts)
            patterns[named] = (f"the {picture} shows {listed}", f"{article(picture)} with {listed}", listed)
    return patterns


def general(
    lesion: str, tissue: str, picture: str, colours: Mapping[str, tuple[str, ...]], empty: tuple[str, ...] = ()
) -> Vocabulary:
    """The vocabulary of one lesion in a tissue; `colours` from cold to warm, none for grey pictures."""
    style: Words = {**({"colour": colours} if colours else {}), **STYLE_WORDS}
    return Vocabulary(
        lesion=lesion,
        tissue=tissue,
        anatomy=(*MEASURED_ANATOMY, "border"),
        modality=tuple(style),
        words={**OUTLINE_WORDS, "border": BORDER_WORDS, **style},
        anatomy_patterns=ANATOMY_PATTERNS,
        modality_patterns=_style_patterns(picture, tissue, tuple(style)),
        # Without a mask nothing is known of a lesion, not even that there is none.
        empty=empty or (article(picture), f"{article(picture)} of {tissue}"),
    )


POLYP = Vocabulary("polyp", "mucosa", MEASURED_ANATOMY, MEASURED_MODALITY, WORDS, ANATOMY_PATTERNS, MODALITY_PATTERNS)
SKIN = general("skin lesion", "skin", "dermoscopic picture", SKIN_COLOURS)
NO_LESION = ("an ultrasound without lesion", "no lesion is seen")
BREAST = general("breast lesion", "breast tissue", "ultrasound", {}, NO_LESION)
LUNGS = Vocabulary(
    lesion="lung fields",
    tissue="chest",
    anatomy=("size",),
    modality=tuple(STYLE_WORDS),
    words={"size": OUTLINE_WORDS["size"], **STYLE_WORDS},
    anatomy_patterns=LUNG_PATTERNS,
    modality_patterns=_style_patterns("radiograph", "chest", tuple(STYLE_WORDS)),
    empty=("a chest radiograph", "a radiograph of the chest"),
    single=False,
)
ANY = general("lesion", "tissue", "picture", TONES)
