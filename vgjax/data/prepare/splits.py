"""Which pictures are trained on and which are held out: by the dataset's own lists, or by a hash of the group's name.

A hash depends on nothing but the name, so adding or losing a picture moves no other group; and all of a group (a
patient, a lesion, near-duplicates) falls to one side. Shares are therefore only met on average.
"""

import hashlib
import itertools
import json
import logging
import os
import pathlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from scipy.cluster.hierarchy import DisjointSet

from vgjax.atomic import read_regular, write_text
from vgjax.config import ConfigError
from vgjax.types import SPLITS


class Assigned(NamedTuple):
    """Splits with what is wrong about them."""

    splits: dict[str, str]  # id -> split, in the order of the ids given
    torn: tuple[str, ...]  # groups that the dataset's own lists put into several splits, sorted
    absent: tuple[tuple[str, str], ...]  # (label, split) where a split with pictures has none of a class, sorted


def number(text: str) -> int:
    """A number in 0..2**64 - 1 that depends on the text alone."""
    # Names of files that are not UTF-8 hold surrogates.
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8], "big")


def merged(sets: Iterable[Sequence[str]]) -> dict[str, str]:
    """Name -> the smallest of all names that it shares a set with, directly or through others."""
    together = DisjointSet()
    for names in sets:
        for name in names:
            together.add(name)
            together.merge(names[0], name)
    return {name: min(found) for found in together.subsets() for name in found}


def split_of(name: str, seed: int, test_fraction: float, validation_fraction: float) -> str:
    """The split a group falls into: the hash of its name is a uniform number in 0..1, cut at the fractions."""
    uniform = number(f"split:{seed}:{name}") / 2**64
    if uniform < test_fraction:
        return "test"
    return "validation" if uniform < test_fraction + validation_fraction else "train"


def assign(
    ids: Sequence[str],
    groups: Sequence[str],
    labels: Sequence[str],
    official: Sequence[str],
    seed: int,
    test_fraction: float,
    validation_fraction: float,
) -> Assigned:
    """The split of each picture.

    Official splits, one of `SPLITS` each, hold for all pictures or are all "". A part that they lack is cut from their
    training part as without them, by group: the fractions, 0..1, are expected shares of the groups, and a picture of
    group "" is its own. Splits do not depend on the labels ("" for none), which only feed `absent`.

    Raises:
      ConfigError: only some pictures have an official split, or one is unknown.
    """
    given = _official_parts(ids, official)
    cut = (seed, 0.0 if "test" in given else test_fraction, 0.0 if "validation" in given else validation_fraction)
    splits = {
        item_id: own if own in ("test", "validation") else split_of(name or item_id, *cut)
        for item_id, name, own in zip(ids, groups, official, strict=True)
    }
    if torn := _torn(splits, dict(zip(ids, groups, strict=True))):
        logging.warning("the dataset's own splits tear %d groups apart, the first: %s", len(torn), next(iter(torn)))
    pairs = itertools.product(set(labels) - {""}, set(splits.values()))
    absent = set(pairs).difference(zip(labels, splits.values(), strict=True))
    return Assigned(splits, tuple(torn), tuple(sorted(absent)))


def write(folder: str | os.PathLike[str], splits: Mapping[str, str]) -> None:
    """Writes train.txt, validation.txt and test.txt, one id a line, sorted.

    An id that a line cannot hold as it is (line breaks, blanks at its ends, a leading quotation mark) is written as a
    JSON string.
    """
    # isprintable is False of line breaks of every alphabet and of surrogates, which UTF-8 cannot hold.
    plain = lambda name: name and name.isprintable() and name == name.strip() and name[0] != '"'
    for split in SPLITS:
        ids = (item_id for item_id in sorted(splits) if splits[item_id] == split)
        lines = [(item_id if plain(item_id) else json.dumps(item_id)) + "\n" for item_id in ids]
        write_text(pathlib.Path(folder, f"{split}.txt"), "".join(lines))


def read(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Id -> split, from the files that `write` makes or others of that form.

    Raises:
      ConfigError: a file is missing or unreadable, an id is listed twice, or train.txt is empty.
    """
    splits: dict[str, str] = {}
    for split in SPLITS:
        path = pathlib.Path(folder, f"{split}.txt")
        for number, item_id in _listed(path):
            if item_id in splits:
                raise ConfigError(
                    f"'{path}' line {number}: the id {item_id!r} stands in {splits[item_id]}.txt too (or twice):"
                    " leave it in one list"
                )
            splits[item_id] = split
    if "train" not in splits.values():
        raise ConfigError(f"'{pathlib.Path(folder, 'train.txt')}' lists no id: name at least one picture to train on")
    return splits


def leaks(splits: Mapping[str, str], groups: Mapping[str, str], hashes: Mapping[str, str]) -> list[str]:
    """What stands on both sides of a split, one sentence each, sorted; empty where nothing does.

    Ids are mapped to splits, groups ("" or absent for none) and `vgjax.data.prepare.duplicates.pixel_hash`.
    """
    found = [f"the group {name!r} is in {_places(parts)}" for name, parts in _torn(splits, groups).items()]
    found += [f"the same picture is in {_places(parts)}" for parts in _torn(splits, hashes).values()]
    return sorted(found)


def _official_parts(ids: Sequence[str], official: Sequence[str]) -> set[str]:
    given = set(official)
    if unknown := given - {"", *SPLITS}:
        raise ConfigError(f"the dataset names a split {min(unknown)!r}: use {', '.join(SPLITS)}")
    if "" in given and len(given) > 1:
        without = [item_id for item_id, own in zip(ids, official, strict=True) if not own]
        raise ConfigError(
            f"{len(without)} of {len(ids)} pictures have no official split, the first: {without[0]!r}: complete the"
            " dataset's split lists or remove them all"
        )
    return given


def _torn(splits: Mapping[str, str], kinds: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Kind -> split -> first id, for each kind (group, digest) that several splits share; sorted by kind."""
    parts: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for item_id in sorted(splits):
        if kind := kinds.get(item_id, ""):
            parts[kind].setdefault(splits[item_id], item_id)
    return {kind: parts[kind] for kind in sorted(parts) if len(parts[kind]) > 1}


def _places(parts: Mapping[str, str]) -> str:
    return " and ".join(f"{split} ({parts[split]!r})" for split in SPLITS if split in parts)


def _listed(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Line number and id of each line that is not empty."""
    try:
        lines = read_regular(path).decode("utf-8-sig").split("\n")
    except OSError as error:
        raise ConfigError(
            f"cannot read '{path}': {error.strerror}: a folder of splits holds train.txt, validation.txt and test.txt"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"'{path}' is not UTF-8: save it as plain text in UTF-8, one id a line") from error
    for number, text in enumerate(map(str.strip, lines), 1):
        try:
            if text:
                yield number, json.loads(text) if text.startswith('"') else text
        except ValueError as error:
            raise ConfigError(f"'{path}' line {number} is not a JSON string: close its quotation marks") from error
