"""Artefacts kept by what they depend on: one folder `<name>-<digest>/` each, whole or not there at all.

A `Recipe` says what decides an artefact. Equal recipes have equal digests, so a config that changes only what does not
matter to an artefact finds it again. No database: the folders' `manifest.json` are all there is to know.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import fnmatch
import functools
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vgjax.atomic import open_regular, read_regular, write_json
from vgjax.config import ConfigError
from vgjax.recipes import ABSENT, Recipe

MANIFEST, RECIPE = "manifest.json", "recipe.json"  # of a whole artefact, and of one in the making
FOLDER = re.compile(r"[a-z_]+-[0-9a-f]{12}(\.part)?")
NOT_FINITE = "not_finite.json"  # of a training that came there: learning rates with the steps kept of each
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)  # what comes of reading a broken manifest
OLD = ".old"  # in the folder of one in the making, what it takes the place of
OUTDATED = "was made from what has been trained or drawn anew since, otherwise"
_warn_once = functools.cache(logging.warning)  # once a process for each message


class StoreError(ConfigError):
    """A file or folder of the store that the user has to mend."""


def stamps(root: pathlib.Path) -> str:
    """Digest of relative path, size and time of every file below `root`, or of one file; `ABSENT` if there is none.

    Linked folders count by their own size and time: no source reads beyond its root.

    Raises:
      StoreError: a folder cannot be read.
    """
    digest = hashlib.sha256()
    with _told(f"the raw data in {root} cannot be read", "mend its permissions"):
        if not root.exists():
            return ABSENT
        for name, status in _walk(root, "") if root.is_dir() else [(root.name, root.stat())]:
            digest.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"))
    return digest.hexdigest()


def _walk(folder: os.PathLike[str], where: str) -> Iterator[tuple[str, os.stat_result]]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry, f"{where}{entry.name}/")
        else:
            dangling = entry.is_symlink() and not os.path.exists(entry)
            yield where + entry.name, entry.stat(follow_symlinks=not dangling)


class Artefact:
    """One that is there, whole: a folder with a readable manifest."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.manifest = folder, _read_json(folder / MANIFEST)
        self.created, self.files = str(self.manifest["created"]), tuple(sorted(self.manifest["files"]))
        self.recipe = Recipe.read(self.manifest)
        self.name, self.digest = self.recipe.name, self.recipe.digest
        self._checked: set[str] = set()

    def path(self, file: str) -> pathlib.Path:
        """A file of it, compared with the manifest the first time that it is asked for.

        Raises:
          StoreError: it is missing, cut short or damaged.
        """
        path, expected = self.folder / file, self.manifest["files"].get(file)
        if file not in self._checked:
            remedy = f"delete the folder {self.folder} and run again"
            with _told(f"the file '{file}' of {self.folder} cannot be read", remedy):
                if expected is None or path.stat().st_size != expected["bytes"] or _sha256(path) != expected["sha256"]:
                    raise StoreError(f"the file '{file}' of {self.folder} is not as it was made: {remedy}")
            self._checked.add(file)
        return path

    def intact(self, file: str) -> bool:
        """Whether `path` gives the file; for files that can be read in part where they are damaged."""
        try:
            return bool(self.path(file))
        except StoreError:
            return False


class Store:
    """Artefacts in the folder `root`, which the first one that is made creates."""

    def __init__(self, root: pathlib.Path):
        self.root = root

    def find(self, recipe: Recipe) -> Artefact | None:
        """The artefact to use: this very one, else one that may stand in for it, which is told once a process.

        Standing in: for a trained one the newest that differs in versions alone, its own or an untrained input's; where
        raw data is absent, the newest made of any. Inputs count as the artefacts that are used for them.
        """
        return self._look(recipe)[1]

    def get(
        self, recipe: Recipe, make: Callable[[pathlib.Path], Mapping[str, Any] | None], loose: Sequence[str] = ()
    ) -> Artefact:
        """Finds the artefact or makes it; of several processes on one machine one makes it and the others wait.

        Args:
          recipe: what it depends on.
          make: fills the folder it is given, which still holds what an earlier, broken off call left there, and returns
            what else the manifest shall say under "info". Its own temporary files it deletes.
          loose: patterns of relative paths ('logs/*', with all below) that are kept without being checked.

        Raises:
          StoreError: the store cannot be written or locked, or a damaged folder is in the way.
        """
        actual, found = self._look(recipe)
        if found:
            return found
        folder, part = self.root / actual.label, self.root / f"{actual.label}.part"
        fault = f"the folder {self.root} cannot be written", "make room or name another --workdir"
        with _told(*fault):
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / f"{actual.label}.lock").open("a+b", 0)  # to write alone, a pipe would be waited for
        with lock:
            _lock(lock.fileno(), folder)
            if found := self._open(actual.label):
                return found
            if folder.exists():
                if (why := self._obstacle(folder)) != OUTDATED or recipe.trained:
                    raise StoreError(f"the folder {folder} {why}: delete it and run again")
                logging.warning("%s %s: it is made again", folder, why)
            with _told(*fault):
                self._take_over(actual, part)
                part.mkdir(exist_ok=True)
                if folder.exists():  # renamed first: killed while it is deleted, half of it would be in the way
                    folder.rename(part / OLD)
                shutil.rmtree(part / OLD, ignore_errors=True)
                for rest in part.rglob(".*.part"):  # of `atomic.replacing` in a process that was killed
                    rest.unlink()
                write_json(part / RECIPE, actual.describe())
            info = dict(make(part) or {})
            with _told(*fault):
                now = datetime.datetime.now(datetime.UTC).isoformat()
                below = dict(pair for one in actual.inputs.values() for pair in self._fingerprints(one.label).items())
                more = {"files": file_digests(part, loose), "info": info, "created": now, "fingerprints": below}
                manifest = {**actual.describe(), **more}
                write_json(part / MANIFEST, {**manifest, "sha256": _json_sha256(manifest)})
                (part / RECIPE).unlink()
                _sync(part)
                part.rename(folder)
                _sync(self.root)
        return Artefact(folder)

    def _take_over(self, recipe: Recipe, part: pathlib.Path) -> None:
        """Goes on with a training of a higher learning rate alone, if it came to what is not finite: else rates mix."""
        key = f"{recipe.name}.train.learning_rate"
        for old in sorted(self.root.glob(f"{recipe.name}-*.part/{NOT_FINITE}")):
            with contextlib.suppress(*UNREADABLE), (self.root / f"{old.parent.stem}.lock").open("a+b", 0) as lock:
                fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                was = Recipe.read(_read_json(old.parent / RECIPE))
                same = dataclasses.replace(recipe, keys={**recipe.keys, key: was.keys[key]})
                if not part.exists() and same.digest == was.digest and recipe.keys[key] < was.keys[key]:
                    old.parent.rename(part)
                    logging.warning("going on with %s, at a lower %s than %s", old.parent, key, was.keys[key])

    def part(self, recipe: Recipe) -> pathlib.Path:
        """The folder in which an artefact is made."""
        return self.root / f"{self._look(recipe)[0].label}.part"

    def status(self, recipes: Sequence[Recipe]) -> list[tuple[str, str, str]]:
        """(folder name, "there" | "unfinished" | "missing", why) of each recipe's artefact."""
        return [self._status(recipe) for recipe in recipes]

    def unused(self, recipes: Sequence[Recipe]) -> list[tuple[pathlib.Path, int]]:
        """Folders that neither the recipes nor their inputs need, with bytes: for the user to delete."""
        needed: set[str] = set().union(*map(self._needed, recipes))
        ours = [path for path in sorted(self.root.glob("*")) if FOLDER.fullmatch(path.name)]
        return [(path, sum(one.st_size for _, one in _walk(path, ""))) for path in ours if path.name not in needed]

    def _needed(self, recipe: Recipe) -> set[str]:
        label = self._look(recipe)[0].label
        return {label, f"{label}.part"}.union(*map(self._needed, recipe.inputs.values()))

    def _look(self, recipe: Recipe) -> tuple[Recipe, Artefact | None]:
        """What to make, its inputs being those that are there, and what is there of it."""
        if found := self._open(recipe.label):
            return found.recipe, found
        actual = dataclasses.replace(recipe, inputs={role: self._look(one)[0] for role, one in recipe.inputs.items()})
        found = self._open(actual.label) or self._stand_in(recipe, actual)
        return (found.recipe, found) if found else (actual, None)

    def _open(self, label: str) -> Artefact | None:
        """An artefact by its folder's name; None where the manifest is missing, unreadable or of another one."""
        try:
            found = Artefact(self.root / label)
        except UNREADABLE:
            return None
        return found if found.recipe.label == label and not self._outdated(found) else None

    def _fingerprints(self, label: str) -> dict[str, str]:
        """Of the weights or pictures in a folder and those that it was made from: digests tell recipes, not bits."""
        found: dict[str, str] = {}
        with contextlib.suppress(*UNREADABLE):
            manifest = _read_json(self.root / label / MANIFEST)
            found |= manifest.get("fingerprints", {})
            found[label] = manifest["info"]["fingerprint"]
        return found

    def _outdated(self, found: Artefact) -> bool:
        """Whether weights or pictures that it was made from are others by now."""
        noted = found.manifest.get("fingerprints", {})
        return any(self._fingerprints(label).get(label, was) != was for label, was in noted.items())

    def _obstacle(self, folder: pathlib.Path) -> str:
        """Why a folder in the place of an artefact is not the one."""
        with contextlib.suppress(*UNREADABLE):
            found = Artefact(folder)
            if found.recipe.label == folder.name and self._outdated(found):
                return OUTDATED
        return f"has no readable {MANIFEST}"

    def _stand_in(self, asked: Recipe, recipe: Recipe) -> Artefact | None:
        """Never one that was made, however far back, from trained ones that are not in use: they would not fit."""

        def fits(one: Artefact) -> bool:
            filled = recipe.with_raw(one.recipe)
            same = filled.identity == one.recipe.identity if recipe.trained else filled.digest == one.digest
            return same and _trained_below(asked, one.recipe) == _trained_below(asked, filled)

        there = filter(None, (self._open(path.name) for path in self.root.glob(f"{recipe.name}-*")))
        if found := max(filter(fits, there), key=lambda one: one.created, default=None):
            again = "; delete the folder to train it again" if recipe.trained else ""
            _warn_once(f"{found.folder} is used as it is: {'; '.join(recipe.differences(found.recipe))}{again}")
        return found

    def _status(self, recipe: Recipe) -> tuple[str, str, str]:
        actual, found = self._look(recipe)
        if found:
            return found.folder.name, "there", "; ".join(recipe.differences(found.recipe))
        if (folder := self.root / actual.label).exists():
            return actual.label, "missing", f"{folder} {self._obstacle(folder)}: delete it"
        if (self.root / f"{actual.label}.part").exists():
            return actual.label, "unfinished", "the next run goes on with it"
        others = []
        for path in sorted(self.root.glob(f"{actual.name}-*/*.json")):
            if path.name in (MANIFEST, RECIPE):
                with contextlib.suppress(*UNREADABLE):
                    others.append((actual.differences(Recipe.read(_read_json(path))), path.parent.name))
        if not others:
            return actual.label, "missing", "never made"
        differing, closest = min(others, key=lambda other: len(other[0]))
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        return actual.label, "missing", f"{'; '.join(differing[:3])}{more} (since {closest})"


def _trained_below(asked: Recipe, recipe: Recipe) -> list[str]:
    """Digests of the trained ones that a recipe is made from; which those are, only what is asked for says."""
    pairs = [(one, recipe.inputs[role]) for role, one in asked.inputs.items()]
    return [digest for one, used in pairs for digest in ([used.digest] * one.trained + _trained_below(one, used))]


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """A manifest without its own digest, which older ones have not, or a recipe; ValueError where it is damaged."""
    found = json.loads(read_regular(path).decode())
    if found.pop("sha256", None) not in (None, _json_sha256(found)):
        raise ValueError
    return found


def _json_sha256(values: Mapping[str, Any]) -> str:
    """The same of values and of what is read of them."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(values)), sort_keys=True).encode()).hexdigest()


def _sync(path: pathlib.Path) -> None:
    """Brings a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: pathlib.Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(folder: pathlib.Path, loose: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Size and digest of each file that is to be checked, which is on the disk afterwards."""
    files = {}
    for name, status in _walk(folder, ""):
        if name not in (MANIFEST, RECIPE) and not any(fnmatch.fnmatchcase(name, pattern) for pattern in loose):
            _sync(folder / name)
            files[name] = {"bytes": status.st_size, "sha256": _sha256(folder / name)}
    return files


def _lock(file: int, folder: pathlib.Path) -> None:
    """Makes this process the only one that makes `folder`, until the file is closed."""
    remedy = "name a --workdir on a disk of this machine"
    with _told(f"the file system of {folder.parent} cannot lock files", remedy):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.warning("waiting: another process makes %s", folder)
            fcntl.flock(file, fcntl.LOCK_EX)


@contextlib.contextmanager
def _told(fault: str, remedy: str) -> Iterator[None]:
    """An error of the operating system becomes one that names the remedy."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{fault} ({error.strerror}): {remedy}") from None
