"""YAML from strangers: ends at once, whatever it nests, repeats or claims."""

from __future__ import annotations

import time

import pytest

from raysers.cli import parse
from raysers.data.files import load_yaml, parse_yaml
from raysers.engine.listing import ClipJobFlags
from raysers.errors import ConfigError

HOSTILE = {
    "nested lists": "[" * 100_000,
    "nested maps": "{a: " * 100_000,
    "nested blocks": "\n".join(" " * i + "- " for i in range(1000)),
    "nested keys": "? " * 100_000,
    "aliases": "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40)),
    "chain of aliases": "a0: &a0 [x]\n"
    + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 999)),
    "merged aliases": "a: &a {x: 1}\nb: {<<: [" + "*a," * 100_001 + "]}",
    "an alias in itself": "a: &a [*a]",
    "an alias of nothing": "a: *b",
    "a tag": "a: !!python/object/apply:os.getcwd []",
    "an impossible date": "a: 2024-13-45",
    "a long number": "a: " + "9" * 10_000,
    "two documents": "a: 1\n---\nb: 2\n",
    "size": "a: " + "x" * 2**22,
    "many values": "[" + "1," * 250_000 + "]",
    "a control character": "a: \0",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_yaml_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "x.yaml"
    path.write_text(HOSTILE[kind])
    start_s = time.monotonic()
    with pytest.raises(ConfigError) as raised:
        load_yaml(str(path))
    assert time.monotonic() - start_s < 10
    assert str(raised.value).startswith(f"{path} cannot be read: ")
    assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match=r"--config .*x\.yaml cannot be read"):
        parse(ClipJobFlags, ["--config", str(path)], description="")


def test_aliases_that_expand_to_little_are_read():
    assert parse_yaml("a: &x {b: [1, 2]}\nc: *x\nd: {<<: *x, e: 3}") == {
        "a": {"b": [1, 2]},
        "c": {"b": [1, 2]},
        "d": {"b": [1, 2], "e": 3},
    }
    assert parse_yaml("[" * 40 + "]" * 40)
