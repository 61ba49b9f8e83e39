"""Command lines of dataclasses: words to values, and help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from raysers.cli import Flag, build, flags_of, help_text, split
from raysers.errors import ConfigError
from raysers.types import Status


@dataclass(frozen=True, kw_only=True)
class Base:
    """Where it comes from."""

    source: Annotated[tuple[str, ...], Flag("URI")]
    """Folders, or files. More about them."""


@dataclass(frozen=True, kw_only=True)
class Flags(Base):
    """What happens to it.

    More lines.
    """

    out: Annotated[str, Flag("URI", short="-o")] = "there"
    """Where it goes."""
    rate: float = 0.5
    """Speed."""
    number: int | Literal["local"] = 0
    """How many; 0 takes all."""
    pair: tuple[float, float] | None = None
    """Two of them."""
    kind: Literal["big", "small"] = "big"
    """Size."""
    again: Annotated[tuple[Status, ...], Flag("STATUS", choices=("missing", "empty"))] = ()
    """Statuses."""
    secret: Annotated[str, Flag(hidden=True)] = ""
    loud: bool = False
    """Noise."""


def parse(*args: str, positional: str = "source") -> Flags:
    return build(Flags, split(args, flags_of(Flags), positional), "prog")


def test_every_type_is_read_from_its_words() -> None:
    args = (
        "a b -o=x --rate -.5 --number local --pair 1 -2 --kind small --again missing empty --loud"
    )
    assert parse(*args.split()) == Flags(
        source=("a", "b"),
        out="x",
        rate=-0.5,
        number="local",
        pair=(1.0, -2.0),
        kind="small",
        again=(Status.MISSING, Status.EMPTY),
        loud=True,
    )
    assert parse("--rate", "1", "a", "--loud", "b", "--number=3", "--rate", "2") == Flags(
        source=("a", "b"), rate=2.0, number=3, loud=True
    )
    assert parse("--source", "a", "--out", "-") == Flags(source=("a",), out="-")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("a --rat 1", "--rat is no flag here: did you mean '--rate'?"),
        ("a -loud", "-loud is no flag here: did you mean '--loud'?"),
        ("a --xyz", "--xyz is no flag here: --help-all lists them"),
        ("a --rate", "--rate takes a value (X), not none"),
        ("a --pair 1", "--pair takes 2 values (X X), not 1"),
        ("a --rate fast", "--rate fast: give a number"),
        ("a --rate nan", "--rate nan: give a number"),
        ("a --pair 1 -inf", "--pair 1 -inf: give a number"),
        ("a --number 9999999999999999999", "--number 9999999999999999999: give N or local"),
        ("a --number 1.5", "--number 1.5: give N or local"),
        ("a --kind bigg", "--kind bigg: did you mean 'big'?"),
        ("a --kind huge", "--kind huge: give one of big, small"),
        ("a --again ok", "--again ok: give one of missing, empty"),
        ("a --source b", "a: give it with --source, or all without"),
        ("--loud", "prog needs --source URI ...: Folders, or files"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_fix(args: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(*args.split())
    assert str(caught.value) == said


def test_words_that_belong_to_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="a b belongs to no flag"):
        parse("a", "b", positional="")


def test_help_is_grouped_by_class_and_shows_real_defaults() -> None:
    text = help_text("prog", flags_of(Flags).values(), "About.\n\n    prog x", positional="source")
    assert text.splitlines() == [
        "usage: prog [URI ...] [flags]", "", "About.", "", "    prog x", "",
        "Where it comes from:",
        "  --source URI ...      Folders, or files. More about them.", "",
        "What happens to it:",
        "  -o, --out URI         Where it goes. (default: there)",
        "  --rate X              Speed. (default: 0.5)",
        "  --number N or local   How many; 0 takes all.",
        "  --pair X X            Two of them.",
        "  --kind big|small      Size. (default: big)",
        "  --again STATUS ...    Statuses.",
        "  --loud                Noise.",
    ]  # fmt: skip
    few = help_text("prog", flags_of(Flags).values(), "About.", shown=("source",))
    assert few.splitlines()[4:] == [
        "  --source URI ...      Folders, or files",
        "",
        "prog --help-all shows all 8 flags.",
    ]
