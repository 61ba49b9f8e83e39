"""Training a fusion, and the models that predict with one, checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from raysers.annotation import AnnotateTask
from raysers.cli import as_plain
from raysers.data.manifest import write_manifest
from raysers.engine.job import ClipJob
from raysers.errors import ObjectMissing, RefusedError
from raysers.evaluation.tables import print_metrics, print_notes
from raysers.io import storage
from raysers.models.text import TextPooling
from raysers.run import Exit, Run
from raysers.words import fusion_data, fusion_features, fusion_results
from raysers.words.fusion_data import FusionData
from raysers.words.fusion_flags import (
    FusePredictFlags,
    FuseTrainFlags,
    head_settings,
    with_absolute_paths,
)
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

TRAIN_JOB = fusion_features.TRAIN_JOB


def train(flags: FuseTrainFlags) -> int:
    """Check, get every clip's vectors, train the heads, evaluate them; returns the exit code."""
    flags = with_absolute_paths(flags)
    clips = flags.clip_flags(fusion_features.folder(flags))
    with (
        Run.open(TRAIN_JOB, flags.output, dry_run=flags.dry_run) as run,
        ClipJob.open(clips, fusion_features.JOB, table=FeaturesTask.table) as features,
    ):
        plan = _plan(flags, run, features)
        if run.earlier is not None and run.earlier.status == "done" and not features.plan.todo:
            print(f"finished already: {run.output}")
            return Exit.DONE
        if flags.dry_run:
            return features.estimate()
        if run.earlier is None:
            write_manifest(storage.join(run.output, "manifest"), plan.data.table)
        record = run.begin(as_plain(flags), plan.settings)
        code = fusion_features.make(features)
        if code != Exit.DONE:
            error = f"too many clips have no vectors: see {features.run.output}"
            run.finish("failed", {"error": error})
            return code
        vectors = fusion_features.read(features)
        trained = fusion_features.train_heads(vectors, flags.head, features.placement)
        result = fusion_results.write(flags, plan.task, plan.data, vectors, trained, record)
        run.finish("done", result.outcome)
    print_metrics(result.rows)
    print_notes(result.notes)
    print(f"fusion: {flags.output}")
    return Exit.DONE


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """A training that can begin or go on.

    Attributes:
        task: the models and how they are run.
        data: the clips.
        settings: everything that decides the heads.
    """

    task: FusionTask
    data: FusionData
    settings: Mapping[str, Any]


def _plan(flags: FuseTrainFlags, run: Run, features: ClipJob) -> _Plan:
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
    return _Plan(task=task, data=data, settings=settings)


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
