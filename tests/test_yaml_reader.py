"""YAML is read as it looks, or refused with its line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from umup import yaml_reader
from umup.errors import ClaimError, ConfigError
from umup.yaml_reader import line_of, read_overrides, read_yaml, read_yaml_file

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-2E+3", -2000.0),
        ("1.5e-4", 1.5e-4),
        (".5", 0.5),
        ("1.", 1.0),
        ("+12", 12),
        ("-0", 0),
        ("1_000", 1000),
        ("1_000.5", 1000.5),
        ("0e5", 0.0),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("9007199254740993", 2**53 + 1),
        ("~", None),
        ("null", None),
        ("", None),
        ("True", True),
        ("FALSE", False),
        ("'60'", "60"),
        ('"off"', "off"),
        ("[1, [2.5, x]]", [1, [2.5, "x"]]),
        # None of these is a decimal number, a switch or nothing: they are text, as they look.
        ("0100", "0100"),
        ("0o17", "0o17"),
        ("0x1F", "0x1F"),
        ("0b11", "0b11"),
        ("1:30", "1:30"),
        ("12:30:00", "12:30:00"),
        ("2024-01-31", "2024-01-31"),
        ("1__0", "1__0"),
        ("1_", "1_"),
        ("0_1", "0_1"),
        ("inf", "inf"),
        ("nan", "nan"),
        ("e4", "e4"),
        ("1e", "1e"),
        ("tRue", "tRue"),
        ("１２", "１２"),
        ("−1", "−1"),
        ("η", "η"),
    ],
)
def test_a_scalar_is_what_it_looks_like(text, value):
    found = read_yaml(f"a: {text}", "f")["a"]
    assert (found, type(found)) == (value, type(value))


def test_nan_is_a_number_that_ranges_refuse():
    assert math.isnan(read_yaml(".NaN", "f"))


def test_keys_are_text():
    text = "on: 1\nyes: 2\n3: 4\n~: 5\n1e3: 6\n0x1: 7\n"
    assert read_yaml(text, "f") == {"on": 1, "yes": 2, "3": 4, "~": 5, "1e3": 6, "0x1": 7}


def test_an_anchor_is_written_out_where_it_is_named():
    found = read_yaml("a: &x {b: [1]}\nc: *x\n", "f")
    assert found == {"a": {"b": [1]}, "c": {"b": [1]}}
    assert found["a"]["b"] is not found["c"]["b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: off", "f, line 2: received 'off'; allowed: true or false"),
        ("a: [1,\n Yes]", "f, line 2: received 'Yes'; allowed: true or false"),
        ("a: 1\nb: 2\na: 3", "f, line 3: received 'a'; allowed: 'a' once; it is also in line 1"),
        ("{a: {b: 1, b: 2}}", "f, line 1: received 'b'; allowed: 'b' once"),
        ("a: 1\n'a': 2", "line 2: .*'a' once"),
        ("a:\n\tb: 1", "line 2: .*a readable YAML file: spaces where there is a tab"),
        ("a: [", "line 1: .*stream end.*a readable YAML file"),
        ("a: b: c", "line 1: .*not allowed here.*a readable YAML file"),
        ("a: 1\n---\nb: 2", "line 2: .*another document.* of one document"),
        ("a: 1\nb: \x07", r"line 2: .*the character .*x07.*printable"),
        ("a: *x", "line 1: .*undefined alias 'x'"),
        ("a: &x [*x]", "f: received 'groups within groups without end'"),
        ("a: &x {b: 1}\nc: {<<: *x}", "line 2: received '<<'; .*write their fields out"),
        ("[" * 10_000, "groups within groups without end"),
        ("a: 1\nb: !!str 60", "line 2: received '.*:str'; allowed: a value without a tag"),
        ("a: !!python/object/apply:os.getpid []", "line 1: .*a value without a tag"),
        ("? [1]\n: 2", "line 1: .*a name as key"),
        ("a: 1e999", "line 1: received '1e999'; allowed: a number that float64 can hold"),
        ("a: 1e-999", "line 1: received '1e-999'; allowed: a number that float64 can hold"),
        ("a: 1" + "0" * 5000, "line 1: received '10000000000000000000…'; .*at most 100 digits"),
    ],
)
def test_what_is_refused_and_where(text, message):
    with pytest.raises(ConfigError, match=message):
        read_yaml(text, "f")


def test_aliases_of_aliases_end():
    text = "a0: &a0 [1, 2]\n"
    text += "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    with pytest.raises(ConfigError, match="too many values"):
        read_yaml(text, "f")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff", "line 1: received .not UTF-8"),
        (b"a: 1\nb: \xe9t\xe9\n", "line 2: received .not UTF-8"),
        ("a: 1\n".encode("utf-16"), "line 1: received .not UTF-8"),
        (b"#" * (yaml_reader.MAX_BYTES + 1), "more than 1,048,576 bytes"),
    ],
)
def test_a_file_that_is_no_text(tmp_path, content, message):
    path = tmp_path / "f.yaml"
    path.write_bytes(content)
    with pytest.raises(ClaimError, match=message):
        read_yaml_file(path, ClaimError)


def test_a_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path, tmp_path / "none", "zero\0"):
        with pytest.raises(ClaimError, match="a readable YAML file"):
            read_yaml_file(path, ClaimError)


def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("a: 1\r\n", encoding="utf-8-sig")
    assert read_yaml_file(path, ConfigError) == {"a": 1}


def test_overrides():
    pairs = [("a", "[1, 2]"), ("b", ""), ("c", " 1e-3 "), ("d", "'x # y'"), ("e", "0100")]
    assert read_overrides(pairs) == {"a": [1, 2], "b": None, "c": 1e-3, "d": "x # y", "e": "0100"}
    for text, message in (
        ("[", "-p a, line 1: received .*a readable YAML file"),
        ("off", "-p a, line 1: received 'off'; allowed: true or false"),
        ("run #3", "-p a: received 'run #3'; allowed: one value, in quotes if it holds a #"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_overrides([("a", text)])


def test_the_line_of_a_field():
    text = "a: 1\ngroup:\n  b: 2\n  'c': 3\n"
    names = ("a", "group", "group.b", "group.c", "group.absent", "absent", "a.b")
    assert [line_of(text, name) for name in names] == [1, 2, 3, 4, 2, None, 1]
    assert line_of("", "a") is None


def test_the_project_s_own_files_are_read_as_papermill_reads_them():
    """Where they hold the traps of YAML 1.1, a notebook would get other values than `umup run`."""
    files = sorted((ROOT / "experiments").glob("*/*.yaml"))
    assert files
    for path in files:
        if path.stem != "claims":
            ours = read_yaml_file(path, ConfigError)
            assert repr(ours) == repr(yaml.safe_load(path.read_text("utf-8"))), path
            assert all(not isinstance(v, float) or math.isfinite(v) for v in (ours or {}).values())
