"""The models and clips of a fusion, checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from raysers.annotate import AnnotateTask
from raysers.engine.job import ClipJob
from raysers.errors import ObjectMissing, RefusedError
from raysers.io import storage
from raysers.models.text import TextPooling
from raysers.run import Run
from raysers.words import fusion_data
from raysers.words.fusion_data import FusionData
from raysers.words.fusion_flags import FusePredictFlags, FuseTrainFlags, head_settings
from raysers.words.fusion_parts import (
    MANIFEST,
    check_same,
    pinned_recogniser,
    pinned_sound,
    pinned_words,
    prepare_words,
    read_fusion,
    with_recogniser,
)
from raysers.words.fusion_task import FeaturesTask, FusionTask


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionPlan:
    """A training that can begin or go on.

    Attributes:
        task: the models and how they are run.
        data: the clips.
        settings: everything that decides the heads.
    """

    task: FusionTask
    data: FusionData
    settings: Mapping[str, Any]


def make(flags: FuseTrainFlags, run: Run, features: ClipJob) -> FusionPlan:
    """Check models, data and both folders, and plan the pass over the clips.

    Raises:
        ConfigError: anything the command has to change.
        RefusedError: a folder holds results of other settings.
    """
    if run.earlier is None:
        with suppress(ObjectMissing):
            storage.stat(storage.join(run.output, "config.json"))
            raise RefusedError(
                f"--output {run.output} holds a model but no run.json: choose another folder"
            )
    sound = AnnotateTask.load(
        flags.model, dtype=flags.dtype, max_padded_s=flags.max_padded_s, embeddings=True
    )
    # first without a recogniser: it need not be there when every clip has a transcript
    words = prepare_words(flags.text_model, flags.text_pooling)
    data = fusion_data.load(flags)
    needed = flags.recognise_all or len(fusion_data.without_words(data.table)) > 0
    if flags.asr == MANIFEST:
        fusion_data.require_words(data.table)
    if needed or flags.asr == MANIFEST:
        words = with_recogniser(
            words, flags.asr, dtype=flags.dtype, recognise_all=flags.recognise_all
        )
    said = "" if words.recognise_all else fusion_data.words_fingerprint(data.table)
    features.prepare(
        FeaturesTask(sound=sound, words=words), manifest=data.table, settings={"transcripts": said}
    )
    task = features.task
    assert isinstance(task, FusionTask), task
    settings = {
        **features.plan.settings,
        **head_settings(flags),
        "asr_flag": flags.asr,
        "data_fingerprint": data.fingerprint,
    }
    run.refuse_other_settings(settings)
    return FusionPlan(task=task, data=data, settings=settings)


def prediction_task(flags: FusePredictFlags) -> FusionTask:
    """The models of a trained fusion, checked to be those it was trained with.

    Raises:
        ConfigError, CheckpointError: a model is not there, or is another one by now.
    """
    place = storage.absolute(flags.fusion)
    fusion = read_fusion(place)
    config = fusion.config
    pooling: TextPooling = "cls" if config.text_pooling == "cls" else "mean"
    sound = AnnotateTask.load(
        pinned_sound(config),
        dtype=flags.dtype,
        max_padded_s=flags.max_padded_s,
        embeddings=True,
    )
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
