"""Arrow schemas of every table; units and meaning live in the field metadata.

The first columns are audformat's (`file`, `start`, `end`), so any table opens there as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from raysers.types import DIMENSIONS


def _field(name: str, kind: pa.DataType, meaning: str, unit: str = "") -> pa.Field:
    metadata = {"meaning": meaning} | ({"unit": unit} if unit else {})
    return pa.field(name, kind, metadata=metadata)


_DURATION = pa.duration("ns")

#: Identity of a clip; the first columns of every clip table, in results with the times in seconds.
_IDENTITY = (
    _field("file", pa.string(), "path or URI; a tar member is <tar URI>#<member>"),
    _field("start", _DURATION, "start of the clip in the file", "ns"),
    _field("end", _DURATION, "end of the clip in the file; null: end of file", "ns"),
    _field("clip_id", pa.string(), "stable hash of file, start and end"),
)

CLIP_FIELDS = (
    *_IDENTITY,
    _field("start_s", pa.float64(), "start, for readers without durations", "s"),
    _field("end_s", pa.float64(), "end, for readers without durations", "s"),
)

_STATUS_FIELDS = (
    _field("status", pa.string(), "ok, or why the clip has no scores"),
    _field("error", pa.string(), "what went wrong; empty when ok"),
)

#: Optional label and speaker columns a manifest carries when they are known.
LABEL_FIELDS = (
    _field("speaker", pa.string(), "speaker identity"),
    _field("sex", pa.string(), "female or male as given by the corpus"),
    _field("language", pa.string(), "language of the clip"),
    _field("split", pa.string(), "train, dev, test or test1, test2, test3"),
    _field("transcript", pa.string(), "text of the speech"),
    _field("emotion", pa.string(), "categorical label of the corpus"),
    _field("corpus", pa.string(), "name of the corpus the clip belongs to"),
    _field("session", pa.string(), "session, video or podcast; its clips stay in one split"),
    *(_field(name, pa.float32(), f"{name} label", "0..1") for name in DIMENSIONS),
)

#: Channel that a clip is of; only in tables of runs that do not take the mean of all.
CHANNEL = _field("channel", pa.int32(), "channel of the file, from 1; null: the mean of all")

MANIFEST = pa.schema(
    [
        *_IDENTITY,
        _field("duration_s", pa.float64(), "length of the clip; null: header unreadable", "s"),
        _field("sample_rate_hz", pa.int32(), "sample rate of the file", "Hz"),
        _field("channels", pa.int32(), "channels of the file"),
        _field("codec", pa.string(), "container/encoding as libsndfile names them"),
        _field("num_bytes", pa.int64(), "size of the file or tar member", "bytes"),
        _field("etag", pa.string(), "the store's version mark; empty when it has none"),
        *_STATUS_FIELDS,
        _field("byte_offset", pa.int64(), "tar member: offset of its data in the tar", "bytes"),
        _field("byte_size", pa.int64(), "tar member: size of its data", "bytes"),
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
            _field(
                name, pa.float32(), f"predicted {name}; null: failed or not trained", "about 0..1"
            )
            for name in DIMENSIONS
        ),
        _field("duration_s", pa.float64(), "length of the decoded clip", "s"),
        _field("rms_db", pa.float32(), "level of the decoded clip", "dB re full scale"),
        _field("clipped_ratio", pa.float32(), "share of samples at full scale", "0..1"),
        _field("model", pa.string(), "model name or path"),
        _field("model_revision", pa.string(), "commit or content hash of the model"),
        _field("run_id", pa.string(), "run that wrote the row"),
        _field("created_at", pa.timestamp("us", tz="UTC"), "when the row was made"),
    ]
)


def with_outputs(schema: pa.Schema, categories: Sequence[str], numbers: Sequence[str]) -> pa.Schema:
    """`schema` with a model's other outputs, after arousal, dominance and valence.

    Args:
        schema: `ANNOTATIONS` or a schema built on it.
        categories: emotions of the model; none: no column `emotion`.
        numbers: columns of numbers: `p_*`, `*_sd`, `ood`.
    """
    fields = [_field("emotion", pa.string(), "most probable category")] if categories else []
    for name in numbers:
        if name.startswith("p_"):
            meaning, unit = f"probability of {name.removeprefix('p_')}", "0..1"
        elif name == "ood":
            meaning, unit = "distance from the training speech; above .5: farther than 99 %", "0..1"
        else:
            meaning, unit = f"standard deviation of the error of {name.removesuffix('_sd')}", ""
        fields.append(_field(name, pa.float32(), meaning, unit))
    for place, field in enumerate(fields, schema.get_field_index(DIMENSIONS[-1]) + 1):
        schema = schema.insert(place, field)
    return schema


#: Results of an evaluation, one value a row.
METRICS = pa.schema(
    [
        _field("model", pa.string(), "model the value is about"),
        _field("dataset", pa.string(), "corpus of the clips"),
        _field("split", pa.string(), "split of the corpus; all: the whole corpus"),
        _field("group", pa.string(), "column the clips are grouped by; empty: all clips"),
        _field("group_value", pa.string(), "value of that column; of model: the other model"),
        _field(
            "dimension",
            pa.string(),
            "arousal, dominance, valence; mean: over several; emotion: the categories",
        ),
        _field("metric", pa.string(), "name of the metric"),
        _field("value", pa.float64(), "its value; null: undefined"),
        _field("ci_low", pa.float64(), "lower end of the 95 % interval; null: none"),
        _field("ci_high", pa.float64(), "upper end of the 95 % interval; null: none"),
        _field("n", pa.int64(), "clips (for rank correlations: speakers) the value is from"),
        _field("speakers", pa.int64(), "known speakers of these clips; 0: none is known"),
        _field("trained_on", pa.int64(), "those of these clips that the model was trained on"),
        _field("paper", pa.float64(), "the value in Wagner et al. 2022; null: none there"),
        _field("run_id", pa.string(), "run that wrote the row"),
    ]
)


#: Tests of ser-tests on a model's predictions, one score a row.
TESTS = pa.schema(
    [
        _field("model", pa.string(), "model the test is of"),
        _field("dataset", pa.string(), "corpus of the clips"),
        _field("split", pa.string(), "split of the corpus; all: the whole corpus"),
        _field("dimension", pa.string(), "arousal, dominance, valence; emotion: the categories"),
        _field("test", pa.string(), "name of the test in ser-tests"),
        _field("metric", pa.string(), "score of the test"),
        _field("subject", pa.string(), "group, bin, emotion or perturbation; empty: all clips"),
        _field("value", pa.float64(), "score, rounded as ser-tests does"),
        _field("rule", pa.string(), "how it is compared: >, < or abs <"),
        _field("threshold", pa.float64(), "threshold of the comparison"),
        _field("passed", pa.bool_(), "whether the score is beyond the threshold"),
        _field("n", pa.int64(), "clips (by speaker: speakers) behind the score"),
        _field("published", pa.float64(), "ser-tests' result of the same model on the same data"),
        _field("run_id", pa.string(), "run that wrote the row"),
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
        _field("perturbation", pa.string(), "perturbation of the clip; clean: none"),
        _field("parameters", pa.string(), "its random parameters, as JSON"),
        *list(ANNOTATIONS)[len(CLIP_FIELDS) :],
    ]
)


def _named(names: str, schema: pa.Schema = ANNOTATIONS) -> tuple[pa.Field, ...]:
    return tuple(schema.field(name) for name in names.split())


_MAKER_FIELDS = _named("model model_revision run_id created_at")

#: The text of every clip.
TRANSCRIPTS = pa.schema(
    [
        *CLIP_FIELDS,
        *_STATUS_FIELDS,
        _field("text", pa.string(), "recognised text; empty: no speech"),
        *_MAKER_FIELDS,
    ]
)

#: Scores from audio and text together, and of heads that use only one of them.
FUSED = pa.schema(
    [
        *ANNOTATIONS,
        _field("text", pa.string(), "text that the text scores are from"),
        _field("asr_model", pa.string(), "model of the transcripts; manifest: they were given"),
        _field("text_model", pa.string(), "encoder of the text"),
        *(
            _field(f"{name}_{source}", pa.float32(), f"predicted {name} from {what} only", "0..1")
            for source, what in (("audio", "audio"), ("text", "text"))
            for name in DIMENSIONS
        ),
    ]
)

#: Runs of a study, one a row, in the order of the study file.
CELLS = pa.schema(
    [
        _field("study", pa.string(), "name of the study"),
        _field("cell", pa.string(), "name of the cell, its folder under cells/"),
        _field("kind", pa.string(), "train, or the job that analyses a trained model"),
        _field("model", pa.string(), "name of the backbone"),
        _field("factor", pa.string(), "what the study varies"),
        _field("factor_value", pa.string(), "its value in this cell"),
        _field("seed", pa.int64(), "seed of the cell"),
        _field("status", pa.string(), "done, failed or waiting"),
        _field("error", pa.string(), "what went wrong; empty when it did not"),
        _field("path", pa.string(), "the cell's output, relative to the study's"),
        _field("wall_s", pa.float64(), "wall time of the cell", "s"),
        _field("audio_s", pa.float64(), "audio that went through the model", "s"),
        _field("workers", pa.int64(), "workers of the cell"),
        _field("device", pa.string(), "what they ran on"),
        _field("run_id", pa.string(), "run of the study that made the cell"),
    ]
)

#: All figures of a study: the metrics table with the cell each value is of.
STUDY_METRICS = pa.schema([*_named("study cell factor factor_value seed", CELLS), *METRICS])

#: Learning curves of a study's cells, one value a row.
CURVES = pa.schema(
    [
        *_named("study cell model factor factor_value seed", CELLS),
        _field("epoch", pa.int64(), "passes over the training clips so far"),
        _field("step", pa.int64(), "steps so far; null: not recorded"),
        _field("dimension", pa.string(), "arousal, dominance, valence; mean: over several"),
        _field("ccc", pa.float64(), "CCC over the whole dev set"),
    ]
)
