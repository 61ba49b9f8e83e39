"""The transcription task, and the word errors of its texts against known transcripts.

The driver loads the recogniser once to check it before anything is written; workers load it again,
pinned to the revision that was checked. Error rates are counted over all clips of a subset
(errors / words said), never as a mean of clips' rates, on plain words (`plain_words`); numbers in
digits, abbreviations and spelling stay, so "Mr." for "mister" and "3" for "three" are errors.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, ClassVar, Self

import jiwer
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysers.annotation import require_revision
from raysers.display import one_line
from raysers.engine import output as parts
from raysers.engine.job import ClipJob
from raysers.engine.placement import Placement, settled_dtype
from raysers.engine.worker import ClipTask, Signal
from raysers.errors import ClipError
from raysers.evaluation.bootstrap import Bootstrap, drawn_counts, interval
from raysers.evaluation.rows import METRICS_PART, NAN, Row, print_table, row_of, to_table
from raysers.evaluation.scores import Floats, Scores, Subset, base_subsets, group_subsets
from raysers.io import storage
from raysers.models.asr import Recogniser, load_asr, parse_asr_name
from raysers.models.speech import MOONSHINE, pauses_by
from raysers.run import RunRecord
from raysers.schemas import ANNOTATIONS, METRICS, TRANSCRIPTS
from raysers.types import DIMENSIONS, Status
from raysers.words.ratings import plain_character

#: Columns whose values get rows of their own where there are several.
GROUPS = ("language", "sex")
#: Columns of the counts of a clip.
_WORDS, _SUBSTITUTED, _DELETED, _INSERTED, _CHARACTERS, _CHARACTER_ERRORS = range(6)
_MOST_LINES = 24
_WORD = pa.struct([("word", pa.string()), ("start_s", pa.float32()), ("end_s", pa.float32())])
#: Columns beside `TRANSCRIPTS`, with --language and with --timestamps.
LANGUAGE = pa.field("language", pa.string(), metadata={"meaning": "language recognised in"})
TIMES = pa.field("words", pa.list_(_WORD), metadata={"meaning": "words with their times"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscribeTask(ClipTask):
    """Settings of a transcription, checked against the recogniser itself.

    `asr` is written into every row; `load_from` is the same, pinned to the `revision` that was
    checked. `dtype` is `auto` until `placed` settles it; `max_padded_s` 0 chooses for the device.
    `language` is of all clips, `auto` for that of each clip, empty for the model's own rules.
    """

    table: ClassVar[str] = "transcripts"

    asr: str
    load_from: str
    revision: str
    dtype: str
    max_padded_s: float
    language: str = ""
    timestamps: bool = False
    device: str = "cpu"
    threads: int = 1

    @classmethod
    def load(cls, asr: str, *, dtype: str, max_padded_s: float, **how: Any) -> TranscribeTask:
        """Load and check the recogniser here, before anything is written; `how`: other fields.

        Raises ConfigError: unknown name, or a precision, language or times it does not have.
        CheckpointError: a folder whose transcripts cannot be trusted.
        """
        pinned = asr != MOONSHINE and parse_asr_name(asr).hub_id is not None
        if not pinned and asr != MOONSHINE:
            asr = storage.absolute(asr)  # workers have working folders of their own
        # fp16 is for the workers' GPUs, which this process need not have; moonshine never takes it
        checked_in = "auto" if dtype == "fp16" and asr != MOONSHINE else dtype
        place = storage.fetch_folder(asr, "--asr")
        revision = load_asr(place, dtype=checked_in, threads=1, **how).revision
        return cls(
            asr=asr,
            load_from=f"{asr.partition('@')[0]}@{revision}" if pinned else asr,
            revision=revision,
            dtype=dtype,
            max_padded_s=max_padded_s,
            **how,
        )

    @property
    def schema(self) -> pa.Schema:
        """Columns of the output."""
        # how long a clip is, because progress and speed are counted from the finished rows
        fields = [*TRANSCRIPTS, ANNOTATIONS.field("duration_s")]
        return pa.schema(fields + [LANGUAGE] * bool(self.language) + [TIMES] * self.timestamps)

    @property
    def settings(self) -> dict[str, Any]:
        """What of this decides the rows."""
        own = {"asr": self.asr, "asr_revision": self.revision, "dtype": self.dtype}
        own["pauses"] = pauses_by()  # where long clips are cut
        optional = {"language": self.language, "timestamps": self.timestamps}
        return own | {name: value for name, value in optional.items() if value}

    @property
    def uses_gpus(self) -> bool:
        """Moonshine, the recogniser that comes as a package, computes on CPUs only."""
        return self.asr != MOONSHINE

    def placed(self, placement: Placement, earlier: RunRecord | None) -> Self:
        """See `ClipTask.placed`."""
        settled = replace(self, device=placement.device, threads=placement.threads)
        if self.asr == MOONSHINE:
            return settled
        return replace(settled, dtype=settled_dtype(self.dtype, placement, earlier))

    def open(self) -> Transcriber:
        """Load the recogniser on this worker's device."""
        return Transcriber(self)


class Transcriber:
    """A loaded recogniser on one device, turning micro-batches into rows' columns."""

    def __init__(self, task: TranscribeTask) -> None:
        self._recogniser: Recogniser = load_asr(
            storage.fetch_folder(task.load_from, "--asr"),
            device=task.device,
            dtype=task.dtype,
            threads=task.threads,
            language=task.language,
            timestamps=task.timestamps,
        )
        require_revision(task.asr, task.revision, self._recogniser.revision)
        if task.max_padded_s:
            self._recogniser.max_padded_s = task.max_padded_s
        self.max_padded_s = self._recogniser.max_padded_s
        self.provenance: Mapping[str, Any] = {"model": task.asr, "model_revision": task.revision}

    def score(
        self, signals: Sequence[Signal], transcripts: Sequence[str | None] = ()
    ) -> list[dict[str, Any] | ClipError]:
        """See `ClipModel.score`; transcripts of the manifest are not used."""
        return self._recogniser.transcribe(signals)


def score_words(job: ClipJob, bootstrap: Bootstrap) -> tuple[list[Row], list[str]] | None:
    """Rows of word errors of a finished run, and notes; None without transcripts in its manifest.

    The metrics table is written and the rates are added to `run.json`. Raises RaysersError: rows or
    record are gone. WriteError: the table cannot be written.
    """
    manifest = job.plan.manifest
    if "transcript" not in manifest.column_names:
        return None
    known = manifest.filter(pc.is_valid(manifest["transcript"]))
    if not known.num_rows:
        return None
    record = job.run.record
    assert record is not None, "score before execute"
    rows = job.rows(["clip_id", "status", "text"])
    good = rows.filter(pc.equal(rows["status"], str(Status.OK)))
    texts = dict(zip(good["clip_id"].to_pylist(), good["text"].to_pylist(), strict=True))
    ids, said = known["clip_id"].to_pylist(), known["transcript"].to_pylist()
    recognised = [texts.get(clip) for clip in ids]
    columns = {
        name: known[name].to_pylist()
        for name in ("corpus", "split", "speaker", *GROUPS)
        if name in known.column_names
    }
    model = str(record.settings["asr"])
    found = word_error_rows(model, ids, said, recognised, columns, bootstrap)
    metrics = storage.join(job.run.output, METRICS_PART)
    parts.write_part(metrics, to_table(found, record.run_id))
    job.write_header(metrics=METRICS)
    outcome = {**(record.outcome or {}), "word_errors": overall(found)}
    job.run.finish(record.status, outcome)
    return found, list(_notes(said, recognised, columns))


def _notes(
    said: Sequence[str], recognised: Sequence[str | None], columns: Mapping[str, Sequence[Any]]
) -> Iterator[str]:
    if lost := sum(text is None for text in recognised):
        yield f"{lost:,} clips with a transcript were not recognised and do not count"
    if silent := sum(not text.strip() for text in said):
        yield f"{silent:,} clips have an empty transcript: every word recognised there is an error"
    if len({name for name in columns.get("speaker", ()) if name}) < 2:
        yield (
            "fewer than two speakers are known, so clips were resampled and the intervals may be "
            "too narrow"
        )


def plain_words(text: str) -> list[str]:
    """The words of a text as they are compared.

    Unicode compatibility forms become one (NFKC), case goes (case folding: `ß` is `ss`), every
    kind of apostrophe is `'` and stays inside words only, invisible marks of direction and joining
    vanish, and whatever is no letter, mark or digit separates words, hyphens too. A script
    without spaces is one word between two punctuation marks: look at its character error rate.

    >>> plain_words("“Don’t” – cold-hearted, Mr. 3!")
    ["don't", 'cold', 'hearted', 'mr', '3']
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words = "".join(map(plain_character, folded)).replace("-", " ").split()
    return [word for word in (w.strip("'") for w in words) if word]


def count_errors(said: str, recognised: str) -> tuple[int, int, int, int, int, int]:
    """Words said, substituted, deleted, inserted; characters said, character errors (Levenshtein).

    Characters are those of the plain words with single blanks between them. Where nothing was
    said, every recognised word is inserted.
    """
    truth, found = plain_words(said), plain_words(recognised)
    if not truth or not found:
        letters = len(" ".join(truth)), len(" ".join(truth or found))
        return len(truth), 0, len(truth), len(found) if not truth else 0, *letters
    words = jiwer.process_words(" ".join(truth), " ".join(found))
    letter = jiwer.process_characters(" ".join(truth), " ".join(found))
    wrong = letter.substitutions + letter.deletions + letter.insertions
    said_letters = letter.hits + letter.substitutions + letter.deletions
    kinds = words.substitutions, words.deletions, words.insertions
    return len(truth), *kinds, said_letters, wrong


def word_error_rows(
    model: str,
    clip_id: Sequence[str],
    said: Sequence[str],
    recognised: Sequence[str | None],
    columns: Mapping[str, Sequence[str | None]],
    bootstrap: Bootstrap,
) -> list[Row]:
    """Rows of the metrics table: `wer`, `cer`, what the word errors are made of, and `words` said.

    `substitutions`, `deletions` and `insertions` are shares of the words said and add up to `wer`.
    Intervals resample speakers, or clips where speakers are unknown. Dimension is empty. Subsets:
    every dataset and split, their languages and sexes, and all datasets together.

    `recognised` is None where recognition failed, so the clip does not count; `columns` are what
    else is known (`corpus`, `split`, `speaker`, `language`, `sex`), all [n].
    """
    # as the other evaluations have them: a clip counts where its text was recognised
    there = np.array([text is not None for text in recognised], bool)
    zeros = np.zeros((len(clip_id), len(DIMENSIONS)))
    predictions = {model: np.where(there[:, None], zeros, np.nan)}
    scores = Scores(clip_id=clip_id, truth=zeros, predictions=predictions, columns=columns)
    counts = np.array(
        [count_errors(s, r or "") for s, r in zip(said, recognised, strict=True)], np.float64
    ).reshape(-1, 6)
    cells = base_subsets(scores)
    if len({cell.dataset for cell in cells}) > 1:
        cells.append(Subset(dataset="all", split="all", rows=np.flatnonzero(there)))
    groups = [
        part
        for cell in cells
        for name in GROUPS
        if len(found := list(group_subsets(scores, cell, name))) > 1
        for part in found
    ]
    return [
        row
        for cell in [*cells, *groups]
        for row in _cell_rows(model, scores, counts[cell.rows], cell, bootstrap)
    ]


def _cell_rows(
    model: str, scores: Scores, counts: Floats, cell: Subset, bootstrap: Bootstrap
) -> Iterator[Row]:
    sums, units = drawn_counts(scores, cell, counts, bootstrap)
    drawn = _rates(sums)
    for metric, value in _rates(counts.sum(axis=0)).items():
        bounds = interval(drawn[metric], 0 if metric == "words" else units)
        yield row_of(cell, model, metric, value, len(cell.rows), bounds)


def _rates(sums: Floats) -> dict[str, Floats]:
    """By metric, its values of sums [..., 6]; NaN where nothing was said."""
    words = sums[..., _WORDS]
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = {
            "wer": sums[..., _SUBSTITUTED : _INSERTED + 1].sum(-1) / words,
            "cer": sums[..., _CHARACTER_ERRORS] / sums[..., _CHARACTERS],
            "substitutions": sums[..., _SUBSTITUTED] / words,
            "deletions": sums[..., _DELETED] / words,
            "insertions": sums[..., _INSERTED] / words,
        }
    found = {name: np.where(words > 0, rate, np.nan) for name, rate in rates.items()}
    return {**found, "words": words}


def overall(rows: Sequence[Row]) -> dict[str, float | None]:
    """By metric, the value over all clips, and `clips`, their number; None where undefined."""
    most = max((row.n for row in rows), default=0)
    whole = {row.metric: row.value for row in rows if row.n == most and not row.group}
    values = {name: None if math.isnan(value) else round(value, 6) for name, value in whole.items()}
    return {"clips": most, **values}


def print_word_errors(rows: Sequence[Row]) -> None:
    """A line for every subset: rates in percent, with 95 % intervals where there are some."""
    heads = ("", "clips", "words", "WER", "CER", "substituted", "deleted", "inserted")
    lines = []
    cells = [
        {row.metric: row for row in group}
        for _, group in groupby(rows, lambda r: (r.dataset, r.split, r.group, r.group_value))
    ]
    for cell in cells[:_MOST_LINES]:
        row = cell["wer"]
        split = "" if row.split == "all" else row.split
        name = one_line(" ".join(filter(None, (row.dataset, split, row.group, row.group_value))))
        rates = [_percent(cell[metric]) for metric in ("wer", "cer")]
        rates += [
            _percent(replace(cell[metric], ci_low=NAN))
            for metric in ("substitutions", "deletions", "insertions")
        ]
        lines.append([name, f"{row.n:,}", f"{cell['words'].value:,.0f}", *rates])
    if len(cells) > _MOST_LINES:
        lines.append([f"{len(cells) - _MOST_LINES:,} more groups are on disk"])
    print_table("word and character errors", heads, lines)


def _percent(row: Row) -> str:
    if math.isnan(row.value):
        return "-"
    known = not math.isnan(row.ci_low)
    bounds = f" [{100 * row.ci_low:.1f}, {100 * row.ci_high:.1f}]" if known else ""
    return f"{row.value:.1%}{bounds}"
