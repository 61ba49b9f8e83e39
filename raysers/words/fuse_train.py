"""Training a fusion: heads on the frozen vectors of an acoustic model and a text encoder.

The vectors come from one pass over the clips, in a folder with a record and a manifest like any
job's: an interrupted pass resumes, and a second training with other heads reuses the vectors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from raysers.annotation import AnnotateTask
from raysers.cli import DEFAULT_MODEL, ClipJobFlags, Output, Retry, Uris, as_plain
from raysers.data import splits
from raysers.data.manifest import is_manifest, read_manifest, write_manifest
from raysers.data.sorting import sort_manifest
from raysers.engine.cluster import call_on_worker
from raysers.engine.job import ClipJob
from raysers.engine.labelled import index_labelled
from raysers.errors import ConfigError, ObjectMissing, RefusedError
from raysers.evaluation.join import dimensions_of, labelled_only
from raysers.evaluation.rows import print_metrics, print_notes
from raysers.io import storage
from raysers.models.asr import DEFAULT_ASR, is_moonshine, parse_asr_name
from raysers.models.backbones import parse_model_name
from raysers.models.fusion import (
    SOURCES,
    EpochOfHead,
    FusionHead,
    HeadSettings,
    Schedule,
    train_head,
)
from raysers.models.text import TextPooling
from raysers.run import Exit, Run, absolute_output, load_record
from raysers.types import DIMENSIONS
from raysers.words import fusion_results
from raysers.words.fusion import (
    MANIFEST,
    FeaturesTask,
    FusionTask,
    TextBranch,
    require_words,
    without_words,
)
from raysers.words.fusion_results import (
    DEV,
    TRAIN,
    Features,
    FusionData,
    nothing_to_learn,
    read_features,
)

JOB, FEATURES_JOB = "fuse-train", "fuse-features"


@dataclass(frozen=True, kw_only=True)
class FuseTrainFlags:
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
    features: str = ""
    """Where the encoders' vectors are kept; default OUTPUT/features. Name an earlier training's
    output to reuse its vectors for other heads or folds."""
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
    epochs: int = HeadSettings.epochs
    """Passes of the heads over the training clips; the best on dev is kept."""
    batch_size: int = HeadSettings.batch_size
    """Clips whose CCC is the loss of a step; 0: a sixteenth of the training clips, 16 to 256."""
    lr: float = HeadSettings.lr
    """Learning rate of Adam at the start."""
    schedule: Schedule = HeadSettings.schedule
    """Of the learning rate: a straight line to 0 over the epochs, or constant."""
    weight_decay: float = HeadSettings.weight_decay
    """Weight decay, decoupled from the gradient."""
    dropout: float = HeadSettings.dropout
    """Dropout of the heads' input and hidden layer, 0 to below 1."""
    patience: int = HeadSettings.patience
    """Stop after N epochs without a better dev CCC; 0 never stops early."""
    seed: int = HeadSettings.seed
    """Decides the heads' initial weights, order and dropout, and the bootstrap draws."""
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
        for good, flag, valid in _rules(self):
            if not good:
                value = getattr(self, flag.removeprefix("--").replace("-", "_"))
                raise ConfigError(f"{flag} is {value}: give {valid}")

    @property
    def head(self) -> HeadSettings:
        """How the heads are trained."""
        names = HeadSettings.__dataclass_fields__
        return HeadSettings(**{name: getattr(self, name) for name in names})

    @property
    def recipe(self) -> dict[str, Any]:
        """Every flag that decides the heads, beyond the vectors they are trained on."""
        names = [name for name in HeadSettings.__dataclass_fields__ if name != "schedule"]
        names += ["bootstrap", "folds", "fold", "allow_leakage"]
        optional = {"schedule": self.schedule, "new_speakers": self.new_speakers}
        changed = {k: v for k, v in optional.items() if v != getattr(FuseTrainFlags, k)}
        return {name: getattr(self, name) for name in names} | changed

    def with_absolute_paths(self) -> FuseTrainFlags:
        """The flags, checked, with places that mean the same in every process of the cluster.

        Raises:
            ConfigError: a flag has an impossible value.
        """
        self.check()
        asr = self.asr
        # checked even where no clip needs it, because the fusion passes it on to `predict`
        if asr != MANIFEST and not is_moonshine(asr) and parse_asr_name(asr).hub_id is None:
            asr = storage.absolute(asr)
        return replace(
            self,
            data=tuple(map(storage.absolute, self.data)),
            output=absolute_output(self.output),
            features=absolute_output(self.features) if self.features else "",
            asr=asr,
        )


def _rules(flags: FuseTrainFlags) -> Iterator[tuple[bool, str, str]]:
    """(holds, flag, what to give instead), in the order of the flags."""
    yield bool(flags.data), "--data", "labelled clips with a split"
    yield bool(flags.output), "--output", "a folder or an s3:// prefix"
    yield flags.folds == 0 or flags.folds >= 2, "--folds", "2 or more (0: the data's own splits)"
    fold = f"a number from 0 to {max(flags.folds - 1, 0)} (--folds is {flags.folds})"
    yield 0 <= flags.fold < max(flags.folds, 1), "--fold", fold
    yield flags.limit >= 0, "--limit", "0 (all) or more"
    yield 1 <= flags.epochs <= 100, "--epochs", "1 to 100 passes"
    sized = flags.batch_size == 0 or flags.batch_size >= 2
    yield sized, "--batch-size", "0 (automatic), or 2 or more: one clip has no correlation"
    yield flags.lr > 0, "--lr", "a rate above 0"
    yield flags.weight_decay >= 0, "--weight-decay", "0 or more"
    yield 0 <= flags.dropout < 1, "--dropout", "a share from 0 to below 1"
    yield flags.patience >= 0, "--patience", "0 (never) or more epochs"
    yield flags.seed >= 0, "--seed", "0 or more"
    yield flags.bootstrap >= 0, "--bootstrap", "0 (none) or more draws"
    fits = flags.workers == "local" or flags.workers >= 0
    yield fits, "--workers", "0 (automatic), a number, or local"
    yield flags.max_padded_s >= 0, "--max-padded-s", "0 or more seconds"
    yield flags.max_clip_s > 0, "--max-clip-s", "a length above 0 seconds"
    yield 0 <= flags.max_failed <= 1, "--max-failed", "a share from 0 to 1"


def train(flags: FuseTrainFlags) -> int:
    """Check, get every clip's vectors, train the heads, evaluate them; returns the exit code.

    With too many failed clips the heads are trained on the others, and the exit code is 3.
    """
    flags = flags.with_absolute_paths()
    clips = ClipJobFlags(
        input=flags.data,
        output=features_folder(flags),
        model=flags.model,
        dtype=flags.dtype,
        workers=flags.workers,
        max_padded_s=flags.max_padded_s,
        max_clip_s=flags.max_clip_s,
        max_failed=flags.max_failed,
        retry=flags.retry,
        dry_run=flags.dry_run,
    )
    with (
        Run.open(JOB, flags.output, dry_run=flags.dry_run) as run,
        ClipJob.open(clips, FEATURES_JOB, table=FeaturesTask.table) as features,
    ):
        task, data, settings = _plan(flags, run, features)
        left = bool(features.plan.todo)
        if run.earlier is not None and run.earlier.status == "done" and not left:
            print(f"finished already: {run.output}")
            return Exit.DONE
        if flags.dry_run:
            return features.estimate()
        if run.earlier is None:
            write_manifest(storage.join(run.output, "manifest"), data.table)
        record = run.begin(as_plain(flags), settings)
        before = features.run.earlier
        if before is not None and not left and before.status == "done":
            print(f"vectors: all there, {features.run.output}")
            code = Exit.DONE
        else:
            code = features.execute()
        vectors = read_features(features)
        trained = _train_heads(vectors, flags.head, features)
        result = fusion_results.write(flags, task, data, vectors, trained, record)
        run.finish("done" if code == Exit.DONE else "done_with_failures", result.outcome)
    print_metrics(result.rows)
    print_notes(result.notes)
    print(f"fusion: {flags.output}")
    print(result.verdict)
    return code


def features_folder(flags: FuseTrainFlags) -> str:
    """Where the vectors are or will be; an earlier training's output stands for its vectors."""
    if not flags.features:
        return storage.join(flags.output, FeaturesTask.table)
    earlier = load_record(flags.features)
    if earlier is not None and earlier.job == JOB:
        named = earlier.config.get("features")
        return str(named) if named else storage.join(flags.features, FeaturesTask.table)
    return flags.features


def _plan(
    flags: FuseTrainFlags, run: Run, features: ClipJob
) -> tuple[FusionTask, FusionData, Mapping[str, Any]]:
    """Models, data and everything that decides the heads, checked before anything is written.

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
    words = TextBranch.load(flags.text_model, flags.text_pooling)
    data = _load_data(flags)
    if flags.asr == MANIFEST:
        require_words(data.table)
    if flags.asr == MANIFEST or flags.recognise_all or len(without_words(data.table)):
        words = words.with_recogniser(
            flags.asr, dtype=flags.dtype, recognise_all=flags.recognise_all
        )
    said = "" if words.recognise_all else _fingerprint(data.table, "transcript")
    features.prepare(
        FeaturesTask(sound=sound, words=words), manifest=data.table, settings={"transcripts": said}
    )
    settings = {
        **features.plan.settings,
        **flags.recipe,
        "asr_flag": flags.asr,
        "data_fingerprint": data.fingerprint,
    }
    run.refuse_other_settings(settings)
    task = features.task
    assert isinstance(task, FusionTask), task
    return task, data, settings


def _load_data(flags: FuseTrainFlags) -> FusionData:
    """Index, split and check the labelled clips, on the connected cluster.

    Raises:
        ConfigError: data that cannot be read or used, or that leaks.
    """
    table, notes = index_labelled(
        flags.data,
        corpus=flags.corpus,
        emotion_map=flags.emotion_map,
        speakers=flags.speakers,
        limit=flags.limit,
    )
    trained = _speakers_of(flags.model)
    known = [speaker in trained for speaker in table["speaker"].to_pylist()]
    if flags.new_speakers and not trained:
        raise ConfigError(
            f"--new-speakers: {flags.model} does not hold whom it was trained on: give an output "
            "of raysers train, whose data have speakers"
        )
    if flags.new_speakers:
        table = table.filter(pa.array([not one for one in known]))
        notes.append(f"{sum(known):,} clips of speakers that {flags.model} was trained on left out")
    elif any(known):
        notes.append(
            f"{flags.model} was trained on the speakers of {sum(known):,} of {len(table):,} clips, "
            "so audio looks better than it is: --new-speakers --folds N leaves these out"
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
    digest = _fingerprint(kept, "split", *DIMENSIONS)
    return FusionData(table=sort_manifest(kept), fingerprint=digest, leakage=leakage, notes=notes)


def _speakers_of(model: str) -> set[str]:
    """Speakers a model was trained on; empty unless it is an output of training that has them."""
    name = parse_model_name(model)
    place = name.path if name.alias is None and not name.random else None
    if place is None or not is_manifest(place):
        return set()
    clips = read_manifest(place)
    if not {"split", "speaker"} <= set(clips.column_names):
        return set()
    trained = clips.filter(pc.equal(clips["split"], TRAIN))["speaker"].to_pylist()
    return {speaker for speaker in trained if speaker}


def _fingerprint(table: pa.Table, *columns: str) -> str:
    """16 hex digits that change with any clip or value; empty without the first column."""
    if columns[0] not in table.column_names:
        return ""
    table = table.sort_by("clip_id")
    values = repr([table[name].to_pylist() for name in ("clip_id", *columns)])
    return hashlib.blake2b(values.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _train_heads(
    features: Features, settings: HeadSettings, job: ClipJob
) -> dict[str, tuple[FusionHead, list[EpochOfHead]]]:
    """The three heads by name, each at its best epoch on dev, with their histories."""
    found = {}
    for name in SOURCES:
        train, dev = (features.of(name, split) for split in (TRAIN, DEV))
        work = partial(train_head, name, train, dev, settings, device=job.placement.device)
        remote = job.placement.num_gpus and not job.placement.local
        found[name] = call_on_worker(job.placement, work) if remote else work()
    return found
