"""Kvasir-SEG (Jha et al., MMM 2020): endoscopy pictures of polyps with masks, in the layout of the published archive.

    root/images/<id>.jpg   RGB
    root/masks/<id>.jpg    0 and 255 with JPEG noise
    train.txt, val.txt     optional, beside images/ or in the folder above: the official 880 and 120 ids, one a line

The lists become the splits "train" and "test"; where they are, they say which pictures belong to the dataset, so one
that is in neither, or in both, is left out. Without them there is no official split. The boxes of kavsir_bboxes.json
follow from the masks and are not read. The dataset has no text and no patients.
"""

from __future__ import annotations

import os
import pathlib

from vgjax.config import ConfigError
from vgjax.data.caption.words import POLYP
from vgjax.data.entries import Entry, Index, Skip, fault, find, home, inside, shown
from vgjax.data.prepare.plan import FileSource

FOLDERS = ("images", "masks")
LABEL = "polyp"
LISTS = {"train": "train.txt", "test": "val.txt"}
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")


def check(root: str) -> None:
    """Validates the layout by names alone.

    Raises:
      ConfigError: the folder is missing, has another layout or is empty, a link leads out of it, or one of the lists is
        missing.
    """
    base = home(root, "the folder that holds images/ and masks/")
    absent = [name for name in FOLDERS if not os.path.isdir(base / name)]
    if absent:
        # The archive unpacks into a folder of its own; naming the one above is the likeliest slip.
        _, folders, _ = next(os.walk(base), ("", [], []))
        inner = next((name for name in sorted(folders) if os.path.isdir(base / name / FOLDERS[0])), None)
        remedy = f"did you mean '{base / inner}'?" if inner else "name the folder that holds images/ and masks/"
        raise ConfigError(f"config key 'data.root': folder '{root}' has no {' and no '.join(absent)} folder: {remedy}")
    for name in FOLDERS:
        if not inside(base, base / name):
            raise ConfigError(
                f"config key 'data.root': '{base / name}' links out of '{root}': replace it by the folder itself"
            )
        if not find((base / name).resolve(), SUFFIXES):
            raise ConfigError(f"config key 'data.root': '{base / name}' holds no picture: unpack Kvasir-SEG again")
    _lists(base)


def index(root: str) -> Index:
    """All pictures and masks below the root.

    A name that leads nowhere or out of the root counts as a present picture; what macOS leaves behind ("__MACOSX",
    "._x.jpg") does not.

    Raises:
      ConfigError: see `check`; or the lists cannot be read or name none of the pictures; or no picture can be used.
    """
    check(root)
    base = home(root, "the folder that holds images/ and masks/")
    images, masks, skipped, present = _files(base)
    splits = _splits(base, images)
    entries = []
    for name, image in sorted(images.items()):
        listed = splits.get(name, []) if splits else [""]
        if name not in masks:
            skipped.append(Skip(shown(base, image), "no mask"))
        elif len(listed) != 1:
            skipped.append(Skip(shown(base, image), "in both lists" if listed else "in neither list"))
        else:
            entries.append(Entry(id=name, image=image, masks=(masks[name],), label=LABEL, split=listed[0]))
    for name in sorted(masks.keys() - images.keys()):
        skipped.append(Skip(shown(base, masks[name]), "mask without image", picture=False))
    for name in sorted(splits.keys() - images.keys()):
        skipped.append(Skip(name[:200], "listed without image", picture=False))
    return Index(tuple(entries), tuple(skipped), present).check(root)


SOURCE = FileSource(check, index, POLYP)


def _files(base: pathlib.Path) -> tuple[dict[str, pathlib.Path], dict[str, pathlib.Path], list[Skip], int]:
    """Images and masks by id, what is neither, and how many pictures there are."""
    files: dict[str, dict[str, pathlib.Path]] = {name: {} for name in FOLDERS}
    homes = {name: (base / name).resolve() for name in FOLDERS}  # a folder may be a link to another inside the root
    skipped = []
    present = 0
    for path in find(base, SUFFIXES):
        kind = next((name for name in reversed(FOLDERS) if path.is_relative_to(homes[name])), "")
        reason = fault(base, path)
        if not kind:
            reason = "not in images or masks"
        elif not reason and path.stem in files[kind]:
            reason = f"same {kind.removesuffix('s')} twice"
        if reason:
            skipped.append(Skip(shown(base, path), reason, picture=kind != "masks"))
        else:
            files[kind][path.stem] = path
        present += kind != "masks"
    return files["images"], files["masks"], skipped, present


def _lists(base: pathlib.Path) -> dict[str, pathlib.Path]:
    """The official lists by split, or nothing."""
    for place in (base, base.parent):
        found = {split: place / name for split, name in LISTS.items() if os.path.isfile(place / name)}
        for path in found.values():
            if not inside(place, path):
                raise ConfigError(
                    f"config key 'data.root': '{path}' links out of '{place}': replace it by the file itself"
                )
        if len(found) == len(LISTS):
            return found
        if found and place == base:  # one alone in the place above may be anyone's
            raise ConfigError(
                f"config key 'data.root': '{base}' holds only one of {' and '.join(LISTS.values())}: add the other, or"
                " remove it"
            )
    return {}


def _splits(base: pathlib.Path, images: dict[str, pathlib.Path]) -> dict[str, list[str]]:
    """The splits that the lists give each id, or nothing where there are no lists."""
    lists = _lists(base)
    splits: dict[str, list[str]] = {}
    for split, path in lists.items():
        try:
            text = path.read_bytes().decode("utf-8-sig", errors="replace")
        except OSError as error:
            raise ConfigError(
                f"config key 'data.root': '{path}' cannot be read ({error.strerror}): mend or remove the lists"
            ) from error
        for line in dict.fromkeys(line.strip() for line in text.splitlines()):
            stem, suffix = os.path.splitext(line)
            name = stem if suffix.lower() in SUFFIXES else line
            if name and split not in splits.setdefault(name, []):
                splits[name].append(split)
    if lists and not splits.keys() & images.keys():
        raise ConfigError(
            f"config key 'data.root': '{lists['train']}' and '{lists['test']}' name none of the pictures: remove or"
            " replace them"
        )
    return splits
