"""BUSI (Al-Dhabyani et al., Data in Brief, 2020): breast ultrasound pictures with masks, in the published layout.

    root/<class>/<class> (<n>).png          benign, malignant or normal
    root/<class>/<class> (<n>)_mask.png     and _mask_1.png, _mask_2.png ... where there are several lesions

The masks of a picture are united. Those of the class normal are black, so a normal picture without one is used all the
same. The dataset has no text, no patients and no official split; many frames are repeated, so near duplicates must be
grouped before splitting.
"""

from __future__ import annotations

import os
import pathlib
import re

from vgjax.config import ConfigError
from vgjax.data.caption.words import BREAST
from vgjax.data.entries import Entry, Index, Skip, fault, find, home, inside, shown
from vgjax.data.prepare.plan import FileSource

CLASSES = ("benign", "malignant", "normal")
EMPTY = "normal"  # the class whose masks are black
MASK = re.compile(r"(?P<image>.*)_mask(_\d+)?", re.IGNORECASE | re.DOTALL)
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")

Place = tuple[pathlib.Path, str]  # folder and stem of an image, which its masks share


def check(root: str) -> None:
    """Validates the layout by names alone; a copy may lack one or two of the classes.

    Raises:
      ConfigError: the folder is missing, has another layout or is empty, or a link leads out of it.
    """
    base = home(root, "the folder Dataset_BUSI_with_GT")
    classes = [name for name in CLASSES if os.path.isdir(base / name)]
    if not classes:
        # The archive unpacks into a folder of its own; naming the one above is the likeliest slip.
        _, folders, _ = next(os.walk(base), ("", [], []))
        within = (name for name in sorted(folders) if any(os.path.isdir(base / name / label) for label in CLASSES))
        inner = next(within, None)
        remedy = f"did you mean '{base / inner}'?" if inner else "name the folder Dataset_BUSI_with_GT"
        raise ConfigError(
            f"config key 'data.root': folder '{root}' has none of the folders {', '.join(CLASSES)}: {remedy}"
        )
    for name in classes:
        if not inside(base, base / name):
            raise ConfigError(
                f"config key 'data.root': '{base / name}' links out of '{root}': replace it by the folder itself"
            )
    if not any(find((base / name).resolve(), SUFFIXES) for name in classes):
        raise ConfigError(
            f"config key 'data.root': the folders {', '.join(classes)} in '{root}' hold no picture: unpack BUSI again"
        )


def index(root: str) -> Index:
    """All pictures and masks below the root.

    A name that leads nowhere or out of the root counts as a present picture; what macOS leaves behind ("__MACOSX",
    "._x.png") does not. A picture of which any mask is unusable is left out: the other masks would be half the truth.

    Raises:
      ConfigError: see `check`; or no picture can be used.
    """
    check(root)
    base = home(root, "the folder Dataset_BUSI_with_GT")
    homes = {name: (base / name).resolve() for name in CLASSES}  # a folder may be a link to another inside the root
    images, masks, skipped, present = _files(base, homes)
    entries: dict[str, Entry] = {}
    for place, (image, label) in images.items():
        mine = masks.get(place, [])
        reason = ""
        if place[1] in entries:
            reason = "same id twice"
        elif None in mine:
            reason = "unusable mask"
        elif not mine and label != EMPTY:
            reason = "no mask"
        if reason:
            skipped.append(Skip(shown(base, image), reason))
        else:
            found = tuple(mask for mask in mine if mask)
            entries[place[1]] = Entry(id=place[1], image=image, masks=found, label=label)
    for place in masks.keys() - images.keys():
        lonely = (mask for mask in masks[place] if mask)
        skipped += [Skip(shown(base, mask), "mask without image", picture=False) for mask in lonely]
    return Index(tuple(entries[name] for name in sorted(entries)), tuple(sorted(skipped)), present).check(root)


SOURCE = FileSource(check, index, BREAST)


def _files(
    base: pathlib.Path, homes: dict[str, pathlib.Path]
) -> tuple[dict[Place, tuple[pathlib.Path, str]], dict[Place, list[pathlib.Path | None]], list[Skip], int]:
    """Images with their class, masks (None for an unusable one), what is neither, and how many pictures there are."""
    images: dict[Place, tuple[pathlib.Path, str]] = {}
    masks: dict[Place, list[pathlib.Path | None]] = {}
    skipped = []
    present = 0
    for path in find(base, SUFFIXES):
        label = next((name for name in CLASSES if path.is_relative_to(homes[name])), "")
        mask = MASK.fullmatch(path.stem)
        present += mask is None
        reason = fault(base, path) if label else "not in a class folder"
        if mask and label:
            masks.setdefault((path.parent, mask["image"]), []).append(None if reason else path)
        elif not reason and (path.parent, path.stem) in images:
            reason = "same id twice"
        elif not reason:
            images[path.parent, path.stem] = (path, label)
        if reason:
            skipped.append(Skip(shown(base, path), reason, picture=mask is None))
    return images, masks, skipped, present
