"""Typed, bounded and documented config keys: how a group of them is declared, read, refused and described."""

import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import pydantic


class ConfigError(ValueError):
    """Something the user can mend: the message is one sentence saying what, where and the remedy."""


class Group(pydantic.BaseModel):
    """Keys that belong together; hashable, and equal where all values are."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __hash__(self) -> int:
        return hash(tuple(frozenset(v.items()) if isinstance(v, dict) else v for _, v in self))


SomeGroup = TypeVar("SomeGroup", bound=Group)
INT32 = 1 << 31  # below which sizes, counts and steps stay
LISTED = "`python -m vgjax.main --help` lists the keys"


def key(default: Any, documentation: str) -> Any:
    """One key of a group; its type annotation states bounds and choices."""
    return pydantic.Field(default, description=documentation)


def build(model: type[SomeGroup], values: Mapping[str, Any]) -> SomeGroup:
    """Nested values, one for every key -> the frozen group; ints serve as floats and lists as tuples.

    Raises:
      ConfigError: a key is unknown or missing, or its value is of the wrong type, out of bounds or not finite.
    """
    try:
        built = model.model_validate(values)
    except pydantic.ValidationError as error:
        # A misspelt key is likelier the cause of other faults than their consequence.
        first = min(error.errors(include_url=False), key=lambda fault: fault["type"] != "extra_forbidden")
        raise ConfigError(_sentence(model, first["type"], first["loc"], first["input"])) from None
    for name in _missing(built):
        raise ConfigError(f"missing config key '{name}': {LISTED}")
    return built


def describe(group: Group, where: str = "") -> list[str]:
    """Lines of help: each key of a group with its value, what it may be, and its documentation; subgroups last."""
    keys, subgroups = [], []
    for name, field in type(group).model_fields.items():
        value = getattr(group, name)
        if isinstance(value, Group):
            subgroups += ["", f"{where}{name}: {value.__doc__}", *describe(value, f"{where}{name}.")]
        else:
            allowed = _allowed(field.annotation, field.metadata)
            entries = {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
            keys += [f"  {where}{k} = {v!r}" + f"  ({allowed})" * bool(allowed) for k, v in entries.items()]
            keys.append(f"      {field.description}")
    return keys + subgroups


def _missing(group: Group, where: str = "") -> Iterator[str]:
    for name in type(group).model_fields:
        if name not in group.model_fields_set:
            yield where + name
        elif isinstance(value := getattr(group, name), Group):
            yield from _missing(value, f"{where}{name}.")


def _sentence(model: type[Group], fault: str, path: Sequence[str | int], value: Any) -> str:
    """What is wrong at a path of keys and places in sequences; `fault` is pydantic's name for it."""
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    if fault == "extra_forbidden":
        return f"unknown config key '{name}': {LISTED}"
    if fault == "model_type":
        return f"config key '{name}' is a group of keys, not {value!r}: set one of the keys inside it"
    annotation, bounds = _declared(model, path)
    allowed = _allowed(annotation, bounds)
    if fault.endswith("_type"):
        wanted = allowed if fault == "tuple_type" else f"of type {annotation.__name__}"
        return f"config key '{name}' must be {wanted}, not {value!r}"
    if fault == "less_than" and INT32 in (getattr(bound, "lt", 0) for bound in bounds):
        allowed = f"a number below {INT32}"
    remedies = {"literal_error": f"choose {allowed}", "finite_number": "give a finite number"}
    return f"config key '{name}' is {value!r}: {remedies.get(fault, f'give {allowed}')}"


def _declared(model: type[Group], path: Sequence[str | int]) -> tuple[Any, Sequence[Any]]:
    """The type and the bounds of what stands at a path."""
    annotation: Any = model
    bounds: Sequence[Any] = ()
    for part in path:
        if typing.get_origin(annotation) in (tuple, dict):
            annotation, bounds = _entry(annotation)
        else:
            field = annotation.model_fields[part]
            annotation, bounds = field.annotation, field.metadata
    return annotation, bounds


def _entry(annotation: Any) -> tuple[Any, Sequence[Any]]:
    """The type and the bounds of a sequence's entries, or of a mapping's values."""
    entry = typing.get_args(annotation)[typing.get_origin(annotation) is dict]
    kind, *bounds = typing.get_args(entry) or (entry,)
    return kind, [one for bound in bounds for one in getattr(bound, "metadata", (bound,))]


def _allowed(annotation: Any, bounds: Sequence[Any]) -> str:
    """What a value may be, in words; empty where the type says it all."""
    if typing.get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(annotation)))
    if typing.get_origin(annotation) is tuple:
        kind, within = _entry(annotation)
        each = _allowed(kind, within)
        return f"a sequence of {kind.__name__} values" + f", each {each}" * bool(each)
    if typing.get_origin(annotation) is dict:
        return _allowed(*_entry(annotation))
    limits = {name: getattr(bound, name) for bound in bounds for name in ("gt", "ge", "lt") if hasattr(bound, name)}
    limits = {name: limit for name, limit in limits.items() if limit != INT32}  # goes without saying
    if "lt" in limits:
        low = f"({limits['gt']}" if "gt" in limits else f"[{limits['ge']}"
        return f"a number in {low}, {limits['lt']})"
    if limits == {"gt": 0}:
        return "a positive number"
    return f"a number of at least {limits['ge']}" if limits else ""
