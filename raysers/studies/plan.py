"""What a study has to do and its corpora, checked before anything is written.

One output may take more studies later: their files are kept in OUTPUT/studies, and what they have
in common with earlier ones is not run again. The corpora stay those of the first command. They
become manifests in OUTPUT/corpora once, which every cell reads: `training` (the clips of the home
corpora, by split) and `judged` (their test clips, and the other corpora).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysers.cli import as_plain
from raysers.data import splits
from raysers.data.manifest import fingerprint, is_manifest, read_manifest, write_manifest
from raysers.engine.listing import index_labelled
from raysers.errors import ConfigError, ObjectMissing, RaysersError, RefusedError
from raysers.evaluation.scores import labelled_only
from raysers.io import storage
from raysers.models.backbones import parse_model_name
from raysers.run import Run, RunRecord
from raysers.schemas import LABEL_FIELDS
from raysers.studies import synthetic
from raysers.studies.experiments import (
    Experiment,
    Grid,
    Place,
    evaluation_uri,
    make_grid,
    training_flags,
    training_uri,
)
from raysers.studies.flags import StudyFlags
from raysers.studies.study import Study, in_order, read_studies, read_study
from raysers.tuning.trials import stored
from raysers.types import DIMENSIONS

JOB = "study"
#: Version of what a study does with its settings; another one never resumes its cells.
STUDY_VERSION = 3
#: Text models and recognisers that come with packages, and `manifest` for none.
_OFFLINE = ("minilm", "moonshine", "manifest")
#: Packages without which a job cannot do all of its work.
_PACKAGES = {"probe": ("espeakng_loader", "wordcloud"), "annotate": ("sklearn",)}
#: A corpus without splits is split by speaker: a third for testing, a third of the rest is dev.
_FOLDS = 3
_MAP = "russell-mehrabian"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPlan:
    """A study that can begin or resume.

    `flags` have absolute paths; `wanted` are the names of the studies of this command, `studies`
    these and the ones the output holds from before. `settings` are everything that decides the
    experiments, `earlier` is the record of the run that is resumed, if any.
    """

    flags: StudyFlags
    wanted: Sequence[str]
    studies: Sequence[Study]
    grid: Grid
    settings: dict[str, Any]
    earlier: RunRecord | None

    @property
    def place(self) -> Place:
        """Where the experiments are, before corpora and cluster are known."""
        return Place(
            output=self.flags.output,
            workers=self.flags.workers_per_trial,
            # workers of their own take longer to start than to score so little
            scorers="local" if self.flags.scale == "small" else 0,
        )

    @property
    def small_networks(self) -> set[str]:
        """Aliases of the small networks that are trained."""
        runs = self.grid.runs.values()
        return {str(run.settings["backbone"]) for run in runs if run.settings.get("small")}

    def left(self) -> list[Experiment]:
        """The experiments that are not over."""
        return [
            run
            for run in self.grid.runs.values()
            if (known := stored(self.place.uri(run.name))) is None
            or not known.is_final(self.flags.retries)
        ]


def make_plan(flags: StudyFlags, run: Run) -> StudyPlan:
    """Read studies and folder, nothing of the corpora yet; raises ConfigError, RefusedError."""
    names = ("scale", "data", "in_domain", "emotion_map", "speakers", "limit")
    plain = as_plain(flags)
    settings = {name: plain[name] for name in names} | {"study_version": STUDY_VERSION}
    wanted = read_studies(flags.study, flags.scale)
    kept: dict[str, Study] = {}
    if run.earlier is not None:
        run.refuse_other_settings(settings | {"corpora": run.earlier.settings.get("corpora")})
        with contextlib.suppress(ObjectMissing):
            folder = storage.join(flags.output, "studies")
            for one in storage.list_objects(folder, suffixes={".yaml"}):
                study = read_study(one.uri, "full")
                kept[study.name] = study
    keys = [f.name for f in fields(Study) if f.name != "about"]
    for study in wanted:
        earlier = kept.pop(study.name, study)
        if differing := [key for key in keys if getattr(study, key) != getattr(earlier, key)]:
            raise RefusedError(
                f"--output {flags.output} holds the study {study.name} with other "
                f"{', '.join(differing)}: give the study another name, or choose another folder"
            )
    studies = in_order([*wanted, *kept.values()])
    plan = StudyPlan(
        flags=flags,
        wanted=[study.name for study in wanted],
        studies=studies,
        grid=make_grid(studies, flags.scale),
        settings=settings,
        earlier=run.earlier,
    )
    for cell in plan.grid.cells:  # values that do not go together, before any is trained
        try:
            if cell.job == "train":
                training_flags(plan.grid.runs[cell.run], plan.place)
        except ConfigError as error:
            raise ConfigError(f"--study {cell.study}: cell {cell.cell}: {error}") from error
    return plan


def load_corpora(plan: StudyPlan, folder: str) -> Corpora:
    """The corpora on the connected cluster: as the first command left them, or read now.

    Synthetic speech that a small study needs goes to `folder`. Raises ConfigError, and RaysersError
    where those of the first command are lost or changed.
    """
    flags = plan.flags
    if plan.earlier is not None:
        known = plan.earlier.settings["corpora"]
        uris = training_uri(flags.output), evaluation_uri(flags.output)
        if not all(map(is_manifest, uris)):
            raise RaysersError(
                f"{flags.output} has lost its corpora: start again in another folder"
            )
        told = {key: tuple(known[key]) for key in ("home", "others", "notes")}
        training, judged = map(read_manifest, uris)
        corpora = Corpora(training=training, judged=judged, **told)
        if corpora.fingerprint != known["fingerprint"]:
            raise RaysersError(
                f"the corpora in {flags.output} are not those its run.json names: they were "
                "changed from outside; start again in another folder"
            )
        return corpora
    found, firsts, notes = read_corpora(flags)
    made: list[synthetic.Corpus] = []
    if flags.scale == "small" and len(flags.data) < 2:  # at least two corpora
        made = [synthetic.HOME] if flags.data else [synthetic.HOME, synthetic.CROSS_CORPUS]
    names = [*found, *(one.name for one in made)]
    home = list(flags.in_domain) or firsts or [synthetic.HOME.name]
    if unknown := [name for name in home if name not in names]:
        raise ConfigError(f"--in-domain {unknown[0]}: the corpora are {', '.join(names)}")
    if made:
        if given := [name for name in home if name in found]:
            arrange(found, given, notes, flags.limit)  # refused before anything is written
        found |= synthetic.make_speech(made, folder)
        notes.append(
            f"{', '.join(one.name for one in made)}: spoken by espeak-ng with invented emotions; "
            "figures prove that the way works, nothing about emotion in voices"
        )
    return arrange(found, home, notes, flags.limit)


def missing(plan: StudyPlan, corpora: Corpora) -> dict[str, str]:
    """What the studies of this command need and this machine does not have, by study."""
    spoken = pc.any(pc.is_valid(corpora.training["transcript"])).as_py()
    studies = [study for study in plan.studies if study.name in plan.wanted]
    loaded = {study.name: _hub_ids(study, plan.flags.scale) for study in studies}
    errors = {one: _hub_error(one) for one in dict.fromkeys(itertools.chain(*loaded.values()))}
    found: dict[str, str] = {}
    for study in studies:
        packages = _PACKAGES.get(study.job, ())
        lacks = [f"package {name}" for name in packages if not importlib.util.find_spec(name)]
        if not spoken and (study.job == "probe" or study.flags.get("asr") == "manifest"):
            lacks.append(f"transcripts of {', '.join(corpora.home)}")
        lacks += filter(None, (errors[one] for one in loaded[study.name]))
        if lacks:
            found[study.name] = "; ".join(lacks)
    return found


def _hub_ids(study: Study, scale: str) -> dict[str, None]:
    """Models of the hub that a study loads, each once."""
    texts = [str(study.flags[key]) for key in ("text_model", "asr") if key in study.flags]
    found = [name for name in texts if name not in _OFFLINE and not name.startswith(("/", "s3:"))]
    if scale == "full":
        models = [parse_model_name(model.backbone) for model in study.models.values()]
        found += [model.hub_id for model in models if model.hub_id and not model.random]
    return dict.fromkeys(found)


def _hub_error(hub_id: str) -> str:
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(hub_id, "config.json", etag_timeout=5)
    except Exception as error:  # the library's own errors, and those of its HTTP client
        return f"hub model {hub_id} ({type(error).__name__})"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpora:
    """The data of a study: clips to train on, with splits, and clips to evaluate on.

    `home` names the corpora that are trained on, `others` the other ones; `notes` are for the user.
    """

    training: pa.Table
    judged: pa.Table
    home: tuple[str, ...]
    others: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Changes with any clip, label or split."""
        marks = []
        for table in (self.training, self.judged):
            digest = hashlib.blake2b(digest_size=4)  # what the one of a manifest leaves out
            rows = table.sort_by("clip_id")
            for field in LABEL_FIELDS:
                if field.name in rows.column_names:
                    digest.update(repr(rows[field.name].to_pylist()).encode())
            marks.append(fingerprint(table) + digest.hexdigest())
        return "-".join(marks)

    @property
    def in_domain(self) -> str:
        """The corpus others are compared with; empty when several are trained on."""
        return self.home[0] if len(self.home) == 1 else ""

    def write(self, output: str) -> None:
        """Write the two manifests; raises WriteError."""
        write_manifest(storage.join(training_uri(output), "manifest"), self.training)
        write_manifest(storage.join(evaluation_uri(output), "manifest"), self.judged)


def read_corpora(flags: StudyFlags) -> tuple[dict[str, pa.Table], list[str], list[str]]:
    """Labelled manifests by corpus of `--data`, on the connected cluster; raises ConfigError.

    Also the corpora of the first `--data`, and notes.
    """
    tables: dict[str, pa.Table] = {}
    notes, firsts = list[str](), list[str]()
    index = partial(index_labelled, speakers=flags.speakers, flag="--data")
    for uri in flags.data:
        mapping = "" if flags.emotion_map in ("auto", "none") else flags.emotion_map
        table, found = index([uri], emotion_map=mapping)
        if flags.emotion_map == "auto" and not len(labelled_only(table)):
            table, found = index([uri], emotion_map=_MAP)
        # clips without a corpus are of the folder (or table) they were found in
        folder = uri.rstrip("/").rpartition("/")[2].partition(".")[0] or "data"
        table = labelled_only(_with(table, "corpus", pc.fill_null(table["corpus"], folder)))
        if not len(table):
            raise ConfigError(f"--data {uri}: no clip has a label for {', '.join(DIMENSIONS)}")
        notes += [note for note in found if note not in notes]
        for name in pc.unique(table["corpus"]).to_pylist():
            if name in tables:
                raise ConfigError(f"--data {uri}: corpus {name!r} is there twice: give it once")
            tables[name] = table.filter(pc.equal(table["corpus"], name))
        firsts = firsts or list(tables)
    return tables, firsts, notes


def arrange(
    tables: Mapping[str, pa.Table], home: Sequence[str], notes: Sequence[str], limit: int
) -> Corpora:
    """Decide splits, and which clips of the manifests by corpus the models are evaluated on.

    Of each corpus `limit` clips are used, spread evenly; 0: all. Raises ConfigError: a home corpus
    that cannot be split.
    """
    told = list(notes)
    parts: dict[str, pa.Table] = {}
    for name, table in tables.items():
        count = min(limit or len(table), len(table))
        some = table.take(pa.array([i * len(table) // count for i in range(count)], pa.int64()))
        parts[name], note = (_with_splits if name in home else _evaluated)(name, some)
        told += [note] if note else []
    training = pa.concat_tables([parts[n] for n in home], promote_options="default")
    training = training.combine_chunks()
    testing = training.filter(pc.starts_with(training["split"], "test"))
    if not len(testing):
        raise ConfigError(f"--data {' '.join(home)}: no clip is for testing: see its split column")
    others = [name for name in parts if name not in home]
    judged = [testing, *(parts[name] for name in others)]
    return Corpora(
        training=training,
        judged=pa.concat_tables(judged, promote_options="default").combine_chunks(),
        home=tuple(home),
        others=tuple(others),
        notes=tuple(dict.fromkeys(told)),
    )


def _with_splits(name: str, table: pa.Table) -> tuple[pa.Table, str]:
    """The table with train, dev and test; what it has is kept."""
    known = {split for split in pc.unique(table["split"]).to_pylist() if split}
    has_test = any(split.startswith("test") for split in known)
    if {"train", "dev"} <= known and has_test:
        return table.filter(pc.is_valid(table["split"])), ""
    if known - {"train"}:
        missing = ({"train", "dev"} - known) | (set() if has_test else {"test"})
        raise ConfigError(
            f"--data: {name} has splits but no clips for {', '.join(sorted(missing))}: complete "
            "its split column, or leave it out to split the speakers"
        )
    none = pa.nulls(len(table), pa.string())
    table = splits.fold_splits(_with(table, "split", none), _FOLDS, 0)
    marked = pc.if_else(pc.equal(table["split"], "dev"), "test", none)
    table = splits.fold_splits(_with(table, "split", marked), _FOLDS, 0)
    counts = [
        f"{pc.count_distinct(table.filter(pc.equal(table['split'], split))['speaker'])} {split}"
        for split in ("train", "dev", "test")
    ]
    return table, f"{name} has no splits: its speakers are split ({', '.join(counts)})"


def _evaluated(name: str, table: pa.Table) -> tuple[pa.Table, str]:
    """Test clips of a corpus that has some, else all of it."""
    testing = pc.fill_null(pc.starts_with(table["split"], "test"), False)
    if pc.any(testing).as_py():
        return table.filter(testing), ""
    known = any(pc.unique(table["split"]).to_pylist())
    note = f"{name}: its splits have no test clips, so all its clips judge" if known else ""
    return _with(table, "split", pa.nulls(len(table), pa.string())), note


def _with(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(place), column)
