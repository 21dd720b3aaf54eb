"""Kvasir-SEG (Jha et al., MMM 2020): endoscopy pictures of polyps with masks, in the layout of the published archive.

    root/images/<id>.jpg   RGB
    root/masks/<id>.jpg    0 and 255 with JPEG noise
    train.txt, val.txt     optional, beside images/ or in the folder above: the official 880 and 120 ids, one a line

The lists become the splits "train" and "test"; where they are, they say which pictures belong to the dataset, so one
that is in neither, or in both, is left out. Without them there is no official split. The boxes of kavsir_bboxes.json
follow from the masks and are not read. The dataset has no text and no patients.
"""

import os
import pathlib

from vgjax.data.caption.words import POLYP
from vgjax.data.entries import SUFFIXES, Entry, Index, Listing, bad_root, check_links, find, home, remedy
from vgjax.data.prepare.plan import FileSource
from vgjax.data.read.tables import read_text

HOLDS = "the folder that holds images/ and masks/"
FOLDERS = ("images", "masks")
LABEL = "polyp"
LISTS = {"train": "train.txt", "test": "val.txt"}


def check(root: str) -> pathlib.Path:
    """The root; ConfigError where it is missing, laid out otherwise, empty or linked outwards, or lacks one list."""
    base = home(root, HOLDS)
    if absent := [name for name in FOLDERS if not os.path.isdir(base / name)]:
        raise bad_root(f"folder '{root}' has no {' and no '.join(absent)} folder: {remedy(base, FOLDERS[:1], HOLDS)}")
    check_links(base, FOLDERS)
    for folder in (base / name for name in FOLDERS):
        if not find(folder.resolve(), SUFFIXES):
            raise bad_root(f"'{folder}' holds no picture: unpack Kvasir-SEG again")
    _lists(base)
    return base


def index(root: str) -> Index:
    """All pictures and masks below the root.

    Raises:
      ConfigError: see `check`; or the lists cannot be read or name none of the pictures; or no picture can be used.
    """
    base = check(root)
    homes = {name: (base / name).resolve() for name in FOLDERS}  # a folder may be a link to another inside the root
    home_of = lambda path: next((name for name in reversed(FOLDERS) if path.is_relative_to(homes[name])), "")
    listing = Listing(base)
    images, masks = listing.images_and_masks(lambda path: (home_of(path).removesuffix("s"), path.stem))
    splits = _splits(base, images)
    for name, image in sorted(images.items()):
        listed = splits.get(name, []) if splits else [""]
        if name not in masks:
            listing.skip(image, "no mask")
        elif len(listed) != 1:
            listing.skip(image, "in both lists" if listed else "in neither list")
        else:
            listing.add(Entry(name, image, (masks[name],), label=LABEL, split=listed[0]))
    for name in sorted(masks.keys() - images.keys()):
        listing.skip(masks[name], "mask without image", picture=False)
    for name in sorted(splits.keys() - images.keys()):
        listing.skip(name[:200], "listed without image", picture=False)
    return listing.index(root)


SOURCE = FileSource(check, index, POLYP, symmetries=8)


def _lists(base: pathlib.Path) -> dict[str, pathlib.Path]:
    """The official lists by split, or nothing."""
    for place in (base, base.parent):
        found = {split: place / name for split, name in LISTS.items() if os.path.isfile(place / name)}
        check_links(place, [path.name for path in found.values()])
        if len(found) == len(LISTS):
            return found
        if found and place == base:  # one alone in the place above may be anyone's
            raise bad_root(f"'{base}' holds only one of {' and '.join(LISTS.values())}: add the other, or remove it")
    return {}


def _splits(base: pathlib.Path, images: dict[str, pathlib.Path]) -> dict[str, list[str]]:
    """The splits that the lists give each id, or nothing where there are no lists."""
    lists = _lists(base)
    splits: dict[str, list[str]] = {}
    for split, path in lists.items():
        for line in map(str.strip, read_text(path).splitlines()):
            stem, suffix = os.path.splitext(line)
            name = stem if suffix.lower() in SUFFIXES else line
            if name and split not in splits.setdefault(name, []):
                splits[name].append(split)
    if lists and not splits.keys() & images.keys():
        raise bad_root(f"'{lists['train']}' and '{lists['test']}' name none of the pictures: remove or replace them")
    return splits
