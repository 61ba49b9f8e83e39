"""Training a fusion: heads on the frozen vectors of an acoustic model and a text encoder.

The vectors come from one pass over the clips, in a folder with a record and a manifest like any
job's, so an interrupted pass resumes; or from an annotation with embeddings and a transcript table
(`--annotation`, `--transcripts`), which several trainings can share.
"""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from raysers.annotation import AnnotateTask
from raysers.cli import DEFAULT_ASR, DEFAULT_MODEL, Output, Retry, Uris, as_plain
from raysers.data import splits
from raysers.data.manifest import is_manifest, read_manifest, write_manifest
from raysers.data.sorting import sort_manifest
from raysers.engine.cluster import call_on_worker
from raysers.engine.job import ClipJob
from raysers.engine.listing import ClipJobFlags, index_labelled
from raysers.engine.progress import print_warning
from raysers.errors import ConfigError, ObjectMissing, RefusedError
from raysers.evaluation.bootstrap import Bootstrap
from raysers.evaluation.rows import print_metrics, print_notes
from raysers.evaluation.scores import dimensions_of, labelled_only
from raysers.io import storage
from raysers.models.asr import is_moonshine, parse_asr_name
from raysers.models.backbones import parse_model_name
from raysers.models.fusion import (
    SOURCES,
    Fusion,
    FusionConfig,
    HeadSettings,
    train_head,
)
from raysers.models.pretrained import TextPooling
from raysers.run import Exit, Run, load_record, with_absolute_paths
from raysers.types import DIMENSIONS
from raysers.words import fusion, fusion_results
from raysers.words.fusion_results import DEV, TRAIN, features_of, nothing_to_learn, verdict
from raysers.words.texts import fingerprint

JOB, FEATURES_JOB = "fuse-train", "fuse-features"


@dataclass(frozen=True, kw_only=True)
class FuseTrainFlags(HeadSettings):
    """Flags of `raysers fuse train`."""

    data: Uris
    """Labelled data with a `split` (train, dev, and best test): manifests, tables, corpora."""
    output: Output
    """Folder or s3:// prefix for the fusion; rerun the command to resume there."""
    model: str = DEFAULT_MODEL
    """Fine-tuned acoustic model, frozen: alias, hub id, folder or s3:// prefix."""
    text_model: str = "bert-base-uncased"
    """Text encoder of BERT's kind, frozen: `minilm`, a hub id, folder or s3:// prefix."""
    text_pooling: TextPooling = "mean"
    """How the tokens' vectors become one: their mean, or the first one."""
    asr: str = DEFAULT_ASR
    """Recogniser of clips without a transcript; `manifest`: every clip has one."""
    recognise_all: bool = False
    """Recognise clips that have a transcript, too, as an archive's clips will be."""
    annotation: str = ""
    """Output of `annotate --embeddings` of the same clips: its vectors and its model are used, and
    no audio is read."""
    transcripts: str = ""
    """Beside --annotation, an output of `transcribe`: texts of clips without a transcript, of all
    clips with --recognise-all."""
    corpus: str = "auto"
    """Layout of the data: auto recognises it, none takes folders for plain audio."""
    emotion_map: str = ""
    """Takes missing labels from the emotion category: `russell-mehrabian`, or a YAML file."""
    speakers: str = ""
    """CSV with `speaker`, or `video` (the session), and `sex`, for data that does not say."""
    folds: int = 0
    """Split by speaker into N folds instead of by the data's own splits."""
    fold: int = 0
    """Which of the --folds is kept apart as dev, from 0."""
    new_speakers: bool = False
    """Only clips of speakers that the acoustic model, an output of `raysers train`, was not trained
    on: on these its vectors are as good as they will be on an archive. Best with --folds."""
    allow_leakage: bool = False
    """Train although speakers or sessions are in several splits; the results are marked."""
    limit: int = 0
    """Only the first N clips of the data; 0 takes all."""
    bootstrap: int = 1000
    """Draws behind the intervals; 0 leaves them out."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of acoustic model and recogniser; auto is bf16 where the hardware has it."""
    workers: int | Literal["local"] = 0
    """Workers of the encoders; 0 uses every GPU, or every CPU when there is none; `local` works in
    this process, without Ray."""
    max_padded_s: float = 0.0
    """Padded audio seconds per forward pass; 0 chooses for the device."""
    max_clip_s: float = 600.0
    """Longer clips are left out."""
    max_failed: float = 0.05
    """Highest share of clips without vectors before the job ends with exit code 3."""
    retry: Retry = ()
    """When resuming, also process clips with these statuses again, such as unreadable."""
    dry_run: bool = False
    """Print what the encoders have to do, with a measured estimate, and write nothing."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        fold = f"a number from 0 to {max(self.folds - 1, 0)} (--folds is {self.folds})"
        sized = self.batch_size == 0 or self.batch_size >= 2
        for name, good, valid in (
            ("data", bool(self.data), "labelled clips with a split"),
            ("output", bool(self.output), "a folder or an s3:// prefix"),
            ("transcripts", not self.transcripts or bool(self.annotation), "also --annotation"),
            ("folds", self.folds == 0 or self.folds >= 2, "2 or more (0: the data's own splits)"),
            ("fold", 0 <= self.fold < max(self.folds, 1), fold),
            ("epochs", 1 <= self.epochs <= 100, "1 to 100 passes"),
            ("batch_size", sized, "0 (automatic), or 2 or more: one clip has no correlation"),
            ("lr", self.lr > 0, "a rate above 0"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("dropout", 0 <= self.dropout < 1, "a share from 0 to below 1"),
            ("patience", self.patience >= 0, "0 (never) or more epochs"),
            ("seed", self.seed >= 0, "0 or more"),
            ("bootstrap", self.bootstrap >= 0, "0 (none) or more draws"),
        ):
            if not good:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} is {getattr(self, name)}: give {valid}")
        self.clips.check()

    @property
    def clips(self) -> ClipJobFlags:
        """The pass over the clips."""
        place = storage.join(self.output, fusion.FeaturesTask.table)
        names = ["model", "dtype", "workers", "max_padded_s", "max_clip_s", "max_failed", "retry",
                 "dry_run", "limit"]  # fmt: skip
        own = {name: getattr(self, name) for name in names}
        return ClipJobFlags(input=self.data, output=place, **own)

    @property
    def recipe(self) -> dict[str, Any]:
        """Every flag that decides the heads, beyond the vectors they are trained on."""
        optional = ("schedule", "new_speakers", "annotation", "transcripts")
        names = [field.name for field in fields(HeadSettings) if field.name != "schedule"]
        names += ["bootstrap", "folds", "fold", "allow_leakage"]
        names += [n for n in optional if getattr(self, n) != getattr(FuseTrainFlags, n)]
        return {name: getattr(self, name) for name in names}


def train(flags: FuseTrainFlags) -> int:
    """Check, get every clip's vectors, train the heads, evaluate them; returns the exit code.

    With too many failed clips the heads are trained on the others, and the exit code is 3.
    """
    flags = with_absolute_paths(flags, "data", "annotation", "transcripts")
    # checked even where no clip needs it, because the fusion passes it on to `predict`
    is_model = flags.asr != fusion.MANIFEST and not is_moonshine(flags.asr)
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
