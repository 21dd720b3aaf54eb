"""How a phantom is put into words: wordings of every level, and sentence patterns in the style of a clinical note.

A wording names one level of one factor and shares no telling word with another factor, so that what a caption says can
be read back from its single words and word pairs.
"""

from collections.abc import Collection, Mapping

import numpy as np

from vgjax.data.caption.words import article

# Adjectives before "lesion" (size, shape), then phrases behind it (position, count). Seeds draw by the order of levels.
ANATOMY_WORDINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "size": {
        "small": ("small", "tiny", "little"),
        "medium": ("medium-sized", "mid-sized", "intermediate-size"),
        "large": ("large", "big", "extensive"),
    },
    "shape": {
        "round": ("round", "circular", "disc-like"),
        "oval": ("oval", "elliptical", "elongated"),
        "lobed": ("lobed", "three-lobed", "trefoil"),
    },
    "position": {
        "upper left": ("in the upper left", "at the top left", "in the upper left quadrant"),
        "upper centre": ("in the upper centre", "at the top centre", "in the upper midline"),
        "upper right": ("in the upper right", "at the top right", "in the upper right quadrant"),
        "middle left": ("in the middle left", "at the left margin", "on the left side"),
        "centre": ("in the very centre", "in the exact centre", "lying centrally"),
        "middle right": ("in the middle right", "at the right margin", "on the right side"),
        "lower left": ("in the lower left", "at the bottom left", "in the lower left quadrant"),
        "lower centre": ("in the lower centre", "at the bottom centre", "in the lower midline"),
        "lower right": ("in the lower right", "at the bottom right", "in the lower right quadrant"),
    },
    "count": {
        "none": ("without satellites", "with no satellites", "standing alone"),
        "one": ("with one satellite", "accompanied by a single satellite", "beside one daughter spot"),
        "two": ("with two satellites", "accompanied by a pair of satellites", "beside two daughter spots"),
    },
}

# Noun phrases that can follow "shows" or "with" in any order.
MODALITY_WORDINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "colour": {
        "grey": ("a grey cast", "a greyish tint", "a neutral hue"),
        "red": ("a red cast", "a reddish tint", "a rosy hue"),
        "green": ("a green cast", "a greenish tint", "an emerald hue"),
        "blue": ("a blue cast", "a bluish tint", "an azure hue"),
        "amber": ("an amber cast", "a yellowish tint", "a golden hue"),
    },
    "brightness": {
        "dark": ("dark exposure", "dim illumination", "underexposed lighting"),
        "normal": ("normal exposure", "ordinary illumination", "balanced lighting"),
        "bright": ("bright exposure", "brilliant illumination", "overexposed lighting"),
    },
    "contrast": {
        "low": ("low contrast", "faint demarcation", "weak contrast"),
        "moderate": ("moderate contrast", "fair demarcation", "average contrast"),
        "high": ("high contrast", "strong demarcation", "striking contrast"),
    },
    "texture": {
        "smooth": ("smooth texture", "a clean surface", "noiseless texture"),
        "grainy": ("grainy texture", "a speckled surface", "noisy texture"),
        "lined": ("lined texture", "a striped surface", "scan-line texture"),
    },
    "blur": {
        "sharp": ("sharp focus", "crisp edges", "sharp edges"),
        "soft": ("soft focus", "softened edges", "soft edges"),
        "blurred": ("blurred focus", "fuzzy edges", "blurred edges"),
    },
}

# The last wording of each level is kept out of training and of test captions: the metric "reworded" asks with it.
KNOWN_WORDINGS = slice(None, -1)
NEW_WORDINGS = slice(-1, None)

NOUNS = ("lesion", "nodule", "focus of disease")
WORDINGS = ANATOMY_WORDINGS | MODALITY_WORDINGS

# {a}: the lesion, a noun phrase with its article; {m}: the imaging style, a list of noun phrases.
PATTERNS: tuple[str, ...] = (
    "There is {a}. The image shows {m}.",
    "The picture shows {a}, recorded with {m}.",
    "Findings: {a}. Technique: {m}.",
    "We see {a}; the photograph has {m}.",
    "Dermoscopy reveals {a}. Acquired with {m}.",
    "Examination demonstrates {a}. Image quality: {m}.",
    "On inspection there is {a}, captured with {m}.",
    "The patient presents with {a}. The recording has {m}.",
    "Impression: {a}. Appearance: {m}.",
    "Visible is {a}. The scan comes with {m}.",
    "The image shows {m}. There is {a}.",
    "Recorded with {m}, the picture shows {a}.",
    "Technique: {m}. Findings: {a}.",
    "The photograph has {m}; we see {a}.",
    "Acquired with {m}. Dermoscopy reveals {a}.",
    "Image quality: {m}. Examination demonstrates {a}.",
    "Captured with {m}, this view documents {a}.",
    "The recording has {m}. The patient presents with {a}.",
    "Appearance: {m}. Impression: {a}.",
    "With {m}, the scan depicts {a}.",
)
# Kept out of training and of test captions likewise.
NEW_PATTERNS: tuple[str, ...] = (
    "A frame with {m}, in which one finds {a}.",
    "Follow-up image with {m}: {a}.",
    "This study contains {a} and displays {m}.",
    "Report: {a}, seen with {m}.",
)
ANATOMY_ONLY: tuple[str, ...] = ("There is {a}.", "Findings: {a}.", "The picture shows {a}.")
MODALITY_ONLY: tuple[str, ...] = ("The image shows {m}.", "Technique: {m}.", "A frame with {m}.")
NOTHING_SAID: tuple[str, ...] = ("A clinical photograph.", "An image of the skin.")


def compose(
    factors: Mapping[str, str],
    rng: np.random.Generator,
    named: Collection[str],
    wordings: slice = KNOWN_WORDINGS,
    patterns: tuple[str, ...] = PATTERNS,
) -> str:
    """One caption that names the level of every factor in `named` and of no other.

    Args:
      wordings: which of a level's wordings to choose among.
      patterns: sentences for captions that name factors of both channels.
    """
    pick = lambda choices: choices[int(rng.integers(len(choices)))]  # as rng.choice, which is ten times slower
    word = lambda levels, name: pick(levels[factors[name]][wordings])
    words = {name: word(levels, name) for name, levels in ANATOMY_WORDINGS.items() if name in named}
    anatomy = ""
    if words:
        noun = " ".join([*(words[n] for n in ("size", "shape") if n in words), pick(NOUNS)])
        anatomy = " ".join([article(noun), *(words[n] for n in ("position", "count") if n in words)])
    phrases = [word(levels, name) for name, levels in MODALITY_WORDINGS.items() if name in named]
    phrases = [phrases[i] for i in rng.permutation(len(phrases))]
    modality = " and ".join(filter(None, [", ".join(phrases[:-1]), *phrases[-1:]]))
    if not (anatomy and modality):
        patterns = ANATOMY_ONLY if anatomy else MODALITY_ONLY if modality else NOTHING_SAID
    text = pick(patterns).format(a=anatomy, m=modality)
    return text[0].upper() + text[1:]
