"""The life of a job over clips after its plan: start, run what is left, check, conclude."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raysers.config import ClipJobFlags, ListingFlags
from raysers.data import storage
from raysers.data.manifest import write_manifest
from raysers.distributed import ledger, parts, summary
from raysers.distributed.audformat_header import write_header
from raysers.distributed.cluster import Placement
from raysers.distributed.pipeline import ShardResult, new_monitor, run_shards, shard_blocks
from raysers.distributed.planning import Plan
from raysers.distributed.progress import Totals, live
from raysers.distributed.stages import ClipTask, StageSettings
from raysers.errors import RaysersError
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

    def add(self, result: ShardResult) -> None:
        """Count a finished shard."""
        self.audio_s += result.scored_s
        self.padded_s += result.padded_s
        self.model_s += result.model_s
        self.wait_s += result.wait_s
        self.decoded += result.decoded


def begin_output(
    flags: ListingFlags,
    job: str,
    manifest: pa.Table,
    tables: Mapping[str, pa.Schema],
    record: RunRecord,
) -> None:
    """Write what comes before any row: manifest, `db.yaml` and, last, the record.

    Raises:
        ConfigError: the output cannot be written at all.
    """
    storage.check_writable(flags.output)
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


def run_plan(
    flags: ClipJobFlags,
    plan: Plan,
    task: ClipTask,
    placement: Placement,
    record: RunRecord,
    max_clip_s: float,
) -> Ran:
    """Work on every shard that is left, showing progress; a failure is noted in `run.json`."""
    ran, started = Ran(), time.perf_counter()
    settings = StageSettings(
        output=flags.output,
        run_id=record.run_id,
        redo=frozenset(str(s) for s in flags.retry),
        max_clip_s=max_clip_s,
        io_threads=_io_threads(plan, placement),
    )
    try:
        for result in _results(plan, settings, task, placement, flags.shard_s):
            ran.add(result)
    except BaseException as error:
        note = {"error": f"{type(error).__name__}: {error}"[:2000]}
        with suppress(RaysersError):  # the disk may be what failed
            finished(record, "failed", note).save(flags.output)
        raise
    ran.wall_s = time.perf_counter() - started
    return ran


def _results(
    plan: Plan, settings: StageSettings, task: ClipTask, placement: Placement, shard_s: float
) -> Iterator[ShardResult]:
    if not plan.todo:
        return
    rows = [(i, plan.shards.rows(i)) for i in plan.todo]
    totals = Totals(total_s=plan.todo_s(), clips=sum(len(r) for _, r in rows))
    monitor = new_monitor()
    with live(totals, monitor):
        yield from run_shards(
            shard_blocks(plan.manifest, rows),
            settings=settings,
            task=task,
            placement=placement,
            monitor=monitor,
            longest_shard_s=shard_s,
        )


def _io_threads(plan: Plan, placement: Placement) -> int:
    """Local disks need few threads; object stores answer slowly but to many at once."""
    remote = storage.is_remote(plan.manifest["file"][0].as_py())
    if placement.device == "cuda":
        return 32 if remote else 8
    return 16 if remote else max(2, placement.threads)


def conclude(flags: ClipJobFlags, plan: Plan, table: str, record: RunRecord, ran: Ran) -> Exit:
    """Check that every clip is exactly one row, write how the run ended, and print it.

    Raises:
        RaysersError: rows are missing or too many.
    """
    found = parts.read_parts(flags.output, table, len(plan.shards), ["clip_id", "status"])
    rows = pa.concat_tables(found.values())
    parts.check_complete(plan.manifest["clip_id"], rows["clip_id"], flags.output)
    statuses = Counter(summary.count_statuses(rows))
    failed = 1 - statuses[Status.OK] / rows.num_rows
    outcome = {
        "clips": rows.num_rows,
        "statuses": dict(statuses),
        "failed_share": round(failed, 6),
        "audio_s": round(ran.audio_s, 3),
        "wall_s": round(ran.wall_s, 3),
        "decoded": ran.decoded,
        "padding_waste": round(1 - ran.audio_s / ran.padded_s, 4) if ran.padded_s else 0.0,
    }
    ledger.tidy(flags.output)
    good = failed <= flags.max_failed
    finished(record, "done" if good else "done_with_failures", outcome).save(flags.output)
    summary.print_outcome(outcome, storage.join(flags.output, table))
    if not good:
        summary.print_warning(
            f"{failed:.1%} of the rows are not ok, more than --max-failed {flags.max_failed:g} "
            "allows: see the columns status and error; --retry STATUS redoes such rows"
        )
    return Exit.DONE if good else Exit.TOO_MANY_FAILED
