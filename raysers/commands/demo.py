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
    audio, flags, name = config.audio, [], "synthetic-speech"
    if audio:  # a name that is unique for every input and starts with its last part
        place = audio if "://" in audio else str(Path(audio).resolve())
        mark = hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:6]
        name = f"{place.rstrip('/').rsplit('/', 1)[-1] or 'root'}-{mark}"
    folder = Path(config.output, name)
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
    if table.is_dir():
        print(f"demo: the table is in {table}; to read it:")
        # make does not put raysers on the path
        print(f"  {sys.executable} -m raysers read {tables}")
    return code


main = command(Demo, demo, __doc__ or "", positional="audio")
