"""The life of a job over clips after its plan: start, run what is left, check, conclude."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raysers.cli import ClipJobFlags, ListingFlags
from raysers.data.manifest import write_manifest
from raysers.engine import ledger, summary
from raysers.engine import output as parts
from raysers.engine.audformat_header import write_header
from raysers.engine.cluster import Placement, io_threads
from raysers.engine.pipeline import ShardResult, new_monitor, run_shards, shard_blocks
from raysers.engine.plan import Plan
from raysers.engine.progress import Totals, live
from raysers.engine.versions import Versions, names_of
from raysers.engine.worker import ClipTask, StageSettings
from raysers.errors import ConfigError, RaysersError
from raysers.io import storage
from raysers.run import Exit, RunRecord, finished, new_record
from raysers.types import Status


@dataclass(slots=True)
class Ran:
    """Figures of this run's own work, added up over its shards."""

    audio_s: float = 0.0
    padded_s: float = 0.0
    model_s: float = 0.0
    wait_s: float = 0.0
    wall_s: float = 0.0
    decoded: int = 0
    peak_bytes: int = 0
    workers: int = 0
    device: str = ""

    def add(self, result: ShardResult) -> None:
        """Count a finished shard."""
        self.audio_s += result.scored_s
        self.padded_s += result.padded_s
        self.model_s += result.model_s
        self.wait_s += result.wait_s
        self.decoded += result.decoded
        self.peak_bytes = max(self.peak_bytes, result.peak_bytes)


def begin_output(
    flags: ListingFlags,
    job: str,
    manifest: pa.Table,
    tables: Mapping[str, pa.Schema],
    record: RunRecord,
) -> None:
    """Write what comes before any row: manifest, `db.yaml` and, last, the record."""
    if not record.history:
        write_manifest(storage.join(flags.output, "manifest"), manifest)
    schemas = {"manifest": manifest.schema, **tables}
    write_header(flags.output, schemas, description=f"{job} of {', '.join(flags.input)}")
    record.save(flags.output)


def start(
    flags: ClipJobFlags, job: str, plan: Plan, config: Mapping[str, Any], task: ClipTask
) -> RunRecord:
    """The record of this run, with everything written that comes before the rows."""
    record = new_record(job, config, plan.settings, plan.earlier)
    begin_output(flags, job, plan.manifest, {task.table: task.schema}, record)
    return record


@contextmanager
def recorded(record: RunRecord, output: str) -> Iterator[None]:
    """Note in `run.json` how the block failed, if it does; rows may have been written by then."""
    try:
        yield
    except BaseException as error:
        note = {"error": f"{type(error).__name__}: {error}"[:2000]}
        with suppress(RaysersError):  # the disk may be what failed
            finished(record, "failed", note).save(output)
        if isinstance(error, ConfigError):  # no longer the command's fault
            raise RaysersError(f"on a worker: {error}") from error
        raise


def run_plan(
    flags: ClipJobFlags,
    plan: Plan,
    task: ClipTask,
    placement: Placement,
    record: RunRecord,
    max_clip_s: float,
    versions: Versions | None = None,
) -> Ran:
    """Work on every shard that is left, showing progress; a failure is noted in `run.json`."""
    ran = Ran(workers=placement.workers, device=placement.device)
    started = time.perf_counter()
    settings = StageSettings(
        output=flags.output,
        run_id=record.run_id,
        redo=frozenset(str(s) for s in flags.retry),
        whole=flags.segment == "whole",
        max_clip_s=max_clip_s,
        io_threads=io_threads(plan.manifest, placement),
        versions=versions,
    )
    with recorded(record, flags.output):
        for result in _results(plan, settings, task, placement):
            ran.add(result)
    ran.wall_s = time.perf_counter() - started
    return ran


def _results(
    plan: Plan, settings: StageSettings, task: ClipTask, placement: Placement
) -> Iterator[ShardResult]:
    if not plan.todo:
        return
    blocks = shard_blocks(plan.manifest, plan.shards, plan.todo)
    rows = len(names_of(settings.versions))
    clips = sum(block.num_rows for block in blocks)
    totals = Totals(total_s=plan.todo_s() * rows, clips=clips * rows)
    monitor = new_monitor()
    with live(totals, monitor):
        for result in run_shards(
            blocks,
            settings=settings,
            task=task,
            placement=placement,
            monitor=monitor,
        ):
            totals.finished[result.shard] = (result.audio_s, result.statuses)
            yield result


def conclude(
    flags: ClipJobFlags,
    plan: Plan,
    table: str,
    record: RunRecord,
    ran: Ran,
    versions: Versions | None = None,
) -> Exit:
    """Check that every clip is exactly one row (of each version), write how it ended, print it.

    Raises:
        RaysersError: rows are missing or too many.
    """
    with recorded(record, flags.output):
        rows = _checked_rows(flags.output, table, plan, versions)
    statuses = Counter(summary.count_statuses(rows))
    failed = 1 - statuses[Status.OK] / rows.num_rows
    outcome = {
        "clips": plan.manifest.num_rows,
        "rows": rows.num_rows,
        "statuses": dict(statuses),
        "failed_share": round(failed, 6),
        "audio_s": round(ran.audio_s, 3),
        "wall_s": round(ran.wall_s, 3),
        "model_s": round(ran.model_s, 3),
        "wait_s": round(ran.wait_s, 3),
        "workers": ran.workers,
        "device": ran.device,
        "worker_peak_bytes": ran.peak_bytes,
        "decoded": ran.decoded,
        "padding_waste": round(1 - ran.audio_s / ran.padded_s, 4) if ran.padded_s else 0.0,
    }
    ledger.tidy(flags.output)
    for folder in ("", "manifest", table):
        storage.sweep(storage.join(flags.output, folder) if folder else flags.output)
    good = failed <= flags.max_failed
    finished(record, "done" if good else "done_with_failures", outcome).save(flags.output)
    summary.print_outcome(outcome, storage.join(flags.output, table))
    if not good:
        summary.print_warning(
            f"{failed:.1%} of the rows are not ok, more than --max-failed {flags.max_failed:g} "
            "allows: see the columns status and error; --retry STATUS redoes such rows"
        )
    return Exit.DONE if good else Exit.TOO_MANY_FAILED


def _checked_rows(output: str, table: str, plan: Plan, versions: Versions | None) -> pa.Table:
    columns = ["clip_id", "status"] + ([parts.VERSION] if versions else [])
    rows = parts.read_all(output, table, len(plan.shards), columns)
    ids = plan.manifest["clip_id"]
    if versions:
        parts.check_versions(ids, rows, versions.names, output)
    else:
        parts.check_complete(ids, rows["clip_id"], output)
    return rows
