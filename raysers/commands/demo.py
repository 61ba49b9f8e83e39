"""The whole pipeline on synthetic speech, offline.

    raysers demo               about 60 clips and six broken files; 2 minutes
    raysers demo recordings/   your own recordings instead

Clips are made once and kept, so running the demo again shows how a finished folder resumes.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

from raysers.cli import Output, command
from raysers.commands import annotate
from raysers.run import Exit
from raysers.words.demo_speech import make_audio, print_emotions


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What to annotate and where to put it."""

    audio: str = ""
    """Folder or s3:// prefix of recordings; empty makes about 60 spoken clips."""
    output: Output = "demo-out"
    """Folder for the tables, and for the clips when they are made."""


def demo(config: Demo) -> int:
    """Annotate; the exit code is the annotation job's."""
    audio, flags = config.audio, []
    folder = Path(config.output, _folder_name(audio) if audio else "synthetic-speech")
    if not audio:
        audio = str(folder / "audio")
        clips, broken = make_audio(Path(audio))
        print(f"demo: {clips} spoken clips and {broken} broken files in {audio}", flush=True)
        # the broken files alone are more than a healthy archive should have
        flags = ["--max-failed", "0.2"]
    tables = folder / "tables"
    code = annotate.main(["--input", audio, "--output", str(tables), *flags])
    table = tables / "annotations"
    if not config.audio and code in (Exit.DONE, Exit.TOO_MANY_FAILED):
        print_emotions(table)
    _print_where(table)
    return code


def _folder_name(uri: str) -> str:
    """A unique folder name for every input that starts with its last part."""
    place = uri if "://" in uri else str(Path(uri).resolve())
    mark = hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:6]
    return f"{place.rstrip('/').rsplit('/', 1)[-1] or 'root'}-{mark}"


def _print_where(table: Path) -> None:
    if table.is_dir():
        print(f"demo: the table is in {table}; to read it:")
        print(f"""  {sys.executable} -c 'import pandas; print(pandas.read_parquet("{table}"))'""")


main = command(Demo, demo, __doc__ or "", positional="audio")
