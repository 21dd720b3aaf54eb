"""Datasets that are read from a folder: who is used, in which split, with which caption."""

import dataclasses
import itertools
import logging
import pathlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vgjax.config import Config, ConfigError
from vgjax.data.caption import measure as captions
from vgjax.data.caption.mask_reading import mask_reader
from vgjax.data.caption.wordings import shortened, swapped
from vgjax.data.caption.words import Vocabulary
from vgjax.data.entries import Entry, Index, Plan, Reader, Thresholds, bad_root, inside
from vgjax.data.prepare import duplicates, splits
from vgjax.data.prepare.parts import Parts
from vgjax.data.read.decode import Settings
from vgjax.data.read.tables import read_captions, tidy
from vgjax.types import SPLITS

LEAST = {"train": 2, "validation": 1, "test": 1}  # different pictures; one alone has no principal directions
Measured = Sequence[Mapping[str, Any]]  # what `decode` tells of each picture but the pictures themselves


@dataclasses.dataclass(frozen=True)
class FileSource:
    """A dataset in a folder of its own layout."""

    check: Callable[[str], pathlib.Path]  # root -> the root, links followed; ConfigError where it is another dataset's
    # root -> everything in it, checked; reads tables and names, no pixels. A picture's name that leads nowhere or out
    # of the root is skipped; what macOS leaves behind ("__MACOSX", "._x.jpg") does not count at all.
    index: Callable[[str], Index]
    vocabulary: Vocabulary  # what captions may say of its masks and pixels
    symmetries: int = 1  # of what a picture may show: 1, 2 (left-right) or 8 (quarter turns too)

    def reader(self, thresholds: Thresholds) -> Reader:
        """Reads position and size from the lesion mask."""
        return mask_reader(self.vocabulary, thresholds)

    def plan(self, config: Config, folder: pathlib.Path) -> Plan:
        """Decodes the dataset into folder/parts and decides the rest.

        Raises:
          ConfigError: too little is usable, too much is damaged, texts or lists of splits do not fit, or the root holds
            `folder`.
        """
        c = config.data
        root = pathlib.Path(c.root).resolve()
        if inside(root, folder):
            raise bad_root(f"'{root}' holds '{folder}', which runs change: name a --workdir and --store elsewhere")
        index = self.index(c.root)
        told = _told(index.entries, c.captions_file)
        if c.captions != "measured" and (silent := sum(not entry.text for entry in told)):
            logging.info("%d of %d pictures have no text: what is measured on them is said", silent, len(told))
        _listed(config, [entry.id for entry in told], c.max_bad_fraction)
        settings = Settings(str(root), c.image_size, c.aspect, c.max_pixels, self.vocabulary, self.symmetries)
        parts = Parts(folder / "parts", told, settings)
        parts.decode(c.workers)
        if len(parts.skipped) > c.max_bad_fraction * len(told):
            raise ConfigError(
                f"config key 'data.max_bad_fraction' is {c.max_bad_fraction}, but {len(parts.skipped)} of"
                f" {len(told)} pictures cannot be used, the first: {parts.skipped[0].path}:"
                f" {parts.skipped[0].reason}: mend the files or raise it"
            )
        entries, measured = _matched(told, parts)
        groups = group(entries, measured)
        entries = [dataclasses.replace(entry, group=name) for entry, name in zip(entries, groups, strict=True)]
        assigned = _assign(config, entries, measured)
        training = [row["attributes"] for row in measured if assigned.splits[row["id"]] == "train"]
        thresholds = captions.fit_thresholds(training, self.vocabulary)
        further = list(self._views(config, entries, assigned.splits))
        views = Parts(folder / "views", further, settings)
        views.decode(c.workers)
        seen, measured_views = _matched(further, views)
        places = assigned.splits | {entry.id: "train" for entry in seen}
        everyone = [*entries, *seen]
        rows = _captioned(config, self.vocabulary, thresholds, everyone, [*measured, *measured_views], places)
        splits.write(folder / "splits", assigned.splits)
        hashes = {row["id"]: row["sha256"] for row in measured}
        leaks = splits.leaks(assigned.splits, {entry.id: entry.group for entry in entries}, hashes)
        for leak in leaks:
            logging.warning("leak between splits: %s", leak)
        return Plan(
            rows=rows,
            pictures=lambda: ((row["id"], row["image"], row["mask"]) for row in itertools.chain(parts, views)),
            wordings=_wordings(config, self.vocabulary, everyone, rows["train"]),
            present=index.present,
            skipped=[*index.skipped, *parts.skipped, *(skip._replace(picture=False) for skip in views.skipped)],
            thresholds=thresholds,
            groups=len(set(groups)),
            torn=assigned.torn,
            views=len(seen),
            leaks=leaks,
            scratch=(folder / "parts", folder / "views"),
        )

    def _views(self, config: Config, entries: Sequence[Entry], assigned: Mapping[str, str]) -> Iterator[Entry]:
        """Further views of the training pictures; not mirrored or turned where the dataset's own text names a side."""
        for entry in (entry for entry in entries if assigned[entry.id] == "train"):
            directed = captions.DIRECTED.search(captions.own_text(entry.text, config.data.captions))
            for view in range(1, config.data.views):
                if not (directed and view % self.symmetries):
                    # No path has two strokes on end, so the id is nobody else's.
                    yield dataclasses.replace(entry, id=f"{entry.id}//{view}", view=view)


def _told(entries: Sequence[Entry], captions_file: str) -> list[Entry]:
    """Entries with the texts of the file, if any, where it has some; ConfigError where it has none of them."""
    if not captions_file:
        return list(entries)
    own = read_captions(captions_file)
    found = own.keys() & {entry.id for entry in entries}
    if not found:
        raise ConfigError(
            f"config key 'data.captions_file': '{captions_file}' has {len(own)} captions and none of them is of one of"
            f" the {len(entries)} pictures, the first of which is {entries[0].id!r}: use the captions of this dataset"
        )
    counts = len(found), len(entries), len(own) - len(found)
    logging.info("captions_file: %d of %d pictures have a caption there, and %d captions have no picture", *counts)
    return [dataclasses.replace(entry, text=tidy(own.get(entry.id, entry.text))) for entry in entries]


def _matched(entries: Sequence[Entry], parts: Parts) -> tuple[list[Entry], Measured]:
    """Entries that could be decoded, with what was measured on them (the pictures themselves stay on disk)."""
    by_id = {entry.id: entry for entry in entries}
    measured = [{name: value for name, value in row.items() if name not in ("image", "mask")} for row in parts]
    return [by_id[row["id"]] for row in measured], measured


def group(entries: Sequence[Entry], measured: Measured) -> list[str]:
    """The group of each picture, which never crosses splits.

    Patients or lesions where the dataset names them, else near-duplicates; in either case equal pictures are together.
    """
    if any(entry.group for entry in entries):
        names = [entry.group or entry.id for entry in entries]
    else:
        pixels = np.frombuffer(b"".join(row["thumb"] for row in measured), np.uint8)
        thumbs = pixels.reshape(-1, duplicates.SIDE, duplicates.SIDE)
        numbers = duplicates.group([row["hash"] for row in measured], thumbs)
        names = duplicates.names([entry.id for entry in entries], numbers)
    sharing = defaultdict(list)
    for name, row in zip(names, measured, strict=True):
        sharing[row["sha256"]].append(name)
    one = splits.merged(sharing.values())
    return [one[name] for name in names]


def _listed(config: Config, ids: Sequence[str], may_lack: float) -> dict[str, str]:
    """Id -> split from the lists that the config names, if any; ConfigError where more than a share of ids is absent.

    Args:
      may_lack: the share, of pictures that may turn out to be damaged.
    """
    folder = config.data.splits
    listed = splits.read(folder) if folder else {}
    unlisted = [item_id for item_id in ids if item_id not in listed]
    if folder and len(unlisted) > may_lack * len(ids):
        raise ConfigError(
            f"config key 'data.splits': the lists in '{folder}' lack {len(unlisted)} of {len(ids)} pictures, the first:"
            f" {unlisted[0]!r}: use the lists of this dataset"
        )
    return listed


def _assign(config: Config, entries: Sequence[Entry], measured: Measured) -> splits.Assigned:
    """Splits from the lists that the config names, the dataset's own, or by hash."""
    c, ids = config.data, [entry.id for entry in entries]
    listed = _listed(config, ids, 0.0)
    official = [listed.get(entry.id, entry.split) for entry in entries]
    groups, labels = [entry.group for entry in entries], [entry.label for entry in entries]
    assigned = splits.assign(ids, groups, labels, official, config.seed, c.test_fraction, c.validation_fraction)
    kinds = {split: set[str]() for split in SPLITS}
    for entry, row in zip(entries, measured, strict=True):
        kinds[assigned.splits[entry.id]].add(row["sha256"])
    if few := [split for split in SPLITS if len(kinds[split]) < LEAST[split]]:
        raise bad_root(
            f"of {len(ids)} usable pictures in {len(set(groups))} group(s) (a patient, a lesion, or what looks alike)"
            f" {len(kinds[few[0]])} different one(s) fall into the split {few[0]}, which needs {LEAST[few[0]]}: give"
            " more, change data.validation_fraction or data.test_fraction, or name lists in data.splits"
        )
    return assigned


def _captioned(
    config: Config,
    vocabulary: Vocabulary,
    thresholds: Thresholds,
    entries: Sequence[Entry],
    measured: Measured,
    assigned: Mapping[str, str],
) -> dict[str, dict[str, dict[str, Any]]]:
    """The rows of each split."""
    c = config.data
    rows: dict[str, dict[str, dict[str, Any]]] = {split: {} for split in SPLITS}
    for entry, row in zip(entries, measured, strict=True):
        rng = np.random.default_rng(splits.number(f"caption:{config.seed}:{entry.id}"))
        label = entry.label if c.label_in_caption else ""
        made = captions.caption(entry.text, row["attributes"], thresholds, vocabulary, c.captions, rng, label)
        texts = {"caption": made.text, "label": entry.label, "group": entry.group}
        rows[assigned[entry.id]][entry.id] = {**texts, "factors": made.levels, "named": made.named}
    return rows


def _wordings(
    config: Config, vocabulary: Vocabulary, entries: Sequence[Entry], rows: Mapping[str, Mapping[str, Any]]
) -> Callable[[str, np.random.Generator], dict[str, list[str]]]:
    """Further captions of a training picture: its own text shortened, or what was measured, said anew."""
    c, texts = config.data, {entry.id: entry.text for entry in entries}
    others = [row["factors"] for row in rows.values()]
    channels = dict.fromkeys(vocabulary.anatomy, "anatomy") | dict.fromkeys(vocabulary.modality, "modality")
    say = lambda levels, rng: captions.describe(levels, rng, captions.choose_named(levels, rng), vocabulary)

    def draw(item_id: str, rng: np.random.Generator) -> dict[str, list[str]]:
        row = rows[item_id]
        if own := captions.own_text(texts[item_id], c.captions):
            found = shortened(own, c.wordings, rng)
            if c.captions == "both":
                found = {k: [captions.joined(text, say(row["factors"], rng)) for text in v] for k, v in found.items()}
        else:
            found = swapped(row["factors"], others, channels, say, c.wordings, rng)
        label = row["label"] if c.label_in_caption else ""
        return {k: [captions.joined(text, captions.class_clause(label)) for text in v] for k, v in found.items()}

    return draw
