"""The contract of a source: what it tells preparation of a dataset, and how evaluation reads its factors back."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from vgjax.config import Config, ConfigError

MAX_TEXT = 20_000  # characters; far beyond any report, and what a text encoder truncates to
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")  # of the pictures that most datasets hold

Thresholds = Mapping[str, Sequence[float]]  # attribute -> where its levels part
Levels = Mapping[str, str | None]  # factor -> level; None or absent: unreadable


class RunLengths(NamedTuple):
    """A mask as runs of set pixels, in the convention of CheXmask: pixel 1 is the first, rows come one after another.

    Attributes:
      text: "start length start length ...".
      height, width: of the mask in pixels.
    """

    text: str
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class Entry:
    """One picture of a dataset, not yet decoded.

    Attributes:
      id: unique within the dataset.
      image: file, inside the root.
      masks: files (non-zero, for lossy formats above half, inside) or run lengths; their union is the mask, and none at
        all an empty mask.
      text: the dataset's own words; "" where there are none.
      label: class name; "" where there is none.
      group: patient or lesion, which never crosses splits; "" where it is unknown.
      split: the dataset's official split, one of `vgjax.types.SPLITS`; "" where it has none.
    """

    id: str
    image: pathlib.Path
    masks: tuple[pathlib.Path | RunLengths, ...] = ()
    text: str = ""
    label: str = ""
    group: str = ""
    split: str = ""


class Skip(NamedTuple):
    """Something that was not used.

    Attributes:
      path: relative to the root; for a row without file what the row names.
      reason: a short category, the same for all of its kind ("no mask", "lateral view").
      detail: what exactly, in words; "" where the reason says it all.
      picture: whether it is a picture that is present in the folder, and so has to be accounted for.
    """

    path: str
    reason: str
    detail: str = ""
    picture: bool = True


@dataclasses.dataclass(frozen=True)
class Index:
    """All that a folder holds.

    Attributes:
      entries: sorted by id.
      skipped: what cannot be used, as far as is known without decoding.
      present: how many pictures (not masks) the folder holds: entries and skipped pictures together.
    """

    entries: tuple[Entry, ...]
    skipped: tuple[Skip, ...]
    present: int


@dataclasses.dataclass
class Plan:
    """What will be written of a dataset: who is used, in which split, with which caption.

    Attributes:
      rows: split -> id -> caption, label, group, factors, named; in the order of `pictures`.
      pictures: (id, image PNG, mask PNG) of all, anew on each call.
      present: how many pictures the source holds.
      skipped: what was left out.
      thresholds: where the levels of measured captions part.
      groups: how many patients, lesions or groups of near-duplicates there are.
      torn: groups that the dataset's own lists put into several splits.
      leaks: what stands on both sides of a split, a sentence each.
      clean: removes what only preparation needed.
    """

    rows: dict[str, dict[str, dict[str, Any]]]
    pictures: Callable[[], Iterable[tuple[str, bytes, bytes]]]
    present: int
    skipped: list[Skip] = dataclasses.field(default_factory=list)
    thresholds: Thresholds = dataclasses.field(default_factory=dict)
    groups: int = 0
    torn: tuple[str, ...] = ()
    leaks: list[str] = dataclasses.field(default_factory=list)
    clean: Callable[[], None] = lambda: None


@dataclasses.dataclass(frozen=True)
class Reader:
    """How the factors of generated pictures are read back.

    Attributes:
      channels: factor that can be read back -> "anatomy" or "modality".
      described: the same of every factor that captions may name.
      read: (pictures (N, H, W, 3) uint8, lesion probability (N, H, W)) -> levels of each.
      chance: (requested levels of the test captions, factor) -> accuracy of guessing that factor.
      describe: (levels, rng, named) -> caption naming only the factors in `named`.
    """

    channels: Mapping[str, str]
    described: Mapping[str, str]
    read: Callable[[np.ndarray, np.ndarray], list[Levels]]
    chance: Callable[[Sequence[Mapping[str, str]], str], float]
    describe: Callable[[Mapping[str, str], np.random.Generator, Sequence[str]], str]


class Source(Protocol):
    """A dataset, read from a folder (`vgjax.data.prepare.plan.FileSource`) or drawn."""

    def check(self, root: str) -> pathlib.Path | None:
        """The root, links followed; None of drawn datasets. ConfigError where its names are not the dataset's."""

    def plan(self, config: Config, folder: pathlib.Path) -> Plan:
        """Decides what will be written; intermediate results go to `folder`."""

    def reader(self, thresholds: Thresholds) -> Reader:
        """How its factors are read back; `thresholds` are those of the plan."""


def inside(root: pathlib.Path, path: pathlib.Path) -> bool:
    """Whether a path, links followed, stays within the root."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError):  # a circle of links, or a name that no file can have
        return False


def bad_root(sentence: str) -> ConfigError:
    """What to raise where the root is not the dataset's folder or lacks something."""
    return ConfigError(f"config key 'data.root': {sentence}")


def home(root: str, holds: str) -> pathlib.Path:
    """The root, links followed.

    Args:
      holds: what the folder to name is or holds, for messages.

    Raises:
      ConfigError: the root is not set, or no folder.
    """
    if not root:
        raise ConfigError(f"config key 'data.root' is empty: name {holds} (--config.data.root=FOLDER)")
    if not os.path.isdir(root):
        raise bad_root(f"no folder '{root}': unpack the dataset and name {holds}")
    return pathlib.Path(root).resolve()


def remedy(base: pathlib.Path, marks: Sequence[str], holds: str) -> str:
    """Which folder to name in place of `base`: an archive unpacks into a folder of its own, likely the one inside.

    Args:
      marks: what the dataset's folder holds any of.
    """
    _, folders, _ = next(os.walk(base), ("", [], []))
    inner = (base / name for name in sorted(folders) if any(os.path.exists(base / name / mark) for mark in marks))
    return next((f"did you mean '{path}'?" for path in inner), f"name {holds}")


def check_links(base: pathlib.Path, names: Sequence[str]) -> None:
    """ConfigError where one of the folders in `base` is a link that leads out of it."""
    for path in (base / name for name in names):
        if not inside(base, path):
            raise bad_root(f"'{path}' links out of '{base}': replace it by the folder itself")


def find(root: pathlib.Path, suffixes: tuple[str, ...]) -> list[pathlib.Path]:
    """All files below `root` with one of the suffixes (lower case), sorted; folders that are links are not entered.

    What macOS adds to archives ("__MACOSX", "._x.jpg") is left out.

    Raises:
      ConfigError: a folder cannot be read.
    """
    return sorted(
        pathlib.Path(where, name)
        for where, _, names in os.walk(root, onerror=_unreadable, followlinks=False)
        for name in names
        if name.lower().lstrip(".").endswith(suffixes)
        and not name.startswith("._")
        and "__MACOSX" not in pathlib.PurePath(where).relative_to(root).parts
    )


def _unreadable(error: OSError) -> None:
    raise bad_root(f"'{error.filename}' cannot be read ({error.strerror}): mend its permissions") from None


def fault(base: pathlib.Path, path: pathlib.Path) -> str:
    """Why a file below `base` cannot be used, whatever it holds; "" where it can."""
    if not os.path.isfile(path):
        return "not a file"
    if path.is_symlink() and not inside(base, path):
        return "outside the root"
    return "" if shown(base, path) == str(path.relative_to(base)) else "name is not UTF-8"


def shown(base: pathlib.Path, path: pathlib.Path) -> str:
    """A path relative to `base`, bytes that are no text replaced."""
    return os.fsencode(path.relative_to(base)).decode("utf-8", errors="replace")


class Listing:
    """Collects the `Index` of a folder.

    Attributes:
      base: the folder, links followed.
      present: counts the pictures that are there, whatever becomes of them.
    """

    def __init__(self, base: pathlib.Path):
        self.base, self.present = base, 0
        self._entries: list[Entry] = []
        self._skipped: list[Skip] = []

    def skip(self, what: pathlib.Path | str, reason: str, detail: str = "", picture: bool = True) -> None:
        """Notes what is not used, a file or whatever a table names; the arguments are those of `Skip`."""
        self._skipped.append(Skip(what if isinstance(what, str) else shown(self.base, what), reason, detail, picture))

    def add(self, entry: Entry, reason: str = "", detail: str = "") -> None:
        """Notes a picture: skipped for the reason, if any, or for a text that is too long, else used."""
        if not reason and len(entry.text) > MAX_TEXT:
            reason, detail = "caption too long", f"{len(entry.text)} characters, at most {MAX_TEXT}"
        if reason:
            self.skip(entry.image, reason, detail)
        else:
            self._entries.append(entry)

    def images_and_masks(
        self, kind_and_id: Callable[[pathlib.Path], tuple[str, str]]
    ) -> tuple[dict[str, pathlib.Path], dict[str, pathlib.Path]]:
        """Images and masks below the folder by id; the images are counted, the unusable skipped.

        Args:
          kind_and_id: of a file: "image", "mask", or "" for one that is neither and counts as an image.
        """
        files: dict[str, dict[str, pathlib.Path]] = {"image": {}, "mask": {}}
        for path in find(self.base, SUFFIXES):
            kind, name = kind_and_id(path)
            self.present += kind != "mask"
            reason = fault(self.base, path) if kind else "not in images or masks"
            if not reason and name in files[kind]:
                reason = f"same {kind} twice"
            if reason:
                self.skip(path, reason, picture=kind != "mask")
            else:
                files[kind][name] = path
        return files["image"], files["mask"]

    def index(self, root: str) -> Index:
        """The index, its promises kept.

        Raises:
          ConfigError: there is nothing to use.
          AssertionError: two entries share an id, or a picture is neither used nor skipped: a fault of the source.
        """
        entries, skipped = tuple(sorted(self._entries, key=lambda entry: entry.id)), tuple(self._skipped)
        if not entries:
            first = f", the first: {skipped[0].path}: {skipped[0].reason}" if skipped else ""
            raise bad_root(
                f"'{root}' holds no usable picture ({len(skipped)} skipped{first}): name the dataset's own folder"
            )
        assert len({entry.id for entry in entries}) == len(entries), "two entries share an id"
        lost = self.present - len(entries) - sum(skip.picture for skip in skipped)
        assert not lost, f"{lost} pictures are neither used nor skipped"
        return Index(entries, skipped, self.present)
