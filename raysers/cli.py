"""Configuration of the jobs: frozen dataclasses parsed by tyro, plus `--config FILE`.

A config file is turned into arguments in front of the command line's own, so both go through the
same parser and the command line wins.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal, TypeVar

import tyro

from raysers.data.files import load_yaml
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.types import Status

T = TypeVar("T")

DEFAULT_MODEL = "emodb-tiny"
#: What `--corpus` takes: the readers of `raysers.data.corpora`, and two ways without naming one.
CorpusName = Literal["none", "auto", "audformat", "msp-podcast", "iemocap", "cmu-mosi", "emodb"]
_SHARED_FLAGS = (
    "--config FILE reads flags from YAML or a run.json. --requester-pays agrees to pay for reading "
    "requester-pays buckets."
)
Uris = Annotated[tuple[str, ...], tyro.conf.arg(metavar="URI [URI ...]")]


@dataclass(frozen=True, kw_only=True)
class ListingFlags:
    """Which audio a job is about, and how it becomes clips."""

    input: Uris
    """Folders or s3:// prefixes of audio, tar shards, or a manifest (Parquet or CSV)."""
    output: str
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


def parse(config_class: type[T], argv: Sequence[str] | None, *, description: str) -> T:
    """Parse `argv` (default: the process arguments) into `config_class`.

    All jobs take two more flags: `--config FILE` (YAML, or the `run.json` of an earlier run) gives
    defaults that the other arguments override; `--requester-pays` sets the environment of this
    process and, through `cluster.connect`, of its workers.

    Raises:
        ConfigError: the config file cannot be used.
        SystemExit: with code 2 and a message, for arguments the parser refuses.
    """
    shared = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    shared.add_argument("--config")
    shared.add_argument("--requester-pays", action="store_true")
    try:
        given, rest = shared.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ConfigError("--config needs a file: a YAML file or the run.json of a run") from error
    if given.requester_pays:
        os.environ[storage.REQUESTER_PAYS] = "1"
    from_file = _file_arguments(given.config, config_class) if given.config else []
    return tyro.cli(
        config_class,
        args=[*from_file, *rest],
        description=f"{description}\n\n{_SHARED_FLAGS}",
        config=(tyro.conf.EnumChoicesFromValues,),
    )


def _file_arguments(uri: str, config_class: type) -> list[str]:
    try:
        document = load_yaml(uri)  # YAML is a superset of JSON, so run.json needs no other parser
    except ConfigError as error:
        raise ConfigError(f"--config {error}") from error
    if isinstance(document, dict) and "run_id" in document:
        document = document.get("config")
    if not isinstance(document, dict):
        raise ConfigError(f"--config {uri} holds no mapping of flags to values")
    names = {f.name for f in fields(config_class)}
    args: list[str] = []
    for key, value in document.items():
        name = str(key).replace("-", "_")
        if name not in names:
            known = ", ".join(sorted(names))
            raise ConfigError(f"--config {uri}: unknown key {key!r}; known keys: {known}")
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            args += [flag] * value
        elif isinstance(value, list | tuple):
            args += [flag, *map(str, value)] if value else []
        elif value is not None:
            args += [flag, str(value)]
    return args


def as_plain(config: Any) -> dict[str, Any]:
    """The config as JSON-ready values, for `run.json`."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))
    return plain
