"""Arrow schemas of every table; units and meaning live in the field metadata.

The first columns are audformat's (`file`, `start`, `end`), so any table opens there as well.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import pyarrow as pa

from raysers.types import DIMENSIONS


def _field(name: str, kind: pa.DataType, meaning: str, unit: str = "") -> pa.Field:
    metadata = {"meaning": meaning} | ({"unit": unit} if unit else {})
    return pa.field(name, kind, metadata=metadata)


def _of(kind: pa.DataType) -> Callable[..., pa.Field]:
    return lambda name, meaning, unit="": _field(name, kind, meaning, unit)


_text, _i32, _i64 = map(_of, (pa.string(), pa.int32(), pa.int64()))
_f32, _f64 = map(_of, (pa.float32(), pa.float64()))
_DURATION = pa.duration("ns")

#: Identity of a clip; the first columns of every clip table, in results with the times in seconds.
_IDENTITY = (
    _text("file", "path or URI; a tar member is <tar URI>#<member>"),
    _field("start", _DURATION, "start of the clip in the file", "ns"),
    _field("end", _DURATION, "end of the clip in the file; null: end of file", "ns"),
    _text("clip_id", "stable hash of file, start and end"),
)

CLIP_FIELDS = (
    *_IDENTITY,
    _f64("start_s", "start, for readers without durations", "s"),
    _f64("end_s", "end, for readers without durations", "s"),
)

_STATUS_FIELDS = (
    _text("status", "ok, or why the clip has no scores"),
    _text("error", "what went wrong; empty when ok"),
)

#: Optional label and speaker columns a manifest carries when they are known.
LABEL_FIELDS = (
    _text("speaker", "speaker identity"),
    _text("sex", "female or male as given by the corpus"),
    _text("language", "language of the clip"),
    _text("split", "train, dev, test or test1, test2, test3"),
    _text("transcript", "text of the speech"),
    _text("emotion", "categorical label of the corpus"),
    _text("corpus", "name of the corpus the clip belongs to"),
    _text("session", "session, video or podcast; its clips stay in one split"),
    *(_f32(name, f"{name} label", "0..1") for name in DIMENSIONS),
)

#: Channel that a clip is of; only in tables of runs that do not take the mean of all.
CHANNEL = _i32("channel", "channel of the file, from 1; null: the mean of all")
#: Audio stream that a clip is of; only in tables of runs or inputs that name one.
AUDIO_STREAM = _i32("audio_stream", "audio stream of the file, from 0; null: the first")
#: What else than a span a clip may be of.
PARTS_OF_FILE = (CHANNEL, AUDIO_STREAM)


def parts_of_file(names: Collection[str]) -> list[str]:
    """Columns of `PARTS_OF_FILE` that are among these names."""
    return [field.name for field in PARTS_OF_FILE if field.name in names]


MANIFEST = pa.schema(
    [
        *_IDENTITY,
        _f64("duration_s", "length of the clip; null: header unreadable", "s"),
        _i32("sample_rate_hz", "sample rate of the file", "Hz"),
        _i32("channels", "channels of the file"),
        _text("codec", "container/encoding as libsndfile names them"),
        _i64("num_bytes", "size of the file or tar member", "bytes"),
        _text("etag", "the store's version mark; empty when it has none"),
        *_STATUS_FIELDS,
        _i64("byte_offset", "tar member: offset of its data in the tar", "bytes"),
        _i64("byte_size", "tar member: size of its data", "bytes"),
    ]
)

#: A listed input, before headers are read: one row per audio object or table row.
OBJECTS = pa.schema(
    [
        *_IDENTITY[:3],
        *(MANIFEST.field(n) for n in ("num_bytes", "etag", "byte_offset", "byte_size")),
    ]
)

ANNOTATIONS = pa.schema(
    [
        *CLIP_FIELDS,
        *_STATUS_FIELDS,
        *(
            _f32(name, f"predicted {name}; null: failed or not trained", "about 0..1")
            for name in DIMENSIONS
        ),
        _f64("duration_s", "length of the decoded clip", "s"),
        _f32("rms_db", "level of the decoded clip", "dB re full scale"),
        _f32("clipped_ratio", "share of samples at full scale", "0..1"),
        _text("model", "model name or path"),
        _text("model_revision", "commit or content hash of the model"),
        _text("run_id", "run that wrote the row"),
        _field("created_at", pa.timestamp("us", tz="UTC"), "when the row was made"),
    ]
)


def with_outputs(schema: pa.Schema, categories: Sequence[str], numbers: Sequence[str]) -> pa.Schema:
    """`schema` with a model's other outputs, after arousal, dominance and valence.

    `categories` are emotions (none: no column `emotion`), `numbers` columns `p_*`, `*_sd`, `ood`.
    """
    fields = [_text("emotion", "most probable category")] if categories else []
    for name in numbers:
        if name.startswith("p_"):
            meaning, unit = f"probability of {name.removeprefix('p_')}", "0..1"
        elif name == "ood":
            meaning, unit = "distance from the training speech; above .5: farther than 99 %", "0..1"
        else:
            meaning, unit = f"standard deviation of the error of {name.removesuffix('_sd')}", ""
        fields.append(_f32(name, meaning, unit))
    for place, field in enumerate(fields, schema.get_field_index(DIMENSIONS[-1]) + 1):
        schema = schema.insert(place, field)
    return schema


#: Results of an evaluation, one value a row.
METRICS = pa.schema(
    [
        _text("model", "model the value is about"),
        _text("dataset", "corpus of the clips"),
        _text("split", "split of the corpus; all: the whole corpus"),
        _text("group", "column the clips are grouped by; empty: all clips"),
        _text("group_value", "value of that column; of model: the other model"),
        _text(
            "dimension", "arousal, dominance, valence; mean: over several; emotion: the categories"
        ),
        _text("metric", "name of the metric"),
        _f64("value", "its value; null: undefined"),
        _f64("ci_low", "lower end of the 95 % interval; null: none"),
        _f64("ci_high", "upper end of the 95 % interval; null: none"),
        _i64("n", "clips (for rank correlations: speakers) the value is from"),
        _i64("speakers", "known speakers of these clips; 0: none is known"),
        _i64("trained_on", "those of these clips that the model was trained on"),
        _f64("paper", "the value in Wagner et al. 2022; null: none there"),
        _text("run_id", "run that wrote the row"),
    ]
)


#: Tests of ser-tests on a model's predictions, one score a row.
TESTS = pa.schema(
    [
        _text("model", "model the test is of"),
        _text("dataset", "corpus of the clips"),
        _text("split", "split of the corpus; all: the whole corpus"),
        _text("dimension", "arousal, dominance, valence; emotion: the categories"),
        _text("test", "name of the test in ser-tests"),
        _text("metric", "score of the test"),
        _text("subject", "group, bin, emotion or perturbation; empty: all clips"),
        _f64("value", "score, rounded as ser-tests does"),
        _text("rule", "how it is compared: >, < or abs <"),
        _f64("threshold", "threshold of the comparison"),
        _field("passed", pa.bool_(), "whether the score is beyond the threshold"),
        _i64("n", "clips (by speaker: speakers) behind the score"),
        _f64("published", "ser-tests' result of the same model on the same data"),
        _text("run_id", "run that wrote the row"),
    ]
)


def with_embeddings(schema: pa.Schema, size: int) -> pa.Schema:
    """`schema` with an `embedding` column: masked mean of the last layer, `size` floats."""
    kind = pa.list_(pa.float32(), size)
    return schema.append(_field("embedding", kind, "masked mean of the last hidden layer"))


#: Scores of every clip and its changed versions; the key is `clip_id` and `perturbation`.
ROBUSTNESS = pa.schema(
    [
        *CLIP_FIELDS,
        _text("perturbation", "perturbation of the clip; clean: none"),
        _text("parameters", "its random parameters, as JSON"),
        *list(ANNOTATIONS)[len(CLIP_FIELDS) :],
    ]
)


def _named(names: str, schema: pa.Schema = ANNOTATIONS) -> tuple[pa.Field, ...]:
    return tuple(schema.field(name) for name in names.split())


_MAKER_FIELDS = _named("model model_revision run_id created_at")

#: A speaker turn a row, by file, speaker and start.
TIMELINES = pa.schema(
    [
        *CLIP_FIELDS[:1],
        *LABEL_FIELDS[:1],
        *CLIP_FIELDS[1:],
        *_named("status arousal dominance valence duration_s", ANNOTATIONS),
    ]
)

#: A speaker of a file a row; means weigh each turn by its length.
SPEAKERS = pa.schema(
    [
        *CLIP_FIELDS[:1],
        *LABEL_FIELDS[:1],
        _i64("turns", "turns with scores"),
        _f64("speech_s", "their length", "s"),
        *_named("arousal dominance valence", ANNOTATIONS),
    ]
)

#: The text of every clip.
TRANSCRIPTS = pa.schema(
    [
        *CLIP_FIELDS,
        *_STATUS_FIELDS,
        _text("text", "recognised text; empty: no speech"),
        *_MAKER_FIELDS,
    ]
)

#: Scores from audio and text together, and of heads that use only one of them.
FUSED = pa.schema(
    [
        *ANNOTATIONS,
        _text("text", "text that the text scores are from"),
        _text("asr_model", "model of the transcripts; manifest: they were given"),
        _text("text_model", "encoder of the text"),
        *(
            _f32(f"{name}_{source}", f"predicted {name} from {what} only", "0..1")
            for source, what in (("audio", "audio"), ("text", "text"))
            for name in DIMENSIONS
        ),
    ]
)

#: Runs of a study, one a row, in the order of the study file.
CELLS = pa.schema(
    [
        _text("study", "name of the study"),
        _text("cell", "name of the cell, its folder under cells/"),
        _text("kind", "train, or the job that analyses a trained model"),
        _text("model", "name of the backbone"),
        _text("factor", "what the study varies"),
        _text("factor_value", "its value in this cell"),
        _i64("seed", "seed of the cell"),
        _text("status", "done, failed or waiting"),
        _text("error", "what went wrong; empty when it did not"),
        _text("path", "the cell's output, relative to the study's"),
        _f64("wall_s", "wall time of the cell", "s"),
        _f64("audio_s", "audio that went through the model", "s"),
        _i64("workers", "workers of the cell"),
        _text("device", "what they ran on"),
        _text("run_id", "run of the study that made the cell"),
    ]
)

#: All figures of a study: the metrics table with the cell each value is of.
STUDY_METRICS = pa.schema([*_named("study cell factor factor_value seed", CELLS), *METRICS])

#: Learning curves of a study's cells, one value a row.
CURVES = pa.schema(
    [
        *_named("study cell model factor factor_value seed", CELLS),
        _i64("epoch", "passes over the training clips so far"),
        _i64("step", "steps so far; null: not recorded"),
        _text("dimension", "arousal, dominance, valence; mean: over several"),
        _f64("ccc", "CCC over the whole dev set"),
    ]
)
