"""Flags of an evaluation, apart from what it runs, which takes a second to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from raysers.cli import Models, Output, Uris, as_plain
from raysers.errors import ConfigError

#: Flags that change nothing in the rows.
_NOT_DECIDING = ("output", "workers", "max_failed")


@dataclass(frozen=True, kw_only=True)
class EvaluateFlags:
    """Flags of this job."""

    labels: Uris
    """Labelled clips: manifests, tables, corpus folders, audformat databases."""
    output: Output
    """Folder or s3:// prefix for the metrics."""
    predictions: Uris = ()
    """Output folders of annotate or train; each is one model's."""
    model: Models = ()
    """Models to predict with first, into OUTPUT/predictions."""
    input: Uris = ()
    """What --model predicts: audio or manifests; default: the labelled data."""
    pool: bool = False
    """The predictions are one model's: the folds of a cross-validation, each clip once."""
    by: tuple[Literal["sex", "speaker", "language", "emotion", "split", "session"], ...] = ()
    """Also measure every value of these columns by itself."""
    bootstrap: int = 1000
    """Draws behind the intervals; 0 leaves them out."""
    speaker_samples: int = 200
    """Per-speaker CCC: clips drawn of each speaker, who must have more than that."""
    in_domain: str = ""
    """Corpus the models were trained on, for the cross-corpus drop; default: msp-podcast."""
    seed: int = 0
    """Of the draws and of the random baseline."""
    corpus: str = "auto"
    """Layout of the labelled data, when it is not to be recognised by itself."""
    emotion_map: str = ""
    """Map from emotion categories to the dimensions (a name or YAML), for data without them."""
    speakers: str = ""
    """CSV with the `sex` (and mean `pitch_hz`) of every `speaker` or `video`, where not known."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of --model."""
    workers: int = 0
    """Model workers for --model; 0 uses every GPU, or every CPU when there is none."""
    max_failed: float = 0.05
    """Highest share of failed predictions before the job ends with exit code 3."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        samples, failed = self.speaker_samples, self.max_failed
        for good, message in (
            (self.labels, "--labels is empty: give labelled clips"),
            (self.output, "--output is empty: give a folder or an s3:// prefix"),
            (
                self.predictions or self.model,
                "nothing to evaluate: give --predictions FOLDER or --model MODEL",
            ),
            (
                self.model or not self.input,
                "--input is what --model predicts: give --model, or drop it",
            ),
            (
                not self.pool or len(self.predictions) + len(self.model) > 1,
                "--pool puts several predictions together: give more than one",
            ),
            (self.bootstrap >= 0, f"--bootstrap is {self.bootstrap}: give 0 (none) or more draws"),
            (samples >= 2, f"--speaker-samples is {samples}: give at least 2 clips"),
            (self.workers >= 0, f"--workers is {self.workers}: give 0 (automatic) or more"),
            (0 <= failed <= 1, f"--max-failed is {failed}: give a share from 0 to 1"),
        ):
            if not good:
                raise ConfigError(message)

    @property
    def settings(self) -> dict[str, Any]:
        """The flags that decide the rows."""
        return {k: v for k, v in as_plain(self).items() if k not in _NOT_DECIDING}

    @property
    def how_labelled(self) -> dict[str, Any]:
        """How the labels are read."""
        names = ("corpus", "emotion_map", "speakers")
        return {"flag": "--labels", **{name: getattr(self, name) for name in names}}
