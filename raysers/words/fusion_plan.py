"""What a fusion's training has to do, checked before anything is written.

Two folders are looked at: the output, and the one with the vectors, which may be an earlier
training's.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from raysers.data.manifest import write_manifest
from raysers.engine import cluster
from raysers.engine.cluster import Placement
from raysers.engine.plan import Plan, check_writable
from raysers.errors import ObjectMissing, RefusedError
from raysers.io import storage
from raysers.models.text import TextPooling
from raysers.run import RunRecord, load_record, new_record, refuse_other_settings
from raysers.words import fusion_data, fusion_features, fusion_task
from raysers.words.fusion_data import FusionData
from raysers.words.fusion_flags import FusePredictFlags, FuseTrainFlags, head_settings
from raysers.words.fusion_parts import (
    MANIFEST,
    check_same,
    pinned_recogniser,
    pinned_sound,
    pinned_words,
    prepare_sound,
    prepare_words,
    read_fusion,
    with_recogniser,
)
from raysers.words.fusion_task import FusionTask


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionPlan:
    """A training that can begin or go on.

    Attributes:
        task: the models and how they are run.
        data: the clips.
        features_at: folder of the vectors.
        features: what is left to do there.
        placement: workers and their resources.
        settings: everything that decides the heads.
        earlier: the record of the run that is resumed, if any.
    """

    task: FusionTask
    data: FusionData
    features_at: str
    features: Plan
    placement: Placement
    settings: Mapping[str, Any]
    earlier: RunRecord | None

    @property
    def is_done(self) -> bool:
        """Whether the output holds the finished result of this very command."""
        resumed = self.earlier is not None and self.earlier.status == "done"
        return resumed and not self.features.todo


def make(flags: FuseTrainFlags, job: str) -> FusionPlan:
    """Check models, data and both folders; connects to the cluster.

    Raises:
        ConfigError: anything the command has to change.
        RefusedError: a folder holds results of other settings.
    """
    earlier = _open_output(flags.output, job)
    features_at = fusion_features.folder(flags)
    begun = fusion_features.earlier_record(features_at)
    sound = prepare_sound(flags.model, dtype=flags.dtype, max_padded_s=flags.max_padded_s)
    # words first without a recogniser: it need not be there when every clip has a transcript
    words = prepare_words(flags.text_model, flags.text_pooling)
    cluster.connect()
    data = fusion_data.load(flags)
    needed = flags.recognise_all or len(fusion_data.without_words(data.table)) > 0
    if flags.asr == MANIFEST:
        fusion_data.require_words(data.table)
    if needed or flags.asr == MANIFEST:
        words = with_recogniser(
            words, flags.asr, dtype=flags.dtype, recognise_all=flags.recognise_all
        )
    placement = cluster.place(flags.workers)
    task = fusion_task.placed(FusionTask(sound=sound, words=words), placement, begun)
    vectors = fusion_features.settings_of(flags, task, data)
    settings = {
        **vectors,
        **head_settings(flags),
        "asr_flag": flags.asr,
        "data_fingerprint": data.fingerprint,
    }
    if earlier is not None:
        refuse_other_settings(flags.output, earlier, job, settings)
    plan = fusion_features.make_plan(flags.clip_flags(features_at), data, vectors, begun)
    if not flags.dry_run:
        check_writable(flags.output)
        check_writable(features_at)
    return FusionPlan(
        task=task,
        data=data,
        features_at=features_at,
        features=plan,
        placement=placement,
        settings=settings,
        earlier=earlier,
    )


def begin(plan: FusionPlan, output: str, job: str, config: Mapping[str, Any]) -> RunRecord:
    """Write what comes before the training: the clips as they are used, and the record.

    Raises:
        WriteError: the output cannot be written.
    """
    record = new_record(job, config, plan.settings, plan.earlier)
    if not record.history:
        write_manifest(storage.join(output, "manifest"), plan.data.table)
    record.save(output)
    return record


def prediction_task(flags: FusePredictFlags) -> FusionTask:
    """The models of a trained fusion, checked to be those it was trained with.

    Raises:
        ConfigError, CheckpointError: a model is not there, or is another one by now.
    """
    place = storage.absolute(flags.fusion)
    fusion = read_fusion(place)
    config = fusion.config
    pooling: TextPooling = "cls" if config.text_pooling == "cls" else "mean"
    sound = prepare_sound(pinned_sound(config), dtype=flags.dtype, max_padded_s=flags.max_padded_s)
    words = prepare_words(pinned_words(config), pooling)
    # rows name the models as those of the training do; what is loaded stays pinned
    sound = replace(sound, model=config.acoustic_model)
    words = replace(words, model=config.text_model)
    check_same(config, sound, words)
    words = with_recogniser(
        words,
        flags.asr or pinned_recogniser(config),
        dtype=flags.dtype,
        recognise_all=flags.recognise_all or config.recognise_all,
    )
    return FusionTask(sound=sound, words=words, fusion=place, fusion_revision=fusion.revision)


def _open_output(output: str, job: str) -> RunRecord | None:
    """The record of the run to resume, or None for a fresh folder.

    Raises:
        RefusedError: the folder belongs to another job, or holds a model of unknown origin.
    """
    earlier = load_record(output)
    if earlier is not None and earlier.job != job:
        refuse_other_settings(output, earlier, job, {})
    if earlier is None:
        with suppress(ObjectMissing):
            storage.stat(storage.join(output, "config.json"))
            raise RefusedError(
                f"--output {output} holds a model but no run.json: choose another folder"
            )
    return earlier
