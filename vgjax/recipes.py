"""What decides an artefact: the config keys that its producer may read, its raw data and what it is made from."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ABSENT = "absent"  # `Recipe.raw` where the raw data is not there


class UndeclaredKey(LookupError):
    """A producer read a config key that it did not declare: a fault of our code."""


def declared(flat: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The entries of a flat config that `keys`, in whatever order, declare.

    'seed' is a key, 'prior.*' a group with all below it; '-data.workers' and '-data.*' take out.

    Raises:
      ValueError: an entry of `keys` adds or takes out nothing.
    """
    found: dict[str, Any] = {}
    for key in sorted(keys, key=lambda key: key.startswith("-")):
        pattern = key.removeprefix("-")
        among = flat if key == pattern else found
        below = lambda name, group=pattern: group.endswith(".*") and f"{name}.".startswith(group[:-1])
        chosen = [pattern] if pattern in among else [*filter(below, among)]
        if not chosen:
            raise ValueError(f"'{key}' declares nothing: name a key or a group ('prior.*') of the config")
        if key == pattern:
            found |= {name: flat[name] for name in chosen}
        else:
            found = {name: value for name, value in found.items() if name not in chosen}
    return found


class _View:
    """A group of config keys of which only the declared ones are there."""

    def __init__(self, where: str, names: Sequence[str], values: Mapping[str, Any]):
        self.__dict__.update(values, _where=where, _names=tuple(names))

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in self._names:
            key = f"{self._where}{name}"
            raise UndeclaredKey(f"config key '{key}' is read but not declared: declare it in the keys of the recipe")
        raise AttributeError(f"a view of the config has no '{name}'")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"config key '{self._where}{name}' cannot be set: the view is read-only")


def scoped(config: Any, keys: Sequence[str], free: Sequence[str] = ()) -> Any:
    """A read-only view of a config (nested dataclasses or pydantic models) that holds the declared keys alone.

    The `free` ones join them, taken out or not. A group that is declared as a whole is the original object. Reading
    another key raises `UndeclaredKey`.

    Raises:
      ValueError: as `declared`.
    """
    flat = dict(_leaves(config, ""))
    return _view(config, declared(flat, keys) | declared(flat, free), "")


def _fields(value: Any) -> tuple[str, ...]:
    """Names of a group's entries; none for a plain value."""
    names: Any = getattr(value, "__dataclass_fields__", None) or getattr(type(value), "model_fields", ())
    return tuple(names)


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not _fields(value):
        yield name, value
    for field in _fields(value):
        yield from _leaves(getattr(value, field), f"{name}.{field}".lstrip("."))


def _view(group: Any, allowed: Mapping[str, Any], where: str) -> Any:
    if all(name in allowed for name, _ in _leaves(group, where.rstrip("."))):
        return group
    names = [name for name in _fields(group) if where + name in allowed or _fields(getattr(group, name))]
    values = {name: _view(getattr(group, name), allowed, f"{where}{name}.") for name in names}
    return _View(where, _fields(group), values)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What decides an artefact, known before it is made.

    Attributes:
      name: of the kind of artefact, [a-z_]+.
      version: raised by hand when what the producer does changes its meaning.
      keys: flat config keys with their values, as from `declared`.
      inputs: what it is made from, by role.
      raw: `store.stamps` of its raw files; "" where it has none.
      trained: too dear to be made again for a new version: one of an older version is used, and told.
    """

    name: str
    version: int
    keys: Mapping[str, Any]
    inputs: Mapping[str, Recipe] = dataclasses.field(default_factory=dict)
    raw: str = ""
    trained: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z_]+", self.name):
            raise ValueError(f"'{self.name}' cannot name an artefact: use the letters a-z and _")

    @functools.cached_property
    def digest(self) -> str:
        """12 hexadecimal digits that differ wherever anything but `trained` does."""
        return self._digest(version=self.version, inputs={role: one.digest for role, one in self.inputs.items()})

    @functools.cached_property
    def identity(self) -> str:
        """The digest without any version, its own or an input's."""
        return self._digest(inputs={role: one.identity for role, one in self.inputs.items()})

    def _digest(self, **more: Any) -> str:
        content = {"name": self.name, "keys": dict(self.keys), "raw": self.raw, **more}
        return hashlib.sha256(_canonical(content).encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """Name of its folder."""
        return f"{self.name}-{self.digest}"

    def describe(self) -> dict[str, Any]:
        """JSON form; the inputs' too, so that it can be compared when their folders are gone."""
        own = {"name": self.name, "version": self.version, "keys": dict(self.keys), "raw": self.raw}
        inputs = {role: one.describe() for role, one in self.inputs.items()}
        return {**own, "digest": self.digest, "identity": self.identity, "folder": self.label, "inputs": inputs}

    @classmethod
    def read(cls, form: Mapping[str, Any]) -> Recipe:
        """The inverse of `describe`."""
        inputs = {role: cls.read(one) for role, one in form["inputs"].items()}
        return cls(form["name"], form["version"], form["keys"], inputs, form["raw"])

    def with_raw(self, other: Recipe) -> Recipe:
        """This recipe with the raw data of `other` wherever its own is absent."""
        inputs = {role: one.with_raw(other.inputs.get(role, one)) for role, one in self.inputs.items()}
        return dataclasses.replace(self, raw=other.raw if self.raw == ABSENT else self.raw, inputs=inputs)

    def differences(self, old: Recipe) -> list[str]:
        """In what this differs from `old`, down to the inputs that the difference comes from."""
        found = [f"{self.name} in place of {old.name}"] if old.name != self.name else []
        if old.version != self.version:
            found.append(f"version {old.version} -> {self.version}")
        for key in sorted({*old.keys, *self.keys}):
            was, now = (_canonical(one.keys[key]) if key in one.keys else "undeclared" for one in (old, self))
            if was != now:
                found.append(f"key {key} was {was}, is now {now}")
        if old.raw != self.raw:
            found.append("raw data is absent" if self.raw == ABSENT else "raw data changed")
        for role in sorted({*old.inputs, *self.inputs}):
            before, after = old.inputs.get(role), self.inputs.get(role)
            if before is None or after is None:
                found.append(f"{'no longer' if after is None else 'now also'} made from {role}")
            elif before.digest != after.digest:
                deeper = after.differences(before)
                found += [one if one.startswith("made from") else f"made from other {role} ({one})" for one in deeper]
        return list(dict.fromkeys(found))


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
