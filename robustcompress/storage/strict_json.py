"""JSON as other languages read it: objects with text keys, no duplicates, no NaN, no bottomless nesting."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from robustcompress.errors import StorageError

_DEEPEST = 64
_SHOWN = 80
_ADVICE = "The file was edited or damaged."
Model = TypeVar("Model", bound=BaseModel)


def dump(value: object, *, where: str, indent: int | None = None, finite: bool = True) -> str:
    """Return ``value`` as JSON with sorted keys: the same value gives the same text.

    Tuples become arrays.

    Args:
        value: None, booleans, numbers, text, and sequences and mappings of them.
        where: What is being written, for the error.
        indent: Spaces per level; ``None`` puts all on one line without spaces.
        finite: Refuse NaN and infinities, which JSON lacks. ``False`` writes them as Python does.

    Raises:
        StorageError: If ``value`` holds anything else; the message has its path.
    """
    plain = _plain(value, where, "", finite, 0)
    separators = (",", ": ") if indent else (",", ":")
    return json.dumps(plain, sort_keys=True, indent=indent, separators=separators, ensure_ascii=False)


def parse(data: bytes | str, *, where: str, finite: bool = True, advice: str = _ADVICE) -> dict[str, object]:
    """Return the JSON object in ``data``.

    Args:
        data: JSON text.
        where: Name of the file, for the error.
        finite: Refuse NaN and infinities.
        advice: Ends the error.

    Raises:
        StorageError: If ``data`` is not one JSON object, or breaks a rule of this module.
    """
    plain = _parsed(data, where, finite, advice)
    if not isinstance(plain, dict):
        raise StorageError(f"{where}: expected a JSON object; got {shown(plain)}. {advice}")
    return plain


def parse_list(data: bytes | str, *, where: str, finite: bool = True, advice: str = _ADVICE) -> list[object]:
    """Return the JSON array in ``data``; otherwise as :func:`parse`.

    Raises:
        StorageError: If ``data`` is not one JSON array, or breaks a rule of this module.
    """
    plain = _parsed(data, where, finite, advice)
    if not isinstance(plain, list):
        raise StorageError(f"{where}: expected a JSON array; got {shown(plain)}. {advice}")
    return plain


def _parsed(data: bytes | str, where: str, finite: bool, advice: str) -> object:
    try:
        value = json.loads(data, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:  # ValueError covers bad UTF-8 and absurdly long numbers
        raise StorageError(f"{where} is not valid JSON: {_short(error)}. {advice}") from error
    try:
        return _plain(value, where, "", finite, 0)
    except StorageError as error:
        raise StorageError(f"{error} {advice}") from error


def validated(
    model: type[Model],
    data: bytes | str,
    *,
    where: str,
    schema: int,
    advice: str = _ADVICE,
) -> Model:
    """Return the JSON object in ``data`` as ``model``, which has a field ``schema_version``.

    Args:
        model: Describes every field; it should be strict and forbid extra fields.
        data: JSON text.
        where: Name of the file, for the error.
        schema: The version that ``model`` describes.
        advice: Ends the error.

    Raises:
        StorageError: If the version is another one or a field is not as described; the message names
            the file and the path of the field.
    """
    version = parse(data, where=where).get("schema_version")
    if type(version) is int and version > schema:
        raise StorageError(
            f"{where}: schema_version {shown(version)} is newer than {schema}, the newest known here. "
            "Upgrade robustcompress to read it."
        )
    if type(version) is not int or version != schema:
        raise StorageError(f"{where}: schema_version: expected {schema}; got {shown(version)}.")
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        first = faults[0]
        path = ".".join(str(part) for part in first["loc"]) or "the whole"
        more = f" ({len(faults) - 1} more faults)" if len(faults) > 1 else ""
        raise StorageError(
            f"{where}: {path}: {first['msg']}; got {shown(first['input'])}{more}. {advice}"
        ) from error


def shown(value: object) -> str:
    """Return ``repr(value)``, short enough for an error message."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _short(error: Exception) -> str:
    text = str(error)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {shown(twice)} occurs twice")
    return found


def _plain(value: object, where: str, path: str, finite: bool, depth: int) -> object:
    """Return ``value`` rebuilt from plain lists and dicts, or say at which path that is impossible."""
    at = f"{where}: {path[1:] or 'the whole'}"
    if depth > _DEEPEST:
        raise StorageError(f"{at}: nested deeper than {_DEEPEST} levels.")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise StorageError(f"{at}: expected valid Unicode; got {shown(value)}.") from error
        return str(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if finite and not math.isfinite(value):
            raise StorageError(f"{at}: expected a finite number, JSON has no other; got {value}.")
        return float(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise StorageError(f"{at}: expected text as key; got {shown(key)}.")
            _plain(key, where, path, finite, depth)
        return {str(k): _plain(v, where, f"{path}.{k}", finite, depth + 1) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [_plain(v, where, f"{path}.{i}", finite, depth + 1) for i, v in enumerate(value)]
    raise StorageError(
        f"{at}: expected plain data (numbers, text, lists, mappings); got {type(value).__name__}."
    )
