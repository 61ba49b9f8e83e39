"""Configuration of the jobs: frozen dataclasses, one flag a field, plus `--config FILE`.

A config file gives the same words as a command line, so both go through the same parser; the
command line wins.
"""

from __future__ import annotations

import inspect
import json
import os
import socket
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, get_type_hints
from urllib.parse import urlsplit
from urllib.request import getproxies

from raysers.arguments import Flag, build, flags_of, help_text, split
from raysers.data.files import load_yaml
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.run import quiet_environment, run_main
from raysers.types import Status

T = TypeVar("T")

DEFAULT_MODEL = "raysers-base"
#: It needs no download.
DEFAULT_ASR = "moonshine"
#: What `--corpus` takes: the readers of `raysers.data.corpora`, and two ways without naming one.
CorpusName = Literal["none", "auto", "audformat", "msp-podcast", "iemocap", "cmu-mosi", "emodb"]
Uris = Annotated[tuple[str, ...], Flag("URI")]
Models = Annotated[tuple[str, ...], Flag("MODEL")]
Output = Annotated[str, Flag("URI", short="-o")]
#: A field that the job sets itself.
Hidden = Annotated[str, Flag(hidden=True)]
Retry = Annotated[
    tuple[Status, ...],
    Flag("STATUS", choices=tuple(str(status) for status in Status if status is not Status.OK)),
]

#: Flags on the first screen of `--help`, of commands that have more than these.
_FIRST = (
    "input", "data", "labels", "predictions", "runs", "study", "space", "texts", "templates",
    "output", "model", "asr", "text_model", "fusion", "corpus", "segment", "window_s", "suite",
    "perturbations", "trials", "search", "backbone", "scale", "by", "tts", "voice", "workers",
    "dtype", "dry_run", "retry", "extend", "embeddings",
)  # fmt: skip
_MOST_FIRST = 12
_ANSWER_S = 5.0
_SHARED = "Flags of every command"


@dataclass(frozen=True, kw_only=True)
class ListingFlags:
    """Which audio is processed, and how it becomes clips."""

    input: Uris
    """Folders, s3:// prefixes or URLs of audio, tar shards, or a table of clips."""
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
    channel: Literal["mean", "left", "right", "each"] | int = "mean"
    """Channels of a recording: their mean, one of them (a number counts from 1), or each as
    separate clips, with a column `channel`."""
    audio_stream: str = "0"
    """Audio stream of containers such as MP4 and MKV: a number from 0, or a language (eng) or title
    as the file names it."""
    limit: int = 0
    """Only the first N clips; 0 takes all."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        window = f"above 0 and at most --window-s ({self.window_s:g})"
        whole = "also --segment window (or vad): whole files are not cut"
        cut, kind = self.segment != "whole", ListingFlags
        channel = not isinstance(self.channel, int) or self.channel >= 1
        hop = 0 < self.hop_s <= self.window_s or self.segment != "window"
        _check(
            (bool(self.input), "--input", "nothing", "at least one folder, prefix or manifest"),
            (bool(self.output), "--output", "nothing", "a folder or an s3:// prefix"),
            (self.window_s > 0, "--window-s", self.window_s, "a length above 0 seconds"),
            (hop, "--hop-s", self.hop_s, f"{window}, or audio would be skipped"),
            (cut or self.window_s == kind.window_s, "--window-s", self.window_s, whole),
            (cut or self.hop_s == kind.hop_s, "--hop-s", self.hop_s, whole),
            (cut or self.min_s == kind.min_s, "--min-s", self.min_s, whole),
            (0 < self.min_s <= self.window_s, "--min-s", self.min_s, window),
            (channel, "--channel", self.channel, "mean, left, right, each or a number from 1"),
            (self.limit >= 0, "--limit", self.limit, "0 (all) or more"),
        )


@dataclass(frozen=True, kw_only=True)
class ClipJobFlags(ListingFlags):
    """How clips are scored, and what happens to those that cannot be."""

    model: str = DEFAULT_MODEL
    """Alias, hub id, folder or s3:// prefix of a model, with an optional @revision."""
    dtype: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"
    """Precision of the model; auto is bf16 where the hardware has it, else fp32. int8 is for CPUs:
    faster, and scores differ in the third decimal."""
    workers: int | Literal["local"] = 0
    """Model workers; 0 uses every GPU, or every CPU when there is none, also of nodes that join the
    cluster, and needs no Ray for up to an hour of audio on one machine; `local` scores in this
    process, without Ray."""
    decode_processes: int | Literal["auto"] = "auto"
    """Processes that decode for each worker; 0 decodes in its own threads, auto takes its share of
    the node's cores beside a GPU, else 0."""
    max_padded_s: float = 0.0
    """Padded audio seconds per forward pass; 0 chooses for the device."""
    shard_s: float = 1800.0
    """Audio seconds per output file at most; small archives get shorter ones."""
    dry_run: bool = False
    """Benchmark the cluster, estimate time and cost, write nothing."""
    usd_per_hour: float = 0.0
    """Price of one worker per hour (its machine's, divided by the workers on it)."""
    max_clip_s: float = 600.0
    """Longer clips are `too_long` instead of scored; cut recordings with --segment window."""
    max_failed: float = 0.05
    """Highest share of rows that are not ok before the job ends with exit code 3."""
    retry: Retry = ()
    """When resuming, also score clips with these statuses again."""
    extend: bool = False
    """When resuming, also score files that were added to the input since."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        super().check()
        workers = self.workers == "local" or self.workers >= 0
        beside = self.decode_processes
        length = "a length above 0 seconds"
        _check(
            (workers, "--workers", self.workers, "0 (automatic), a number, or local"),
            (beside == "auto" or beside >= 0, "--decode-processes", beside, "auto, or 0 or more"),
            (self.max_padded_s >= 0, "--max-padded-s", self.max_padded_s, "0 or more seconds"),
            (self.max_clip_s > 0, "--max-clip-s", self.max_clip_s, length),
            (self.shard_s > 0, "--shard-s", self.shard_s, length),
            (0 <= self.max_failed <= 1, "--max-failed", self.max_failed, "a share from 0 to 1"),
            (self.usd_per_hour >= 0, "--usd-per-hour", self.usd_per_hour, "0 or more"),
            (not (self.extend and self.limit), "--limit", self.limit, "0 with --extend"),
            (Status.OK not in self.retry, "--retry", "ok", "statuses of failed clips"),
        )


def _check(*rules: tuple[bool, str, object, str]) -> None:
    """Raises ConfigError for the first rule that does not hold: (holds, flag, value, what fits)."""
    for holds, flag, value, wanted in rules:
        if not holds:
            raise ConfigError(f"{flag} is {value}: give {wanted}")


@dataclass(frozen=True)
class Command(Generic[T]):
    """A job with its command line; called with arguments it gives the exit code, see `parse`.

    `run` is the job itself, of `flags`; its docstring is the description in `--help`.
    """

    run: Callable[[T], int]
    positional: str
    about: str = ""
    recipes: Path | None = None
    shown: Collection[str] = ()

    @property
    def flags(self) -> type[T]:
        """The dataclass of the job's flags."""
        found: type[T] = get_type_hints(self.run)["flags"]
        return found

    def __call__(
        self, argv: Sequence[str] | None = None, *, prog: str | None = None, output: str = ""
    ) -> int:
        """Parse and run; `output` is for when none is given."""

        def body() -> int:
            flags = parse(
                self.flags,
                argv,
                description=self.about or inspect.getdoc(self.run) or "",
                positional=self.positional,
                prog=prog,
                output=output,
                recipes=self.recipes,
                shown=self.shown,
            )
            if '"s3://' in json.dumps(as_plain(flags)):
                for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
                    require_answer(name, os.environ.get(name, ""))
            return self.run(flags)

        quiet_environment()
        return run_main(body)


def command(positional: str, **more: Any) -> Callable[[Callable[[T], int]], Command[T]]:
    """Makes a function of flags the job of a command; words without a flag are `positional`'s."""
    return lambda run: Command(run, positional, **more)


def require_answer(variable: str, address: str) -> None:
    """Check in seconds that a server listens at the address in a variable of the environment.

    An address without a host and port is not checked here. Raises ConfigError: nothing listens
    there.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    if not parts.hostname or port is None or (parts.scheme != "ray" and getproxies()):
        return
    try:
        socket.create_connection((parts.hostname, port), timeout=_ANSWER_S).close()
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigError(
            f"{variable}={address} does not answer ({why}): correct or unset {variable}, or start "
            "the server"
        ) from error


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
    """Parse `argv` (default: the process arguments) into the dataclass `config_class`.

    All jobs take more flags than their own: `--config FILE` (YAML, or the `run.json` of an earlier
    run) gives defaults that the other arguments override; `--requester-pays` sets the environment
    of this process and, through `cluster.connect`, of its workers. `config_class`: one flag a
    field; `argv`: flags and values; `description`: shown above the flags by `--help`; `positional`:
    the field that words without a flag belong to; `prog`: name in usage messages; default: the
    script's; `output`: of the field `output` when nothing is given; announced when it is used;
    `recipes`: folder of the config files that `--recipe NAME` knows; None: no such flag; `shown`:
    fields in `--help`; `--help-all` lists all. Empty: those that most commands have. Raises
    ConfigError: an argument, config file or recipe that cannot be used; SystemExit: with code 0,
    after printing help.
    """
    own = flags_of(config_class)
    flags = {**own, **_shared_flags(recipes)}
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
    for source, wanted in (("recipe", "a name or a YAML file"), ("config", file)):
        if source in given and len(given[source]) != 1:
            raise ConfigError(f"--{source} needs {wanted}")
        if source in given:
            (place,) = given[source]
            uri = _recipe(place, recipes) if source == "recipe" and recipes else place
            words |= _file_words(uri, own, f"--{source}")
    words |= {name: found for name, found in given.items() if name in own}
    parsed = build(config_class, words, prog)
    if output and getattr(parsed, "output", None) == output:
        print(f"output: ./{output} (-o names another place)", flush=True)
    return parsed


def _shared_flags(recipes: Path | None) -> dict[str, Flag]:
    rows = [
        ("config", 1, "FILE", "", "Read flags from a YAML file or the run.json of an earlier run."),
        ("requester_pays", 0, "", "", "Agree to pay for reading requester-pays buckets."),
        ("help", 0, "", "-h", "Show the common flags."),
        ("help_all", 0, "", "", "Show all flags."),
    ]
    if recipes is not None:
        about = f"Read flags from a YAML file, or one of {_names(recipes)}."
        rows.insert(0, ("recipe", 1, "NAME|FILE", "", about))
    return {
        name: Flag(name=name, words=words, metavar=value, short=short, about=about, group=_SHARED)
        for name, words, value, short, about in rows
    }


def _names(recipes: Path) -> str:
    return ", ".join(sorted(path.stem for path in recipes.glob("*.yaml")))


def _recipe(name: str, recipes: Path) -> str:
    """Where the recipe of that name is, or the file itself; ConfigError if it is neither."""
    shipped = recipes / f"{name}.yaml"
    if "/" not in name and shipped.is_file():
        return str(shipped)
    if "/" in name or name.endswith((".yaml", ".yml", ".json")):
        return name
    raise ConfigError(f"--recipe {name}: give one of {_names(recipes)}, or a YAML file")


def _file_words(uri: str, flags: Mapping[str, Flag], source: str) -> dict[str, list[str]]:
    """The words that a command line with the values of a YAML file would have."""
    try:
        document = load_yaml(uri)  # YAML is a superset of JSON, so run.json needs no other parser
    except ConfigError as error:
        raise ConfigError(f"{source} {error}") from error
    if isinstance(document, dict) and "run_id" in document:
        document = document.get("config")
    if not isinstance(document, dict):
        raise ConfigError(f"{source} {uri} holds no mapping of flags to values")
    words: dict[str, list[str]] = {}
    for key, value in document.items():
        name = str(key).replace("-", "_")
        if name not in flags:
            known = ", ".join(sorted(flags))
            raise ConfigError(f"{source} {uri}: unknown key {key!r}; known keys: {known}")
        if isinstance(value, bool):
            words |= {name: []} if value else {}
        elif isinstance(value, list | tuple):
            words |= {name: [*map(str, value)]} if value else {}
        elif value is not None:
            words[name] = [str(value)]
    return words


def as_plain(config: Any) -> dict[str, Any]:
    """The config as JSON-ready values, for `run.json`."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))
    return plain
