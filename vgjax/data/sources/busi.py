"""BUSI (Al-Dhabyani et al., Data in Brief, 2020): breast ultrasound pictures with masks, in the published layout.

    root/<class>/<class> (<n>).png          benign, malignant or normal
    root/<class>/<class> (<n>)_mask.png     and _mask_1.png, _mask_2.png ... where there are several lesions

The masks of a picture are united. Those of the class normal are black, so a normal picture without one is used all the
same. The dataset has no text, no patients and no official split; many frames are repeated, so near duplicates must be
grouped before splitting.
"""

import collections
import itertools
import os
import pathlib
import re

from vgjax.data.caption.words import BREAST
from vgjax.data.entries import SUFFIXES, Entry, Index, Listing, bad_root, check_links, fault, find, home, remedy
from vgjax.data.prepare.plan import FileSource

HOLDS = "the folder Dataset_BUSI_with_GT"
CLASSES = ("benign", "malignant", "normal")
EMPTY = "normal"  # the class whose masks are black
MASK = re.compile(r"(?P<image>.*)_mask(_\d+)?", re.IGNORECASE | re.DOTALL)

Place = tuple[pathlib.Path, str]  # folder and stem of an image, which its masks share


def check(root: str) -> pathlib.Path:
    """The root, with any of the classes; ConfigError where it is missing, has none, is empty or is linked outwards."""
    base = home(root, HOLDS)
    classes = [name for name in CLASSES if os.path.isdir(base / name)]
    if not classes:
        raise bad_root(f"folder '{root}' has none of the folders {', '.join(CLASSES)}: {remedy(base, CLASSES, HOLDS)}")
    check_links(base, classes)
    if not any(find((base / name).resolve(), SUFFIXES) for name in classes):
        raise bad_root(f"the folders {', '.join(classes)} in '{root}' hold no picture: unpack BUSI again")
    return base


def index(root: str) -> Index:
    """All pictures and masks below the root.

    A picture of which any mask is unusable is left out: the other masks would be half the truth.

    Raises:
      ConfigError: see `check`; or no picture can be used.
    """
    base = check(root)
    listing = Listing(base)
    homes = {name: os.path.realpath(base / name) for name in CLASSES}  # may be links to others inside the root
    images: dict[Place, tuple[pathlib.Path, str]] = {}  # with their class
    masks = collections.defaultdict[Place, list[pathlib.Path | None]](list)  # None: unusable
    for path in find(base, SUFFIXES):
        label = next((name for name in CLASSES if path.is_relative_to(homes[name])), "")
        mask = MASK.fullmatch(path.stem)
        listing.present += mask is None
        reason = fault(base, path) if label else "not in a class folder"
        if mask and label:
            masks[path.parent, mask["image"]].append(None if reason else path)
        elif not reason and (path.parent, path.stem) in images:
            reason = "same id twice"
        elif not reason:
            images[path.parent, path.stem] = path, label
        if reason:
            listing.skip(path, reason, picture=mask is None)
    used: set[str] = set()
    for (folder, name), (image, label) in images.items():
        mine = masks.pop((folder, name), [])
        found = tuple(filter(None, mine))
        reason = ""
        if name in used:
            reason = "same id twice"
        elif len(found) < len(mine):
            reason = "unusable mask"
        elif not mine and label != EMPTY:
            reason = "no mask"
        else:
            used.add(name)
        listing.add(Entry(name, image, found, label=label), reason)
    for lonely in filter(None, itertools.chain.from_iterable(masks.values())):
        listing.skip(lonely, "mask without image", picture=False)
    return listing.index(root)


SOURCE = FileSource(check, index, BREAST, symmetries=2)
