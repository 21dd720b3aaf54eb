"""The contract of a source: what it tells preparation of a dataset, and how evaluation reads its factors back."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from vgjax.config import Config, ConfigError

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

    def check(self, root: str) -> Index:
        """Itself, with its promises kept.

        Raises:
          ConfigError: there is nothing to use.
          AssertionError: two entries share an id, or a picture is neither used nor skipped: a fault of the source.
        """
        if not self.entries:
            first = f", the first: {self.skipped[0].path}: {self.skipped[0].reason}" if self.skipped else ""
            raise ConfigError(
                f"config key 'data.root': '{root}' holds no usable picture ({len(self.skipped)} skipped{first}):"
                " name the dataset's own folder"
            )
        ids = [entry.id for entry in self.entries]
        assert len(set(ids)) == len(ids), "two entries share an id"
        lost = self.present - len(self.entries) - sum(skip.picture for skip in self.skipped)
        assert not lost, f"{lost} pictures are neither used nor skipped"
        return self


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
      channels: factor -> "anatomy" or "modality".
      read: (pictures (N, H, W, 3) uint8, lesion probability (N, H, W)) -> levels of each.
      chance: (requested levels of the test captions, factor) -> accuracy of guessing that factor.
      describe: (levels, rng, named) -> caption naming only the factors in `named`.
    """

    channels: Mapping[str, str]
    read: Callable[[np.ndarray, np.ndarray], list[Levels]]
    chance: Callable[[Sequence[Mapping[str, str]], str], float]
    describe: Callable[[Mapping[str, str], np.random.Generator, Sequence[str]], str]


class Source(Protocol):
    """A dataset, read from a folder (`vgjax.data.prepare.plan.FileSource`) or drawn."""

    def check(self, root: str) -> None:
        """Looks at names only; ConfigError where the root is not the dataset's folder. Drawn datasets have no root."""

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
        raise ConfigError(f"config key 'data.root': no folder '{root}': unpack the dataset and name {holds}")
    return pathlib.Path(root).resolve()


def find(root: pathlib.Path, suffixes: Sequence[str]) -> list[pathlib.Path]:
    """All files below `root` with one of the suffixes (lower case), sorted; folders that are links are not entered.

    What macOS adds to archives ("__MACOSX", "._x.jpg") is left out.

    Raises:
      ConfigError: a folder cannot be read.
    """
    return sorted(
        pathlib.Path(where, name)
        for where, _, names in os.walk(root, onerror=_unreadable, followlinks=False)
        for name in names
        if os.path.splitext(name)[1].lower() in suffixes
        and not name.startswith("._")
        and "__MACOSX" not in pathlib.PurePath(where).relative_to(root).parts
    )


def _unreadable(error: OSError) -> None:
    raise ConfigError(
        f"config key 'data.root': '{error.filename}' cannot be read ({error.strerror}): mend its permissions"
    ) from None


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
