"""Training a fusion: heads on the frozen vectors of an acoustic model and a text encoder.

The vectors come from one pass over the clips, in a folder with a record and a manifest like any
job's, so an interrupted pass resumes; or from an annotation with embeddings and a transcript table
(`--annotation`, `--transcripts`), which several trainings can share. The same vectors, labels and
settings give the same head: order and dropout follow from the seed and the epoch, on one thread.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from raysers.annotation import AnnotateTask
from raysers.cli import DEFAULT_MODEL, as_plain
from raysers.data import splits
from raysers.data.manifest import is_manifest, read_manifest, write_manifest
from raysers.data.sorting import sort_manifest
from raysers.engine.cluster import call_on_worker
from raysers.engine.job import ClipJob
from raysers.engine.listing import index_labelled
from raysers.engine.progress import print_warning
from raysers.errors import ConfigError, ObjectMissing, RefusedError, TrainingDiverged
from raysers.evaluation.bootstrap import Bootstrap
from raysers.evaluation.rows import print_metrics, print_notes
from raysers.evaluation.scores import dimensions_of, labelled_only
from raysers.io import storage
from raysers.models.asr import parse_asr_name
from raysers.models.backbones import parse_model_name
from raysers.models.fusion import (
    LEAST_LABELS,
    SOURCES,
    Fusion,
    FusionConfig,
    FusionHead,
    Vectors,
)
from raysers.models.heads import ccc_loss
from raysers.models.speech import MOONSHINE
from raysers.run import Exit, Run, load_record, with_absolute_paths
from raysers.types import DIMENSIONS, seed_of
from raysers.words import fusion, fusion_results
from raysers.words.flags import FuseTrainFlags, HeadSettings
from raysers.words.fusion_results import (
    DEV,
    TRAIN,
    EpochOfHead,
    best_epoch,
    features_of,
    nothing_to_learn,
    verdict,
)
from raysers.words.texts import fingerprint

JOB, FEATURES_JOB = "fuse-train", "fuse-features"
#: Numbers that hardly ever change would be blown up by their own scale.
_LEAST_SD = 1e-5
#: Published seeds are of this size.
_SEED_BYTES = 7


def train(flags: FuseTrainFlags) -> int:
    """Check, get every clip's vectors, train the heads, evaluate them; returns the exit code.

    With too many failed clips the heads are trained on the others, and the exit code is 3.
    """
    places = ("data", "annotation", "transcripts", "speakers", "emotion_map")
    flags = with_absolute_paths(flags, *places)
    # checked even where no clip needs it, because the fusion passes it on to `predict`
    is_model = flags.asr not in (fusion.MANIFEST, MOONSHINE)
    if is_model and parse_asr_name(flags.asr).hub_id is None:
        flags = replace(flags, asr=storage.absolute(flags.asr))
    job: ClipJob | None
    with (
        Run.open(JOB, flags.output, dry_run=flags.dry_run) as run,
        nullcontext()
        if flags.annotation
        else ClipJob.open(flags.clips, FEATURES_JOB, table=fusion.FeaturesTask.table) as job,
    ):
        if run.earlier is None:
            with suppress(ObjectMissing):
                storage.stat(storage.join(run.output, "config.json"))
                raise RefusedError(
                    f"--output {run.output} holds a model but no run.json: choose another folder"
                )
        task, asr = _task(flags)
        clips, leakage, notes = _labelled(flags, task.sound.model)
        lacking = len(clips) if flags.recognise_all else len(fusion.without_words(clips))
        if job is None and lacking and not flags.transcripts:
            raise ConfigError(
                f"--annotation: {lacking:,} of {len(clips):,} clips have no transcript: give "
                "--transcripts, an output of transcribe"
            )
        if job is not None:
            if flags.asr == fusion.MANIFEST:
                fusion.require_words(clips)
            if lacking or flags.asr == fusion.MANIFEST:  # else it need not even be there
                task = task.with_recogniser(flags.asr, recognise_all=flags.recognise_all)
                asr = (task.asr.asr, task.asr.revision) if task.asr else asr
            spoken = not flags.recognise_all and "transcript" in clips.column_names
            said = fingerprint(clips.select(["clip_id", "transcript"])) if spoken else ""
            job.prepare(task, manifest=clips, settings={"transcripts": said})
        settings = {
            **(job.plan.settings if job else task.settings),
            **flags.recipe,
            "asr_flag": flags.asr,
            "data_fingerprint": fingerprint(clips.select(["clip_id", "split", *DIMENSIONS])),
        }
        run.refuse_other_settings(settings)
        left = job is not None and bool(job.plan.todo)
        if run.earlier is not None and run.earlier.status == "done" and not left:
            print(f"finished already: {run.output}")
            return Exit.DONE
        if flags.dry_run:
            return job.estimate() if job else Exit.DONE
        if run.earlier is None:
            write_manifest(storage.join(run.output, "manifest"), clips)
        record = run.begin(as_plain(flags), settings)
        code = Exit.DONE
        if job is None:
            rows = fusion.joined_rows(task, clips, flags.annotation, flags.transcripts, asr[0])
            if 1 - len(rows) / len(clips) > flags.max_failed:
                code = Exit.TOO_MANY_FAILED
                print_warning(f"only {len(rows):,} of {len(clips):,} clips are in --annotation")
        else:
            before = job.run.earlier
            if before is not None and not left and before.status == "done":
                print(f"vectors: all there, {job.run.output}")
            else:
                code = job.execute()
            rows = job.rows(job.task.schema.names)
        vectors = features_of(clips, rows, job.run.output if job else flags.annotation)
        trained = {}
        for name in SOURCES:
            work = partial(train_head, name, vectors.of(name, TRAIN), vectors.of(name, DEV), flags)
            if job is None or job.placement.local or not job.placement.num_gpus:
                trained[name] = work()
            else:
                work = partial(work, device=job.placement.device)
                trained[name] = call_on_worker(job.placement, work)
        config = FusionConfig(
            acoustic_model=task.sound.model,
            acoustic_revision=task.sound.revision,
            text_model=task.text_model,
            text_revision=task.text_revision,
            text_pooling=task.text_pooling,
            asr=asr[0],
            asr_revision=asr[1],
            recognise_all=flags.recognise_all,
            sound_size=task.sound.hidden_size,
            words_size=task.text_size,
            dropout=flags.dropout,
        )
        heads = {name: head for name, (head, _) in trained.items()}
        metrics, outcome = fusion_results.write(
            flags.output,
            Fusion(config=config, heads=heads, trained=vectors.trained),
            {name: history for name, (_, history) in trained.items()},
            vectors,
            record,
            bootstrap=Bootstrap(draws=flags.bootstrap, seed=flags.seed),
            leakage=leakage,
            notes=notes,
        )
        run.finish("done" if code == Exit.DONE else "done_with_failures", outcome)
    print_metrics(metrics)
    print_notes(outcome["notes"])
    print(f"fusion: {flags.output}")
    print(verdict(metrics))
    return code


def _task(flags: FuseTrainFlags) -> tuple[fusion.FeaturesTask, tuple[str, str]]:
    """The models but for the recogniser, checked, and name and revision of that.

    Raises ConfigError: a model or table is not there, or does not fit.
    """
    model, dtype, asr, made = flags.model, str(flags.dtype), (flags.asr, ""), {}
    if flags.annotation:
        made = _settings_of(flags.annotation, "annotate", "--annotation")
        if flags.model not in (DEFAULT_MODEL, made["model"]) or not made["embeddings"]:
            raise ConfigError(
                f"--annotation {flags.annotation} has no embeddings of {flags.model}: annotate "
                "with --embeddings"
            )
        model, dtype = made["model"], made["dtype"]
    if flags.transcripts:
        said = _settings_of(flags.transcripts, "transcribe", "--transcripts")
        asr = (said["asr"], said["asr_revision"])
    sound = AnnotateTask.load(model, dtype=dtype, max_padded_s=flags.max_padded_s, embeddings=True)
    if made.get("model_revision", sound.revision) != sound.revision:
        raise ConfigError(f"--annotation: {model} has changed since: annotate again")
    task = fusion.FeaturesTask.load(sound, flags.text_model, flags.text_pooling)
    return replace(task, recognise_all=flags.recognise_all), asr


def _settings_of(output: str, job: str, flag: str) -> Any:
    record = load_record(output)
    if record is None or record.job != job:
        raise ConfigError(f"{flag} {output} is no output of {job}")
    return record.settings


def _labelled(flags: FuseTrainFlags, model: str) -> tuple[pa.Table, list[str], list[str]]:
    """Labelled clips with a split, sorted; what train shares with other splits; warnings.

    Raises ConfigError: data that cannot be read or used, or that leaks.
    """
    table, notes = index_labelled(
        flags.data,
        corpus=flags.corpus,
        emotion_map=flags.emotion_map,
        speakers=flags.speakers,
        limit=flags.limit,
        flag="--data",
    )
    trained = _speakers_of(model)
    known = [speaker in trained for speaker in table["speaker"].to_pylist()]
    if flags.new_speakers and not trained:
        raise ConfigError(
            f"--new-speakers: {model} does not hold whom it was trained on: give an output of "
            "raysers train, whose data have speakers"
        )
    if flags.new_speakers:
        table = table.filter(pa.array([not one for one in known]))
        notes.append(f"{sum(known):,} clips of speakers that {model} was trained on left out")
    elif any(known):
        notes.append(
            f"{model} was trained on the speakers of {sum(known):,} of {len(table):,} clips, so "
            "audio looks better than it is: --new-speakers --folds N leaves these out"
        )
    if flags.folds:
        table = splits.fold_splits(table, flags.folds, flags.fold)
    leakage = splits.check_leakage(table, flags.allow_leakage)
    labelled = labelled_only(table)
    kept = labelled.filter(pc.is_valid(labelled["split"]))
    for lost, what in ((len(table) - len(labelled), "label"), (len(labelled) - len(kept), "split")):
        if lost:
            notes.append(f"{lost:,} clips have no {what} and are left out")
    for name in (TRAIN, DEV):
        if name not in set(kept["split"].to_pylist()):
            raise ConfigError(
                f"--data has no labelled {name} clips: give data with a split column, or --folds "
                "N to split it by speaker"
            )
    if lacking := nothing_to_learn(dimensions_of(kept), kept["split"].to_pylist()):
        raise ConfigError(f"--data: {lacking}")
    return sort_manifest(kept), leakage, notes


def _speakers_of(model: str) -> set[str]:
    """Speakers a model was trained on; empty unless it is an output of training that has them."""
    name = parse_model_name(model)
    place = name.path if name.alias is None and not name.random else None
    if place is None or not is_manifest(place):
        return set()
    clips = read_manifest(place)
    if not {"split", "speaker"} <= set(clips.column_names):
        return set()
    return set(clips.filter(pc.equal(clips["split"], TRAIN))["speaker"].to_pylist()) - {None, ""}


def train_head(
    name: str, train: Vectors, dev: Vectors, settings: HeadSettings, device: str = "cpu"
) -> tuple[FusionHead, list[EpochOfHead]]:
    """The head of the epoch with the best mean dev CCC, and all epochs; or TrainingDiverged.

    Clips of `train` without any label are left out, and a dimension with fewer than `LEAST_LABELS`
    always gets the middle of the scale.
    """
    labelled = np.isfinite(train.labels).any(axis=1)
    values, labels = (torch.from_numpy(one[labelled]).to(device) for one in train)
    dev_values, dev_labels = (torch.from_numpy(one).to(device) for one in dev)
    counts = (~labels.isnan()).sum(0).tolist()
    unlabelled = [place for place, count in enumerate(counts) if count < LEAST_LABELS]
    size = settings.batch_size or min(max(len(values) // 16, 16), 256)
    # batches of nearly equal size: a rest of two clips has no correlation
    steps = max(1, round(len(values) / size))
    history: list[EpochOfHead] = []
    with _alone(seed_of(name, settings.seed, 0, size_bytes=_SEED_BYTES)):
        head = FusionHead(values.shape[1], settings.dropout).to(device)
        spread = values.double().std(0, unbiased=False)
        head.mean.copy_(values.double().mean(0))
        head.scale.copy_(torch.where(spread > _LEAST_SD, spread, 1.0))
        optimiser = torch.optim.AdamW(
            head.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        head.silence(unlabelled)
        kept: dict[str, Tensor] = {}
        for epoch in range(1, settings.epochs + 1):
            torch.manual_seed(seed_of(name, settings.seed, epoch, size_bytes=_SEED_BYTES))
            if settings.schedule == "linear":
                for group in optimiser.param_groups:
                    group["lr"] = settings.lr * (1 - (epoch - 1) / settings.epochs)
            losses = []
            head.train()
            for part in torch.randperm(len(values)).tensor_split(steps):
                loss = ccc_loss(head(values[part]), labels[part])
                if not torch.isfinite(loss):
                    raise TrainingDiverged(
                        "the loss of a head is not a finite number: give a smaller --lr"
                    )
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
                optimiser.step()
                losses.append(loss.item())
            with torch.no_grad():
                ccc = 1.0 - ccc_loss(head.eval()(dev_values).double(), dev_labels).item()
            history.append(EpochOfHead(epoch, float(np.mean(losses)), ccc))
            best = best_epoch(history).epoch
            if best == epoch:
                kept = copy.deepcopy(head.state_dict())
            if settings.patience and epoch - best >= settings.patience:
                break
    head.load_state_dict(kept)
    head.silence(unlabelled)  # weight decay has moved them
    return head.cpu().eval(), history


@contextmanager
def _alone(seed: int) -> Iterator[None]:
    """Torch's own generator at `seed` and one thread; both are given back as they were."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
