import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from robustcompress.errors import StorageError
from robustcompress.storage.strict_json import dump, parse, shown, validated

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


class Page(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    schema_version: int
    lines: list[int]


@given(st.dictionaries(TEXT, PLAIN, max_size=4))
@settings(max_examples=60, deadline=None)
def test_parse_undoes_dump_and_every_json_reader_agrees(value: dict[str, object]) -> None:
    text = dump(value, where="x")
    assert parse(text, where="x") == value == json.loads(text)
    assert parse(dump(value, where="x", indent=2).encode(), where="x") == value


def test_the_order_of_keys_does_not_change_the_text() -> None:
    assert dump({"b": 1, "a": {"d": 2, "c": 3}}, where="x") == dump(
        {"a": {"c": 3, "d": 2}, "b": 1}, where="x"
    )


def test_tuples_become_arrays() -> None:
    assert dump({"a": (1, (2,))}, where="x") == '{"a":[1,[2]]}'


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": {"b": float("nan")}}, r"x: a\.b: expected a finite number, JSON has no other; got nan"),
        ({"a": [1, float("-inf")]}, r"x: a\.1: expected a finite number"),
        ({"a": {3: 1}}, r"x: a: expected text as key; got 3"),
        ({"a": {"b": object()}}, r"x: a\.b: expected plain data .*; got object"),
        ({"a": b"bytes"}, r"x: a: expected plain data .*; got bytes"),
        ({"a": "\ud800"}, r"x: a: expected valid Unicode"),
        ({"\ud800": 1}, r"x: the whole: expected valid Unicode"),
    ],
)
def test_what_is_not_plain_is_refused_with_its_path(value: dict[str, object], message: str) -> None:
    with pytest.raises(StorageError, match=message):
        dump(value, where="x")


def test_infinities_pass_where_the_caller_allows_them() -> None:
    text = dump({"best": float("-inf")}, where="x", finite=False)
    assert parse(text, where="x", finite=False) == {"best": float("-inf")}
    with pytest.raises(StorageError, match="x: best: expected a finite number"):
        parse(text, where="x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "x is not valid JSON"),
        (b"\xff\xfe{}", "x is not valid JSON"),
        (b'{"a": 1, "a": 2}', "x is not valid JSON: the key 'a' occurs twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "x is not valid JSON"),
        (b'{"a": ' + b"[" * 100_000, "x is not valid JSON"),
        (b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", "nested deeper than 64 levels"),
        (b'{"a": "\\ud800"}', "x: a: expected valid Unicode"),
        (b"[1]", r"x: expected a JSON object; got \[1\]"),
    ],
)
def test_text_that_breaks_a_rule_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        parse(text, where="x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema_version": 2}', "x: schema_version 2 is newer than 1, .*Upgrade robustcompress"),
        ('{"schema_version": 0}', "x: schema_version: expected 1; got 0"),
        ('{"schema_version": true}', "x: schema_version: expected 1; got True"),
        ("{}", "x: schema_version: expected 1; got None"),
        ('{"schema_version": 1, "lines": [1, "2", 3.5]}', r"x: lines\.1: .*got '2' \(1 more faults\)"),
        ('{"schema_version": 1, "lines": [], "more": 1}', "x: more: Extra inputs are not permitted; got 1"),
        ('{"schema_version": 1}', "x: lines: Field required"),
    ],
)
def test_a_field_that_is_not_as_described_is_named(text: str, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        validated(Page, text, where="x", schema=1)


def test_what_is_as_described_comes_back_as_the_model() -> None:
    assert validated(Page, '{"schema_version": 1, "lines": [4]}', where="x", schema=1).lines == [4]


def test_values_in_errors_are_cut_short() -> None:
    assert shown("a" * 500).endswith("...")
    assert len(shown(["a" * 500])) == 80
    assert shown(10**5000) == "a huge int"
