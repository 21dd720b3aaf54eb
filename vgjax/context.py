"""What the makers of artefacts read: declared config keys, declared artefacts, and the rows and weights in those."""

import dataclasses
import fnmatch
import functools
import logging
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from vgjax import checkpoint, parallel
from vgjax.config import Config, ConfigError
from vgjax.data import records
from vgjax.data.prepare import builder
from vgjax.data.records import Records, Rows, SkippedRows, ZippedRecords
from vgjax.recipes import Recipe, declared, scoped
from vgjax.store import Artefact, Store, StoreError, stamps

VARIABLES = "variables.safetensors"  # of a trained stage or a fitted condition


@dataclasses.dataclass(frozen=True)
class Context:
    """What one maker sees of a run.

    Attributes:
      config: the keys that it declared; reading another raises `UndeclaredKey`.
      artefact: name -> the artefact, made first where it is not there; KeyError for one that was not declared.
    """

    config: Config
    mesh: jax.sharding.Mesh
    artefact: Callable[[str], Artefact]

    def rows(self, kinds: Sequence[str], split: str) -> SkippedRows:
        """Rows of "pictures" and derived columns, joined by their number.

        A row that is damaged, or was when a column was derived, in any of them is left out, and told.

        Raises:
          StoreError: a file is missing or cut short.
        """
        opened = {kind: open_rows(self.artefact(kind), split) for kind in kinds}
        joined = ZippedRecords({kind: rows for kind, (rows, _) in opened.items()})
        lost = frozenset().union(*(lost for _, lost in opened.values()))
        return SkippedRows(joined, lost)

    def variables(self, name: str) -> dict[str, Any]:
        """What a stage exported."""
        return checkpoint.load_export(self.artefact(name).path(VARIABLES))


@functools.lru_cache(maxsize=32)
def open_rows(artefact: Artefact, split: str) -> tuple[Rows, frozenset[int]]:
    """Rows of one split, and the numbers of those that cannot be read.

    Raises:
      StoreError: a file is missing, damaged in more than its records, or another one in its place.
    """
    info, pictures = artefact.manifest["info"], artefact.name == "pictures"
    for name in artefact.files:  # a damaged record costs itself, a damaged table of contents everything
        if ".array_record" not in name:
            artefact.path(name)
    shards = fnmatch.filter(artefact.files, builder.shards(info["source"], split) if pictures else f"{split}-*")
    paths = [artefact.folder / name for name in shards]
    try:
        rows: Rows = builder.Pictures(artefact.folder, info["source"], split) if pictures else Records(paths)
        changed = [artefact.folder / name for name in shards if not artefact.intact(name)]
        damaged = records.unreadable(paths) if changed else []
        if foreign := [path for path in changed if not records.unreadable([path])]:
            raise ConfigError(f"'{foreign[0]}' is not as it was made, yet of readable records: {records.REMEDY}")
    except ConfigError as error:
        raise StoreError(f"the artefact in {artefact.folder} is damaged: {error}") from None
    if damaged:
        logging.warning("%d damaged records of %s in %s are left out", len(damaged), split, artefact.folder)
    return rows, frozenset(damaged).union(info.get("absent", {}).get(split, ()))


@dataclasses.dataclass(frozen=True)
class Producer:
    """How one kind of artefact is made and what decides it.

    Attributes:
      make: fills a folder from what the context shows; returns what the manifest shall say of it. `wall_s`, seconds, is
        added where it is not among that.
      keys: config keys that decide the result, as `recipes.declared` takes them.
      needs: artefacts that it is made from.
      free: config keys that it reads though they decide nothing (how many processes, how often to log).
      files: raw files and folders, which count by path, size and time; names that are no path count for nothing.
      later: keys that came after artefacts had been made, with the value that leaves those as they are.
      seen: the config as it is to be seen, where values of declared keys say what other producers make.
      version: raised by hand when the result changes its meaning.
      collective: whether its work is spread over the devices of all processes.
      trained: of an older version it is used, and told, rather than made again.
      loose: patterns of files that are kept without being checked.
    """

    name: str
    make: Callable[[Context, pathlib.Path], Mapping[str, Any] | None]
    keys: tuple[str, ...]
    needs: tuple[str, ...] = ()
    free: tuple[str, ...] = ()
    files: Callable[[Config], Sequence[str]] = lambda config: ()
    later: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seen: Callable[[Config], Config] = lambda config: config
    version: int = 1
    collective: bool = False
    trained: bool = False
    loose: tuple[str, ...] = ()

    def recipe(self, config: Config, inputs: Mapping[str, Recipe]) -> Recipe:
        raw = " ".join(stamps(pathlib.Path(name)) for name in self.files(config) if name)
        flat = declared(self.seen(config).flat(), self.keys)
        keys = {key: value for key, value in flat.items() if self.later.get(key) != value}
        return Recipe(self.name, self.version, keys, inputs, raw, self.trained)


@dataclasses.dataclass(eq=False)
class Run:
    """A config on a workdir: which artefacts it consists of, and getting each, made where it is not there.

    What is written for people (report, metrics, samples) goes to the workdir; producers stand after what they need.
    """

    config: Config
    workdir: pathlib.Path
    mesh: jax.sharding.Mesh
    store: Store
    producers: Mapping[str, Producer]

    def __post_init__(self) -> None:
        self._recipes: dict[str, Recipe] = {}
        self._artefacts: dict[str, Artefact] = {}

    @property
    def context(self) -> Context:
        """All keys and all artefacts, for what is not kept: drawing for people, exports, reports."""
        return Context(self.config, self.mesh, self.artefact)

    def recipe(self, name: str) -> Recipe:
        if name not in self._recipes:
            producer = self.producers[name]
            self._recipes[name] = producer.recipe(self.config, {need: self.recipe(need) for need in producer.needs})
        return self._recipes[name]

    def find(self, name: str) -> Artefact | None:
        return self._artefacts.get(name) or self.store.find(self.recipe(name))

    def artefact(self, name: str) -> Artefact:
        """An artefact, made first, and before it what it needs, where it is not there."""
        if name not in self._artefacts:
            self._artefacts[name] = self.find(name) or self._get(self.producers[name])
        return self._artefacts[name]

    def _get(self, producer: Producer) -> Artefact:
        """One process writes; the others compute along where the work is spread over all devices, and wait."""
        inputs = {need: self.artefact(need) for need in producer.needs}
        recipe = self.recipe(producer.name)
        _, state, why = self.store.status([recipe])[0]
        why = why.partition(" (")[0] if state == "missing" else state
        make = functools.partial(self._make, producer, inputs, why)
        if parallel.is_main():
            self.store.get(recipe, make, producer.loose)
        elif producer.collective:
            make(self.store.part(recipe))
        parallel.barrier(f"artefact {producer.name}")
        found = self.store.find(recipe)
        assert found, f"{producer.name} was made and is not there"
        return found

    def _make(self, producer: Producer, inputs: dict[str, Artefact], why: str, folder: pathlib.Path) -> dict[str, Any]:
        logging.info("making %s: %s", producer.name, why)
        started, config = time.monotonic(), scoped(producer.seen(self.config), producer.keys, producer.free)
        info = producer.make(Context(config, self.mesh, inputs.__getitem__), folder)
        return {"wall_s": time.monotonic() - started, **(info or {})}
