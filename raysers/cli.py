"""Configuration of the jobs: frozen dataclasses parsed by tyro, plus `--config FILE`.

A config file is turned into arguments in front of the command line's own, so both go through the
same parser and the command line wins.
"""

from __future__ import annotations

import argparse
import json
import os
import textwrap
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar, get_args, get_origin, get_type_hints

import tyro

from raysers.data.files import load_yaml
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.run import quiet_environment, run_main
from raysers.types import Status

T = TypeVar("T")

DEFAULT_MODEL = "raysers-base"
#: What `--corpus` takes: the readers of `raysers.data.corpora`, and two ways without naming one.
CorpusName = Literal["none", "auto", "audformat", "msp-podcast", "iemocap", "cmu-mosi", "emodb"]
_SHARED_FLAGS = (
    "--config FILE reads flags from YAML or a run.json. --requester-pays agrees to pay for reading "
    "requester-pays buckets."
)
Uris = Annotated[tuple[str, ...], tyro.conf.arg(metavar="URI [URI ...]")]
Output = Annotated[str, tyro.conf.arg(aliases=("-o",), metavar="URI")]
#: What the terminal shows of a description is at most this wide.
_HELP_COLUMNS = 80


@dataclass(frozen=True, kw_only=True)
class ListingFlags:
    """Which audio a job is about, and how it becomes clips."""

    input: Uris
    """Folders or s3:// prefixes of audio, tar shards, or a manifest (Parquet or CSV)."""
    output: Output
    """Folder or s3:// prefix for the tables; rerun the command to resume there."""
    segment: Literal["whole", "window", "vad"] = "whole"
    """How recordings become clips: the whole file, fixed windows, or stretches of speech."""
    window_s: float = 10.0
    """Window length in seconds; for vad the longest stretch of speech."""
    hop_s: float = 10.0
    """Seconds from one window's start to the next."""
    min_s: float = 0.5
    """Shortest last window, or stretch of speech, in seconds."""
    limit: int = 0
    """Only the first N clips; 0 takes all."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        _require(bool(self.input), "--input", "nothing", "at least one folder, prefix or manifest")
        _require(bool(self.output), "--output", "nothing", "a folder or an s3:// prefix")
        _require(self.window_s > 0, "--window-s", self.window_s, "a length above 0 seconds")
        hop = f"above 0 and at most --window-s ({self.window_s:g}), or audio would be skipped"
        fits = 0 < self.hop_s <= self.window_s or self.segment != "window"
        _require(fits, "--hop-s", self.hop_s, hop)
        for flag, value, default in (
            ("--window-s", self.window_s, ListingFlags.window_s),
            ("--hop-s", self.hop_s, ListingFlags.hop_s),
            ("--min-s", self.min_s, ListingFlags.min_s),
        ):
            used = self.segment != "whole" or value == default
            _require(used, flag, value, "also --segment window (or vad): whole files are not cut")
        least = f"above 0 and at most --window-s ({self.window_s:g})"
        _require(0 < self.min_s <= self.window_s, "--min-s", self.min_s, least)
        _require(self.limit >= 0, "--limit", self.limit, "0 (all) or more")


@dataclass(frozen=True, kw_only=True)
class ClipJobFlags(ListingFlags):
    """Flags every job over clips shares."""

    model: str = DEFAULT_MODEL
    """Alias, hub id, folder or s3:// prefix of a model, with an optional @revision."""
    dtype: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"
    """Precision of the model; auto is bf16 where the hardware has it, else fp32. int8 is for CPUs:
    faster, and scores differ in the third decimal."""
    workers: int | Literal["local"] = 0
    """Model workers; 0 uses every GPU, or every CPU when there is none, and needs no Ray for up to
    an hour of audio on one machine; `local` scores in this process, without Ray."""
    max_padded_s: float = 0.0
    """Padded audio seconds per forward pass; 0 chooses for the device."""
    shard_s: float = 1800.0
    """Audio seconds per output file at most; small archives get shorter ones."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Benchmark the cluster, estimate time and cost, write nothing."""
    usd_per_hour: float = 0.0
    """Price of one worker per hour (its machine's, divided by the workers on it)."""
    max_clip_s: float = 600.0
    """Longer clips are `too_long` instead of scored; cut recordings with --segment window."""
    max_failed: float = 0.05
    """Highest share of rows that are not ok before the job ends with exit code 3."""
    retry: tuple[Status, ...] = ()
    """When resuming, also score clips with these statuses again."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        super().check()
        fits = self.workers == "local" or self.workers >= 0
        _require(fits, "--workers", self.workers, "0 (automatic), a number, or local")
        _require(self.max_padded_s >= 0, "--max-padded-s", self.max_padded_s, "0 or more seconds")
        _require(self.max_clip_s > 0, "--max-clip-s", self.max_clip_s, "a length above 0 seconds")
        _require(self.shard_s > 0, "--shard-s", self.shard_s, "a length above 0 seconds")
        _require(0 <= self.max_failed <= 1, "--max-failed", self.max_failed, "a share from 0 to 1")
        _require(self.usd_per_hour >= 0, "--usd-per-hour", self.usd_per_hour, "0 or more")
        _require(Status.OK not in self.retry, "--retry", "ok", "statuses of failed clips")


def _require(good: bool, flag: str, value: object, wanted: str) -> None:
    if not good:
        raise ConfigError(f"{flag} is {value}: give {wanted}")


class Main(Protocol):
    """The entry point of a job."""

    def __call__(
        self, argv: Sequence[str] | None = None, *, prog: str | None = None, output: str = ""
    ) -> int:
        """Run the job; returns its exit code.

        Args:
            argv: flags and values; default: the command line.
            prog: name in usage messages; default: the script's.
            output: where the results go unless the flags say.
        """


def command(
    config_class: type[T],
    job: Callable[[T], int],
    description: str,
    *,
    positional: str,
    recipes: Path | None = None,
    shown: Collection[str] = (),
) -> Main:
    """The entry point of the job that takes a `config_class`; arguments as those of `parse`."""

    def main(
        argv: Sequence[str] | None = None, *, prog: str | None = None, output: str = ""
    ) -> int:
        quiet_environment()
        return run_main(
            lambda: job(
                parse(
                    config_class,
                    argv,
                    description=description,
                    positional=positional,
                    prog=prog,
                    output=output,
                    recipes=recipes,
                    shown=shown,
                )
            )
        )

    return main


def parse(
    config_class: type[T],
    argv: Sequence[str] | None,
    *,
    description: str,
    positional: str = "",
    prog: str | None = None,
    output: str = "",
    recipes: Path | None = None,
    shown: Collection[str] = (),
) -> T:
    """Parse `argv` (default: the process arguments) into `config_class`.

    All jobs take two more flags: `--config FILE` (YAML, or the `run.json` of an earlier run) gives
    defaults that the other arguments override; `--requester-pays` sets the environment of this
    process and, through `cluster.connect`, of its workers.

    Args:
        config_class: a dataclass, one flag a field.
        argv: flags and values.
        description: shown above the flags by `--help`.
        positional: the field that words without a flag belong to.
        prog: name in usage messages; default: the script's.
        output: of the field `output` when nothing is given; announced when it is used.
        recipes: folder of the recipes that `--recipe NAME` knows; `--recipe FILE` takes others.
            A recipe is a config file that `--config` and the flags override. None: no such flag.
        shown: fields in `--help`; `--help-all` lists all. Empty: all.

    Raises:
        ConfigError: the config file or recipe cannot be used.
        SystemExit: with code 2 and a message, for arguments the parser refuses.
    """
    shared = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    shared.add_argument("--config")
    shared.add_argument("--requester-pays", action="store_true")
    if recipes is not None:
        shared.add_argument("--recipe")
    try:
        given, rest = shared.parse_known_args(argv)
    except argparse.ArgumentError as error:
        if "--recipe" in str(error):
            raise ConfigError("--recipe needs a name or a YAML file") from error
        raise ConfigError("--config needs a file: a YAML file or the run.json of a run") from error
    if given.requester_pays:
        os.environ[storage.REQUESTER_PAYS] = "1"
    from_file: list[str] = []
    if recipes is not None and given.recipe:
        from_file += _file_arguments(_recipe(given.recipe, recipes), config_class, "--recipe")
    if given.config:
        from_file += _file_arguments(given.config, config_class, "--config")
    if positional:
        rest = _with_positional(config_class, rest, positional)
    if {"-h", "--help", "--help-all"} & set(rest):
        texts = [description.strip(), _SHARED_FLAGS]
        if recipes is not None:
            texts.append(f"--recipe FILE|NAME reads flags first; {_names(recipes)} come along.")
        if shown:
            texts.append(f"--help shows {len(shown)} flags, --help-all all of them.")
        print(_wrapped("\n\n".join(texts)), end="\n\n")
    short = bool(shown) and bool({"-h", "--help"} & set(rest))
    if shown:
        rest = ["--help" if arg == "--help-all" else arg for arg in rest]
    parsed: T = tyro.cli(
        _without_help(config_class, shown) if short else config_class,
        prog=prog,
        args=[*(["--output", output] if output else []), *from_file, *rest],
        description="",
        config=(tyro.conf.EnumChoicesFromValues,),
    )
    if output and getattr(parsed, "output", None) == output:
        print(f"output: ./{output} (-o names another place)", flush=True)
    return parsed


def _without_help(config_class: type[T], shown: Collection[str]) -> type[T]:
    """The class with the fields that are not `shown` left out of `--help`; all are parsed."""
    hidden = {
        name: tyro.conf.Suppress[hint]  # type: ignore[misc, valid-type]
        for name, hint in get_type_hints(config_class, include_extras=True).items()
        if name not in shown
    }
    defaults = {field.name: field.default for field in fields(config_class)}  # type: ignore[arg-type]
    body = {name: defaults[name] for name in hidden} | {"__annotations__": hidden}
    short = type(config_class.__name__, (config_class,), body)
    return dataclass(frozen=True, kw_only=True)(short)


def _names(recipes: Path) -> str:
    return ", ".join(sorted(path.stem for path in recipes.glob("*.yaml")))


def _recipe(name: str, recipes: Path) -> str:
    """Where the recipe of that name is, or the file itself.

    Raises:
        ConfigError: neither is there.
    """
    shipped = recipes / f"{name}.yaml"
    if "/" not in name and shipped.is_file():
        return str(shipped)
    if "/" in name or name.endswith((".yaml", ".yml", ".json")):
        return name
    raise ConfigError(f"--recipe {name}: give one of {_names(recipes)}, or a YAML file")


def _with_positional(config_class: type, args: Sequence[str], name: str) -> list[str]:
    """`args` with the words that no flag takes given to the flag of the field `name`.

    Raises:
        ConfigError: that flag is there as well.
    """
    flag, words, others = "--" + name.replace("_", "-"), list[str](), list[str]()
    most = {"-h": 0, "--help": 0, "-o": 1}
    for field, hint in get_type_hints(config_class).items():
        tuples = [h for h in (hint, *get_args(hint)) if get_origin(h) is tuple]  # or one with None
        kinds = get_args(tuples[0]) if tuples else None
        number = int(hint is not bool) if kinds is None else len(kinds)
        most["--" + field.replace("_", "-")] = len(args) if kinds and ... in kinds else number
    left = 0
    for arg in args:
        if arg.startswith("-") and len(arg) > 1 and not arg[1:2].isdigit():
            bare, _, value = arg.partition("=")
            left = 0 if value else most.get(bare.replace("--no-", "--", 1), len(args))
            others.append(arg)
        elif left:
            left -= 1
            others.append(arg)
        else:
            words.append(arg)
    if words and flag in others:
        raise ConfigError(f"{' '.join(words)}: give it with {flag}, or all without")
    return [*([flag, *words] if words else []), *others]


def _wrapped(text: str) -> str:
    """Paragraphs no wider than a small terminal; indented lines as they are."""
    return "\n\n".join(
        part if part.startswith("    ") else textwrap.fill(part, _HELP_COLUMNS)
        for part in text.split("\n\n")
    )


def _file_arguments(uri: str, config_class: type, flag: str) -> list[str]:
    try:
        document = load_yaml(uri)  # YAML is a superset of JSON, so run.json needs no other parser
    except ConfigError as error:
        raise ConfigError(f"{flag} {error}") from error
    if isinstance(document, dict) and "run_id" in document:
        document = document.get("config")
    if not isinstance(document, dict):
        raise ConfigError(f"{flag} {uri} holds no mapping of flags to values")
    names = {f.name for f in fields(config_class)}
    args: list[str] = []
    for key, value in document.items():
        name = str(key).replace("-", "_")
        if name not in names:
            known = ", ".join(sorted(names))
            raise ConfigError(f"{flag} {uri}: unknown key {key!r}; known keys: {known}")
        given = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            args += [given] * value
        elif isinstance(value, list | tuple):
            args += [given, *map(str, value)] if value else []
        elif value is not None:
            args += [given, str(value)]
    return args


def as_plain(config: Any) -> dict[str, Any]:
    """The config as JSON-ready values, for `run.json`."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))
    return plain
