"""Command lines of dataclasses: one flag a field, `--help` from the docstrings of the fields.

Words without a flag belong to one field, the positional one, wherever they stand. A flag that is
given twice keeps its last value. A config file gives the same words as a command line, so both go
through the same parser; the command line wins.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import itertools
import json
import math
import os
import sys
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from raysers.data.files import load_yaml
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.types import Status

T = TypeVar("T")

#: Width of help, and where its second column begins.
_COLUMNS, _INDENT = 80, 24
#: What help calls a value of a type, and what messages do.
_PLAIN = {int: ("N", "a whole number"), float: ("X", "a number"), str: ("TEXT", "text")}
#: Numbers are smaller: seeds and arrays hold no larger ones.
_LIMITS = {int: 2**63, float: math.inf}


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag. Fields set what comes first, as `Annotated[str, Flag("URI", short="-o")]`.

    `choices` are the values that are offered, where they are not all of the type. `words` is how
    many words follow the flag; -1: any number, which become a tuple.
    """

    metavar: str = ""
    short: str = ""
    choices: tuple[str, ...] = ()
    hidden: bool = False
    name: str = ""
    about: str = ""
    group: str = ""
    words: int = 1
    read: Callable[[str], Any] = str
    default: Any = ""
    required: bool = False

    @property
    def spelled(self) -> str:
        """The name as it is typed: `--max-failed`."""
        return "--" + self.name.replace("_", "-")

    def value(self, words: Sequence[str]) -> Any:
        """What the words after the flag mean; ConfigError if they mean nothing."""
        if self.words >= 0 and len(words) != self.words:
            number = {0: "no value", 1: "a value"}.get(self.words, f"{self.words} values")
            number += f" ({self.metavar})" if self.words else ""
            raise ConfigError(f"{self.spelled} takes {number}, not {' '.join(words) or 'none'}")
        if self.words == 0:
            return True
        try:
            values = tuple(map(self.read, words))
        except ValueError as error:
            raise ConfigError(f"{self.spelled} {' '.join(words)}: {error}") from None
        return values[0] if self.words == 1 else values


DEFAULT_MODEL = "raysers-base"
#: It needs no download.
DEFAULT_ASR = "moonshine"
Uris = Annotated[tuple[str, ...], Flag("URI")]
Models = Annotated[tuple[str, ...], Flag("MODEL")]
Output = Annotated[str, Flag("URI", short="-o")]
#: A field that the job sets itself.
Hidden = Annotated[str, Flag(hidden=True)]
_FAILURES = tuple(str(status) for status in Status if status is not Status.OK)
Retry = Annotated[tuple[Status, ...], Flag("STATUS", choices=_FAILURES)]

#: Flags on the first screen of `--help`, of commands that have more than these.
_FIRST = (
    "input", "data", "labels", "predictions", "runs", "study", "space", "texts", "templates",
    "output", "model", "asr", "text_model", "fusion", "corpus", "segment", "window_s", "suite",
    "perturbations", "trials", "search", "backbone", "scale", "by", "tts", "voice", "workers",
    "dtype", "dry_run", "retry", "extend", "embeddings",
)  # fmt: skip
_MOST_FIRST = 12
_SHARED = "Flags of every command"


def flags_of(config_class: type) -> dict[str, Flag]:
    """The flags of a dataclass by the names of its fields, grouped by the declaring class."""
    about, groups = dict[str, str](), dict[str, str]()
    for one in reversed(config_class.__mro__):
        if "__annotations__" in vars(one):
            about |= _field_docs(one)
            title = (one.__doc__ or "").partition("\n")[0].rstrip(".")
            groups |= dict.fromkeys(one.__annotations__, title)
    hints = get_type_hints(config_class, include_extras=True)
    found = {}
    for field in fields(config_class):
        hint, flag = hints[field.name], Flag()
        if get_origin(hint) is Annotated:
            hint, flag = get_args(hint)
        read, words, metavar = _reader(hint, flag.choices)
        if flag.metavar:
            metavar = f"{flag.metavar} ..." if words < 0 else flag.metavar
        found[field.name] = replace(
            flag,
            name=field.name,
            about=about.get(field.name, ""),
            group=groups[field.name],
            words=words,
            read=read,
            metavar=metavar,
            default="" if field.default is MISSING else field.default,
            required=field.default is MISSING,
        )
    return found


def _field_docs(one: type) -> dict[str, str]:
    """The strings that follow the fields of a class in its source, on one line each."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0].body  # type: ignore[attr-defined]
    except OSError:  # made at run time, or installed without sources
        return {}
    found = {}
    for pair in itertools.pairwise(body):
        match pair:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str(about))):
                found[name] = " ".join(about.split())
    return found


def _reader(hint: Any, choices: Collection[str]) -> tuple[Callable[[str], Any], int, str]:
    """How a word becomes a value of the type, how many words there are, and their name."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        kinds = [_reader(kind, choices) for kind in args if kind is not NoneType]
        names = " or ".join(name for *_, name in kinds)
        if len(kinds) == 1:
            return kinds[0]
        return (lambda text: _first([read for read, *_ in kinds], text, names)), 1, names
    if origin is tuple:
        read, _, metavar = _reader(args[0], choices)
        if args[-1] is Ellipsis:
            return read, -1, f"{metavar} ..."
        return read, len(args), " ".join([metavar] * len(args))
    if hint is bool:
        return bool, 0, ""
    if hint in _PLAIN:
        metavar, about = _PLAIN[hint]
        return (lambda text: _first([hint], text, about)), 1, metavar
    known = {str(one): one for one in args} if origin is Literal else {o.value: o for o in hint}
    offered = {name: one for name, one in known.items() if not choices or name in choices}
    return (lambda text: _choice(offered, text)), 1, "|".join(filter(None, offered))


def _first(readers: Sequence[Callable[[str], Any]], text: str, names: str) -> Any:
    for read in readers:
        with suppress(ValueError):
            value = read(text)
            if not isinstance(value, int | float) or abs(value) < _LIMITS[type(value)]:
                return value
            names += " below 2**63" * isinstance(value, int)
    raise ValueError(f"give {names}")


def _choice(offered: Mapping[str, Any], text: str) -> Any:
    if text in offered:
        return offered[text]
    raise ValueError(nearest(text, offered) or f"give one of {', '.join(filter(None, offered))}")


def nearest(text: str, known: Collection[str]) -> str:
    """`did you mean 'annotate'?`, or empty when nothing known is like the text."""
    near = difflib.get_close_matches(text.lower(), known, n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def split(args: Sequence[str], flags: Mapping[str, Flag], positional: str) -> dict[str, list[str]]:
    """The words of every flag that is given; those without a flag are the `positional` one's."""
    spelled = {flag.spelled: flag for flag in flags.values()}
    spelled |= {flag.short: flag for flag in flags.values() if flag.short}
    found: dict[str, list[str]] = {}
    words, open_to, left = list[str](), "", 0
    for arg in args:
        bare, is_given, value = arg.partition("=")
        bare = bare[:2] + bare[2:].replace("_", "-")
        is_flag = arg.startswith("-") and len(arg) > 1 and not (arg[1].isdigit() or arg[1] == ".")
        if flag := spelled.get(bare):
            found[flag.name] = [value] if is_given else []
            open_to, left = flag.name, 0 if is_given else flag.words
        elif left > 0 or (left < 0 and not is_flag):
            found[open_to].append(arg)
            left -= 1
        elif is_flag:
            long = "-" + bare if not bare.startswith("--") else bare
            hint = nearest(long, [one for one in spelled if one.startswith("--")])
            raise ConfigError(f"{bare} is no flag here: {hint or '--help-all lists them'}")
        else:
            words.append(arg)
    if words and not positional:
        raise ConfigError(f"{' '.join(words)} belongs to no flag: --help lists them")
    if words and positional in found:
        fix = f"give it with {flags[positional].spelled}, or all without"
        raise ConfigError(f"{' '.join(words)}: {fix}")
    return found | ({positional: words} if words else {})


def build(config_class: type[T], given: Mapping[str, Sequence[str]], prog: str) -> T:
    """The dataclass of the words that are given; ConfigError where a required flag is missing."""
    flags = flags_of(config_class)
    for name, flag in flags.items():
        if flag.required and name not in given:
            about = flag.about.partition(". ")[0].rstrip(".")
            raise ConfigError(f"{prog} needs {flag.spelled} {flag.metavar}: {about}")
    return config_class(**{name: flags[name].value(words) for name, words in given.items()})


def from_values(config_class: type[T], values: Mapping[str, Any], prog: str) -> T:
    """The dataclass of Python values, read as a command line; TypeError for an unknown name."""
    if unknown := sorted(values.keys() - flags_of(config_class).keys()):
        raise TypeError(f"{prog} has no flag {', '.join(unknown)}")
    return build(config_class, _words(values), prog)


def _words(values: Mapping[str, Any]) -> dict[str, list[str]]:
    """What a command line says of the values; None and empty lists are defaults."""
    words: dict[str, list[str]] = {}
    for name, value in values.items():
        if value is True:
            words[name] = []
        elif value is not None and value is not False and value not in ([], ()):
            words[name] = [*map(str, value if isinstance(value, list | tuple) else [value])]
    return words


def help_text(
    prog: str,
    flags: Collection[Flag],
    description: str,
    *,
    positional: str = "",
    shown: Collection[str] = (),
) -> str:
    """Usage, description (indented lines as they are) and flags, at most 80 columns wide.

    With `shown` only these flags, each with the first sentence of what it does.
    """
    place = next((f"[{f.metavar or f.name}] " for f in flags if f.name == positional), "")
    lines = [f"usage: {prog} {place}[flags]", ""]
    for part in description.strip().split("\n\n"):
        lines += part.splitlines() if part.startswith("    ") else textwrap.wrap(part, _COLUMNS)
        lines.append("")
    visible, group = [flag for flag in flags if not flag.hidden], ""
    for flag in visible:
        if not shown and flag.group != group:
            group = flag.group
            lines += ([""] if lines[-1] else []) + textwrap.wrap(f"{group}:", _COLUMNS)
        if not shown or flag.name in shown:
            lines += _flag_lines(flag, short=bool(shown))
    lines += ["", f"{prog} --help-all shows all {len(visible)} flags."] if shown else []
    return "\n".join(lines)


def _flag_lines(flag: Flag, *, short: bool) -> list[str]:
    about, default, metavar = flag.about, flag.default, flag.metavar
    if short:
        about = about.partition(". ")[0].partition("; ")[0].rstrip(".")
    if flag.words and (default or (default == 0 and not short and "0" not in about)):
        values = default if isinstance(default, tuple) else (default,)
        words = (f"{one:g}" if isinstance(one, float) else str(one) for one in values)
        about += f" (default: {' '.join(words)})"
    head = f"  {flag.short}, {flag.spelled}" if flag.short else f"  {flag.spelled}"
    if len(head) + len(metavar) > _COLUMNS - 2:  # a long list of choices belongs to the text
        about, metavar = f"{about} One of: {metavar.replace('|', ', ')}", ""
    head = f"{head} {metavar}".rstrip()
    lines = textwrap.wrap(about, _COLUMNS - _INDENT) or [""]
    if len(head) < _INDENT - 1:
        head, lines = f"{head:<{_INDENT}}{lines[0]}", lines[1:]
    return [head, *(" " * _INDENT + line for line in lines)]


def check_flags(*rules: tuple[bool, str, object, str]) -> None:
    """Raises ConfigError for the first rule that does not hold: (holds, flag, value, what fits)."""
    for holds, flag, value, wanted in rules:
        if not holds:
            raise ConfigError(f"{flag} is {value}: give {wanted}")


def parse(
    config_class: type[T],
    argv: Sequence[str] | None,
    *,
    description: str,
    positional: str = "",
    prog: str = "",
    output: str = "",
    recipes: Path | None = None,
    shown: Collection[str] = (),
) -> T:
    """Parse `argv` (default: the process arguments) into the dataclass `config_class`.

    `--config FILE` (YAML, or the `run.json` of an earlier run) gives defaults that the other
    arguments override; so does `--recipe NAME`, of the files in `recipes`. `--requester-pays` sets
    the environment of this process, which its workers get. Words without a flag belong to the field
    `positional`. `output` is that field's value when nothing is given. `--help` lists the fields
    `shown` (none: those that most commands have), `--help-all` all; both exit. Raises ConfigError.
    """
    own = flags_of(config_class)
    shipped = {path.stem: str(path) for path in sorted(recipes.glob("*.yaml"))} if recipes else {}
    flags = {**own, **_shared_flags(shipped)}
    prog = prog or os.path.basename(sys.argv[0])
    given = split(sys.argv[1:] if argv is None else argv, flags, positional)
    if "help" in given or "help_all" in given:
        many = sum(not flag.hidden for flag in own.values()) > _MOST_FIRST
        first = (shown or (_FIRST if many else own)) if "help" in given else ()
        print(help_text(prog, flags.values(), description, positional=positional, shown=first))
        raise SystemExit(0)
    if "requester_pays" in given:
        os.environ[storage.REQUESTER_PAYS] = "1"
    words: dict[str, Sequence[str]] = {"output": [output]} if output else {}
    file = "a file: a YAML file or the run.json of a run"
    for source, needed in (("recipe", "a name or a YAML file"), ("config", file)):
        if source in given:
            if len(given[source]) != 1:
                raise ConfigError(f"--{source} needs {needed}")
            words |= _file_words(given[source][0], shipped, own, f"--{source}")
    words |= {name: found for name, found in given.items() if name in own}
    parsed = build(config_class, words, prog)
    if output and getattr(parsed, "output", None) == output:
        print(f"output: ./{output} (-o names another place)", flush=True)
    return parsed


def _shared_flags(shipped: Mapping[str, str]) -> dict[str, Flag]:
    rows = [
        ("config", 1, "FILE", "", "Read flags from a YAML file or the run.json of an earlier run."),
        ("requester_pays", 0, "", "", "Agree to pay for reading requester-pays buckets."),
        ("help", 0, "", "-h", "Show the common flags."),
        ("help_all", 0, "", "", "Show all flags."),
    ]
    if shipped:
        about = f"Read flags from a YAML file, or one of {', '.join(shipped)}."
        rows.insert(0, ("recipe", 1, "NAME|FILE", "", about))
    return {
        name: Flag(name=name, words=words, metavar=value, short=short, about=about, group=_SHARED)
        for name, words, value, short, about in rows
    }


def _file_words(
    uri: str, shipped: Mapping[str, str], flags: Mapping[str, Flag], source: str
) -> dict[str, list[str]]:
    """The words that a command line with the values of a YAML file, or a recipe, would have."""
    if source == "--recipe" and "/" not in uri and not uri.endswith((".yaml", ".yml", ".json")):
        if uri not in shipped:
            raise ConfigError(f"--recipe {uri}: give one of {', '.join(shipped)}, or a YAML file")
        uri = shipped[uri]
    try:
        document = load_yaml(uri)  # YAML is a superset of JSON, so run.json needs no other parser
    except ConfigError as error:
        raise ConfigError(f"{source} {error}") from error
    if isinstance(document, dict) and "run_id" in document:
        document = document.get("config")
    if not isinstance(document, dict):
        raise ConfigError(f"{source} {uri} holds no mapping of flags to values")
    values = {str(key).replace("-", "_"): value for key, value in document.items()}
    if unknown := [key for key in document if str(key).replace("-", "_") not in flags]:
        known = ", ".join(sorted(flags))
        raise ConfigError(f"{source} {uri}: unknown key {unknown[0]!r}; known keys: {known}")
    return _words(values)


def as_plain(config: Any) -> dict[str, Any]:
    """The config as JSON-ready values, for `run.json`."""
    return dict(json.loads(json.dumps(asdict(config), default=str)))
