"""The transcription task: what was said in every clip.

The driver loads the recogniser once to check it before anything is written; every worker loads it
again, pinned to the revision that was checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import pyarrow as pa

from raysers.annotation import require_revision, settled_dtype
from raysers.engine.plan import Placement
from raysers.engine.worker import ClipTask, Signal
from raysers.errors import ClipError
from raysers.io import storage
from raysers.models.asr import Recogniser, is_moonshine, load_asr, parse_asr_name
from raysers.run import RunRecord
from raysers.schemas import ANNOTATIONS, TRANSCRIPTS


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscribeTask(ClipTask):
    """Settings of a transcription, checked against the recogniser itself.

    Attributes:
        asr: name, hub id, folder or URI, as written into every row.
        load_from: the same, pinned to the revision that was checked.
        revision: commit or content hash the texts come from.
        dtype: `auto` until `placed` settles it for all workers.
        max_padded_s: padded seconds per forward; 0 chooses for the device.
        device: `cpu` or `cuda`, from `placed`.
        threads: compute threads per worker.
    """

    table: ClassVar[str] = "transcripts"

    asr: str
    load_from: str
    revision: str
    dtype: str
    max_padded_s: float
    device: str = "cpu"
    threads: int = 1

    @classmethod
    def load(cls, asr: str, *, dtype: str, max_padded_s: float) -> TranscribeTask:
        """Load and check the recogniser here, before anything is written.

        Raises:
            ConfigError: unknown name, or a precision it does not compute in.
            CheckpointError: a folder whose transcripts cannot be trusted.
        """
        pinned = False
        if not is_moonshine(asr):
            name = parse_asr_name(asr)
            pinned = name.hub_id is not None
            asr = asr if pinned else storage.absolute(asr)  # workers have folders of their own
        # fp16 is for the workers' GPUs, which this process need not have; moonshine never takes it
        checked_in = "auto" if dtype == "fp16" and not is_moonshine(asr) else dtype
        loaded = load_asr(storage.fetch_folder(asr, "--asr"), dtype=checked_in, threads=1)
        return cls(
            asr=asr,
            load_from=f"{asr.partition('@')[0]}@{loaded.revision}" if pinned else asr,
            revision=loaded.revision,
            dtype=dtype,
            max_padded_s=max_padded_s,
        )

    @property
    def schema(self) -> pa.Schema:
        """Columns of the output."""
        # how long a clip is, because progress and speed are counted from the finished rows
        return TRANSCRIPTS.append(ANNOTATIONS.field("duration_s"))

    @property
    def settings(self) -> dict[str, Any]:
        """What of this decides the rows."""
        return {"asr": self.asr, "asr_revision": self.revision, "dtype": self.dtype}

    @property
    def uses_gpus(self) -> bool:
        """Moonshine computes on CPUs only."""
        return not is_moonshine(self.asr)

    def placed(self, placement: Placement, earlier: RunRecord | None) -> Self:
        """See `ClipTask.placed`."""
        settled = replace(self, device=placement.device, threads=placement.threads)
        if is_moonshine(self.asr):
            return settled
        return replace(settled, dtype=settled_dtype(self.dtype, placement, earlier))

    def open(self) -> Transcriber:
        """Load the recogniser on this worker's device."""
        return Transcriber(self)


class Transcriber:
    """A loaded recogniser on one device, turning micro-batches into rows' columns."""

    def __init__(self, task: TranscribeTask) -> None:
        loaded = load_asr(
            storage.fetch_folder(task.load_from, "--asr"),
            device=task.device,
            dtype=task.dtype,
            threads=task.threads,
        )
        require_revision(task.asr, task.revision, loaded.revision)
        if task.max_padded_s:
            loaded.max_padded_s = task.max_padded_s
        self.recogniser: Recogniser = loaded
        self.max_padded_s = loaded.max_padded_s
        self.provenance: Mapping[str, Any] = {
            "model": task.asr,
            "model_revision": task.revision,
        }

    def score(
        self, signals: Sequence[Signal], transcripts: Sequence[str | None] = ()
    ) -> list[dict[str, Any] | ClipError]:
        """See `ClipModel.score`; transcripts of the manifest are not used."""
        return [
            text if isinstance(text, ClipError) else {"text": text}
            for text in self.recogniser.transcribe(signals)
        ]
