"""Writes the pages of flags and columns from the code: `python docs/generate.py`, as `make docs` does."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

import pyarrow as pa

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))  # the package beside it, not one that is installed
from raysers import schemas
from raysers.commands import COMMANDS, find
from raysers.tuning.results import TRIALS
from raysers.words.ratings import WORDS
from raysers.words.spoken import RESPOKEN, SENTENCES
from raysers.words.synthesize import SPEECH
from raysers.words.transcribe import LANGUAGE, TIMES

#: One value of the columns whose meaning alone does not show it.
EXAMPLES = {
    "file": "s3://bucket/calls/0001.flac", "start": "0 days 00:00:10", "end": "0 days 00:00:20",
    "clip_id": "78e408b6163072e6d083036945670312", "status": "ok", "start_s": "10.0", "end_s": "20.0",
    "error": "no such file", "arousal": "0.73", "dominance": "0.69", "valence": "0.82",
    "emotion": "happiness", "p_happiness": "0.84", "arousal_sd": "0.03", "ood": "0.05",
    "duration_s": "1.9", "rms_db": "-21.3", "clipped_ratio": "0.0", "model": "msp-dim",
    "model_revision": "4a5ad3f3", "run_id": "b9e2f1c07a5d4e33", "created_at": "2026-01-31 12:00:00",
    "sample_rate_hz": "16000", "channels": "1", "codec": "WAV/PCM_16", "num_bytes": "60844",
    "etag": "9b2cf535f27731c9", "byte_offset": "512", "byte_size": "60844", "speaker": "03",
    "sex": "female", "language": "de", "split": "test1", "transcript": "hello there",
    "corpus": "emodb", "session": "Ses01", "dataset": "emodb", "group": "sex",
    "group_value": "female", "dimension": "valence", "metric": "ccc", "value": "0.571",
    "ci_low": "0.445", "ci_high": "0.657", "n": "535", "paper": "0.638",
    "perturbation": "white_noise", "parameters": '{"snr_db": 40}', "text": "hello there",
    "asr_model": "moonshine", "text_model": "bert-base-uncased", "arousal_audio": "0.61",
    "embedding": "[0.12, -0.03, …]", "study": "seeds", "kind": "train", "seed": "0",
}  # fmt: skip
_TYPES = {"duration[ns]": "duration", "timestamp[us, tz=UTC]": "time, UTC"}


def cli_page() -> str:
    """Help of every command, as it is printed."""
    lines = [
        "# Commands and flags",
        "",
        "Every command takes its input as words without a flag, and `-o` for its output. The same command "
        "resumes an output. `raysers COMMAND --help` shows the flags that most need, `--help-all` this page's text.",
    ]
    for name, (*_, about) in COMMANDS.items():
        for words in ([name, "train"], [name, "predict"]) if name == "fuse" else ([name],):
            text = _help(words)
            lines += ["", f"## raysers {' '.join(words)}", "", about.capitalize() + "."]
            lines += ["", "```text", text.rstrip(), "```"]
    return "\n".join(lines) + "\n"


def _help(words: list[str]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        find(words[0])([*words[1:], "--help-all"], prog=f"raysers {words[0]}")
    return printed.getvalue()


def schema_page() -> str:
    """Every column of every table, with type, unit, meaning and an example."""
    extras = schemas.with_outputs(
        pa.schema([schemas.ANNOTATIONS.field("valence")]),
        ["happiness"],
        ["p_happiness", "arousal_sd", "ood"],
    )
    extras = schemas.with_embeddings(extras.remove(0), 512)
    new = {name: schemas.CELLS.field(name) for name in schemas.CELLS.names}
    tables = (
        ("annotations", "raysers annotate: one row per clip.", schemas.ANNOTATIONS),
        ("annotations, by model", "What some models add, and `--embeddings`.", extras),
        ("timelines", "raysers annotate of tables with speaker turns: one row per turn.", schemas.TIMELINES),
        ("speakers", "The same: one row per speaker of a file; means weigh turns by their length.",
         schemas.SPEAKERS),
        ("manifest", "raysers index, and every job over clips: what there is.", schemas.MANIFEST),
        ("labels", "Columns a manifest has besides, where they are known.", pa.schema(schemas.LABEL_FIELDS)),
        ("transcripts", "raysers transcribe: one row per clip, with the columns of annotations that are not scores and "
         "levels, `language` with `--language`, `words` with `--timestamps`, and",
         _without(pa.schema([*schemas.TRANSCRIPTS, LANGUAGE, TIMES]), schemas.ANNOTATIONS)),
        ("robustness", "raysers robustness: one row per clip and perturbation, with the columns of "
         "annotations and", _without(schemas.ROBUSTNESS, schemas.ANNOTATIONS)),
        ("fuse predict", "Also `predictions` of raysers fuse train: the columns of annotations and", _without(schemas.FUSED, schemas.ANNOTATIONS)),
        ("metrics", "raysers evaluate, train, fuse train, robustness, transcribe, probe: one value per row.", schemas.METRICS),
        ("tests", "raysers evaluate and robustness: one test of ser-tests per row.", schemas.TESTS),
        ("speech", "raysers synthesize: one row per text, voice, rate and pitch, with the columns of the manifest and",
         _without(SPEECH, schemas.MANIFEST)),
        ("sentences", "raysers probe: one row per sentence, voice and model.", SENTENCES),
        ("words", "raysers probe --data: one row per rated word.", WORDS),
        ("respoken", "raysers probe --data: one row per clip and model.", RESPOKEN),
        ("trials", "raysers tune: one row per trial, and a column `param_FLAG` for each flag of the space.",
         TRIALS),
        ("cells", "raysers study: one row per run.", pa.schema([*new.values()])),
        ("curves", "raysers study and tune: one value per row.", _without(schemas.CURVES, schemas.CELLS)),
    )  # fmt: skip
    lines = [
        "# Columns of the tables",
        "",
        "All tables are Parquet, in parts named `part-000000.parquet` and so on, below the folder of the output that "
        "has the table's name. Type, unit and meaning are also in the metadata of the Parquet fields.",
        "",
        "Arousal, dominance and valence are about 0 to 1, with .5 near neutral; a model may go slightly "
        "beyond. Rows whose `status` is not `ok` have nulls in place of scores.",
    ]
    for name, about, schema in tables:
        lines += [
            "",
            f"## {name}",
            "",
            about,
            "",
            "| column | type | unit or range | meaning | example |",
        ]
        other = ("status",) if name == "trials" else ()
        lines += ["|---|---|---|---|---|", *_rows(schema, other)]
    return "\n".join(lines) + "\n"


def _without(schema: pa.Schema, known: pa.Schema) -> pa.Schema:
    return pa.schema([field for field in schema if field.name not in known.names])


def _rows(schema: Iterable[pa.Field], other: Collection[str]) -> Iterable[str]:
    """Lines of the fields, those in `other` without an example: they mean something else here."""
    for field in schema:
        notes = {k.decode(): v.decode() for k, v in (field.metadata or {}).items()}
        kind = _TYPES.get(str(field.type), str(field.type).split("<")[0].replace("fixed_size_", ""))
        example = "" if field.name in other else EXAMPLES.get(field.name, "")
        shown = f"`{example}`" if example else ""
        yield f"| `{field.name}` | {kind} | {notes.get('unit', '')} | {_plain(notes['meaning'])} | {shown} |"


def _plain(text: str) -> str:
    return text.replace("<", "&lt;").replace(">", "&gt;")


PAGES = {"cli.md": cli_page, "schema.md": schema_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())
        print(f"docs: {DOCS / name}", file=sys.stderr)
