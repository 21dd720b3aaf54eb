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
    """A mask as runs of set pixels, as CheXmask has them: pixel 1 is the first, rows come one after another."""

    text: str  # "start length start length ..."
    height: int  # pixels
    width: int


@dataclasses.dataclass(frozen=True)
class Entry:
    """One picture of a dataset, not yet decoded; a text is "" where the dataset has none.

    The union of the masks is the mask, and none at all an empty mask: run lengths, or files whose pixels are inside
    where they are not zero, in lossy formats above half.
    """

    id: str  # unique within the dataset
    image: pathlib.Path  # file, inside the root
    masks: tuple[pathlib.Path | RunLengths, ...] = ()
    text: str = ""  # the dataset's own words
    label: str = ""  # class name
    group: str = ""  # patient or lesion, which never crosses splits
    split: str = ""  # the dataset's official one, of `vgjax.types.SPLITS`
    view: int = 0  # 0: the picture as it is; else one of `vgjax.data.read.decode.viewed`


class Skip(NamedTuple):
    """Something that was not used."""

    path: str  # relative to the root; for a row without file what the row names
    reason: str  # a short category, the same for all of its kind ("no mask", "lateral view")
    detail: str = ""  # what exactly, in words; "" where the reason says it all
    picture: bool = True  # whether it is a picture that is present in the folder, and so has to be accounted for


@dataclasses.dataclass(frozen=True)
class Index:
    """All that a folder holds."""

    entries: tuple[Entry, ...]  # sorted by id
    skipped: tuple[Skip, ...]  # what cannot be used, as far as is known without decoding
    present: int  # how many pictures (not masks) the folder holds: entries and skipped pictures together


@dataclasses.dataclass
class Plan:
    """What will be written of a dataset: who is used, in which split, with which caption."""

    rows: dict[str, dict[str, dict[str, Any]]]  # split -> id -> caption, label, group, factors, named
    # (id, image PNG, mask PNG) of all, in the order of the rows, anew on each call
    pictures: Callable[[], Iterable[tuple[str, bytes, bytes]]]
    # (id of a training picture, rng) -> further captions by channel, as in `vgjax.data.caption.wordings`
    wordings: Callable[[str, np.random.Generator], Mapping[str, Sequence[str]]]
    present: int  # how many pictures the source holds
    skipped: list[Skip] = dataclasses.field(default_factory=list)
    thresholds: Thresholds = dataclasses.field(default_factory=dict)  # where the levels of measured captions part
    groups: int = 0  # how many patients, lesions or groups of near-duplicates there are
    torn: tuple[str, ...] = ()  # groups that the dataset's own lists put into several splits
    views: int = 0  # how many of the training rows are further views of pictures
    leaks: list[str] = dataclasses.field(default_factory=list)  # what stands on both sides of a split, a sentence each
    scratch: tuple[pathlib.Path, ...] = ()  # folders that only preparation needed


@dataclasses.dataclass(frozen=True)
class Reader:
    """How the factors of generated pictures are read back."""

    channels: Mapping[str, str]  # factor that can be read back -> "anatomy" or "modality"
    described: Mapping[str, str]  # the same of every factor that captions may name
    # (pictures (N, H, W, 3) uint8, lesion probability (N, H, W)) -> levels of each
    read: Callable[[np.ndarray, np.ndarray], list[Levels]]
    # (requested levels of the test captions, factor) -> accuracy of guessing that factor
    chance: Callable[[Sequence[Mapping[str, str]], str], float]
    # (levels, rng, named, style) -> caption naming only the factors in `named`; style: "" or one of `styles`
    describe: Callable[..., str]
    # arguments of `read` -> where the main lesion is, (N, h, w) bool
    outline: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda pictures, lesion: lesion > 0.5
    levels: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)  # of factors to ask for
    held_out: Sequence[tuple[tuple[str, str], ...]] = ()  # pairs of (factor, level) never together in training
    from_mask: bool = False  # whether `read` looks at the lesion probability, which needs a segmentor
    styles: Sequence[str] = ()  # other ways of describing, which training never saw


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
    """The root, links followed; ConfigError, which names what the folder `holds`, where it is not set or no folder."""
    if not root:
        raise ConfigError(f"config key 'data.root' is empty: name {holds} (--config.data.root=FOLDER)")
    if not os.path.isdir(root):
        raise bad_root(f"no folder '{root}': unpack the dataset and name {holds}")
    return pathlib.Path(root).resolve()


def remedy(base: pathlib.Path, marks: Sequence[str], holds: str) -> str:
    """Which folder to name in place of `base`: likely one inside, made by an archive, that holds any of the `marks`."""
    inner = sorted(path.parent for mark in marks for path in base.glob(f"*/{mark}"))
    return f"did you mean '{inner[0]}'?" if inner else f"name {holds}"


def check_links(base: pathlib.Path, names: Sequence[str]) -> None:
    """ConfigError where one of the files or folders in `base` is a link that leads out of it."""
    for path in (base / name for name in names):
        if not inside(base, path):
            raise bad_root(f"'{path}' links out of '{base}': replace it by what it leads to")


def find(root: pathlib.Path, suffixes: tuple[str, ...]) -> list[pathlib.Path]:
    """All files below `root` with one of the suffixes (lower case), sorted; ConfigError where a folder is unreadable.

    Folders that are links are not entered. What macOS adds to archives ("__MACOSX", "._x.jpg") is left out.
    """

    def unreadable(error: OSError) -> None:
        raise bad_root(f"'{error.filename}' cannot be read ({error.strerror}): mend its permissions") from None

    return sorted(
        pathlib.Path(where, name)
        for where, _, names in os.walk(root, onerror=unreadable)
        for name in names
        if name.lower().lstrip(".").endswith(suffixes)
        and not name.startswith("._")
        and "__MACOSX" not in pathlib.PurePath(where).relative_to(root).parts
    )


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
    """Collects the `Index` of a folder, links followed; `present` counts the pictures, whatever becomes of them."""

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

        The kind is "image", "mask", or "" for a file that is neither and counts as an image.
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
