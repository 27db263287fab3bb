"""The dotted paths of a trial: what they name, and the trial that a base and a proposal make."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from operator import attrgetter
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from moesearch.config.messages import JsonSchema, did_you_mean, findings, must_be
from moesearch.config.section import LANE, Section
from moesearch.config.trial import TrialConfig
from moesearch.errors import InfeasibleError


def resolve(
    base: TrialConfig, params: Mapping[str, object], *, seed: int | None = None, order_seed: int | None = None
) -> TrialConfig:
    """The trial that differs from ``base`` in ``params`` (dotted path -> value), checked anew.

    Raises:
        InfeasibleError: a value is out of its field's range, or a rule across fields does not hold.
    """
    unknown = [f"{path}{unknown_path(path)}" for path in params if path not in _fields()]
    if unknown:
        raise InfeasibleError(unknown)
    values = _replaced(base, params)
    if seed is not None:
        values["seed"] = seed
    if order_seed is not None:
        values["data"]["order_seed"] = order_seed
    try:
        return TrialConfig.model_validate(values)
    except ValidationError as error:
        raise InfeasibleError([str(finding) for finding in findings(TrialConfig, values, error)]) from None


def is_feasible(base: TrialConfig, params: Mapping[str, object]) -> bool:
    """Whether ``resolve`` gives a trial; several times faster, since nothing is said about why not."""
    try:
        TrialConfig.model_validate(_replaced(base, params))
    except ValidationError:
        return False
    return True


def field_names() -> tuple[str, ...]:
    """Every dotted path of a trial, in the order of the sections."""
    return tuple(_fields())


def value_of(config: TrialConfig, path: str) -> Any:
    """The value of a trial's field."""
    return attrgetter(path)(config)


def is_lane_field(path: str) -> bool:
    """Whether trials that differ in this field can train side by side in one model."""
    return bool(_fields()[path].json_schema_extra == LANE.json_schema_extra)


def field_schema(path: str) -> JsonSchema:
    """JSON Schema of a field's values."""
    return _adapter(path).json_schema()


def field_value(path: str, value: object) -> Any:
    """The value as the field holds it: 2.0 becomes 2 where a whole number is due.

    Raises:
        InfeasibleError: the field cannot hold the value, whatever the other fields are.
    """
    try:
        return _adapter(path).validate_python(value)
    except ValidationError:
        raise InfeasibleError([f"{path}{must_be(field_schema(path), value)}"]) from None


def unknown_path(path: str) -> str:
    """What to say after a dotted path that names no field: `` names no field of a trial; did you mean moe.top_k?``."""
    below = [name for name in _fields() if name.startswith(f"{path}.")]
    if below:
        return f" is a whole section; name a field of it, such as {below[0]}"
    by_last_part = {name.rpartition(".")[2]: name for name in _fields()}.get(path.rpartition(".")[2])
    hint = f"; did you mean {by_last_part}?" if by_last_part else did_you_mean(path, _fields())
    return f" names no field of a trial{hint}"


def derive_seed(study_seed: int, fingerprint: str, replicate: int) -> int:
    """Seed of a trial, from 0 to 2^63 - 1; the same on every machine, so a trial can be replayed alone."""
    digest = hashlib.sha256(f"{study_seed}/{fingerprint}/{replicate}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@cache
def _fields() -> dict[str, FieldInfo]:
    return dict(_fields_of(TrialConfig))


def _fields_of(section: type[Section]) -> Iterator[tuple[str, FieldInfo]]:
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield from ((f"{name}.{inner}", inner_info) for inner, inner_info in _fields_of(info.annotation))
        else:
            yield name, info


@cache
def _adapter(path: str) -> TypeAdapter[Any]:
    info = _fields()[path]
    field_type: Any = Annotated[info.annotation, info]
    return TypeAdapter(field_type, config=Section.model_config)


def _replaced(base: TrialConfig, params: Mapping[str, object]) -> dict[str, Any]:
    """Unchecked values of the trial; every path names a field."""
    values = base.model_dump()
    for path, value in params.items():
        section = values
        *parents, name = path.split(".")
        for parent in parents:
            section = section[parent]
        section[name] = value
    return values
