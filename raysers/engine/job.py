"""The road of every job over clips: plan, estimate or execute, check, conclude.

    with ClipJob.open(flags, "annotate", table="annotations") as job:
        job.prepare(AnnotateTask.load(flags.model, ...))
        return job.estimate() if flags.dry_run else job.execute()

Small archives are scored in this process; otherwise Ray workers run the same code.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pyarrow as pa

from raysers.audio.level import FAULTS
from raysers.cli import ClipJobFlags, as_plain
from raysers.data.manifest import Manifest
from raysers.data.shards import ShardSource
from raysers.data.sources import list_inputs
from raysers.engine import estimate, extend, ledger, output, plan, progress, retry
from raysers.engine.placement import Placement, connecting, here, io_threads
from raysers.engine.plan import Plan
from raysers.engine.progress import Shards
from raysers.engine.worker import (
    SHARDS_AT_A_TIME,
    ClipTask,
    ShardResult,
    ShardWorker,
    WorkerSettings,
)
from raysers.errors import ConfigError, RaysersError
from raysers.io import storage
from raysers.run import Exit, Run, end_on_sigterm
from raysers.types import Status

#: Up to so much audio, every variant counted, `--workers 0` without a cluster starts no Ray.
LOCAL_MAX_S = 3600.0


class ClipJob:
    """One job over clips, with its output claimed.

    `task`, `plan` (the clips and what is left to do) and `placement` are there from `prepare` on.
    """

    task: ClipTask
    plan: Plan
    placement: Placement

    def __init__(self, flags: ClipJobFlags, run: Run) -> None:
        self.flags = flags
        self.run = run
        self._began_at = time.time()
        self._connected: Future[None] | None = None

    @classmethod
    @contextmanager
    def open(cls, flags: ClipJobFlags, name: str, *, table: str) -> Iterator[ClipJob]:
        """Check the flags, claim the output, and begin to join the cluster if one is needed.

        Raises:
            ConfigError: a flag has an impossible value, or an input is not there.
            RefusedError: the output belongs to another job or run.
        """
        flags = plan.with_absolute_paths(flags)
        with Run.open(name, flags.output, table=table, dry_run=flags.dry_run) as run:
            if run.earlier is None:
                list_inputs(flags.input)  # only looks at each: a misspelt one costs no start
            job = cls(flags, run)
            if flags.workers != "local" and (flags.workers or plan.has_cluster()):
                job._connected = connecting()
            try:
                yield job
            finally:
                if job._connected is not None:  # Ray cannot be shut down while it starts
                    job._connected.exception()

    def prepare(
        self,
        task: ClipTask,
        *,
        manifest: pa.Table | None = None,
        settings: Mapping[str, Any] | None = None,
        placement: Placement | None = None,
    ) -> None:
        """List the clips, place the workers, settle the task and see what is left.

        Args:
            task: what to do with the clips.
            manifest: the clips, when the job has listed them itself.
            settings: what decides the rows besides task and listing.
            placement: where to work, when it is decided already.

        Raises:
            ConfigError: anything the user has to change.
            RefusedError: the output holds rows of other settings.
        """
        flags, run = self.flags, self.run
        preload = threading.Thread(target=_preload, args=(task.preloads,), daemon=True)
        if self._connected is None:  # the model may be needed in this process
            preload.start()
        decisive: dict[str, Any] = {"rows_version": plan.ROWS_VERSION}
        clips = None if manifest is None else Manifest.of(manifest)
        if clips is None:
            decisive = plan.listing_settings(flags)
        decisive |= {"shard_s": flags.shard_s, "max_clip_s": flags.max_clip_s, **(settings or {})}
        if run.earlier is not None:
            before = run.earlier.settings
            listed = before.get("manifest") if clips is None else clips.fingerprint
            known = {**decisive, **task.settings, "manifest": listed}
            # a precision of `auto` means what it meant when the output was begun
            run.refuse_other_settings(
                {k: before.get(k) if v == "auto" else v for k, v in known.items()}
            )
        if clips is None and run.earlier is not None:
            clips = extend.stored_manifest(run)
            if flags.extend:
                clips = extend.extended(flags, run, clips)
            elif not flags.limit:
                extend.warn_of_new_files(flags.input, clips)
        elif clips is None:
            clips = plan.list_clips(flags, local=True if flags.workers == "local" else None)
        if preload.ident is not None:  # a package that another thread still imports lacks names
            preload.join()
        audio_s = clips.audio_s * len(task.variant_names)
        self.placement = placement or self._place(audio_s, gpus=task.uses_gpus)
        self.task = task.placed(self.placement, run.earlier)
        decisive |= {**self.task.settings, "manifest": clips.fingerprint}
        self.plan = plan.make_plan(flags, run, self.task.table, clips, decisive)
        if flags.retry and run.earlier is not None:
            self.plan = retry.with_failed(self.plan, flags, run.output, self.task.table)
        estimate.print_plan(run, self.plan, flags.max_clip_s, self.task.notes)

    def estimate(self) -> Exit:
        """Benchmark a worker and print what the run would take; nothing is written."""
        guess = estimate.estimate(self.plan, self.task, self.placement, self.flags.max_clip_s)
        lines = estimate.rows(self.plan, guess, self.placement, self.flags.usd_per_hour)
        progress.print_pairs("estimate (nothing was written)", lines)
        return Exit.DONE

    def execute(self, config: Mapping[str, Any] | None = None, *, share: float = 1.0) -> Exit:
        """Score what is left, check that every clip is exactly one row, write the record.

        Args:
            config: the job's flags for the record; default: all of them.
            share: score so much of what is left, drawn at random, and say what the rest takes.

        Raises:
            RaysersError: the job failed; the same command resumes.
            ConfigError: a worker refused the model before anything was scored; what this run had
                written is removed.
        """
        settings = WorkerSettings(
            output=self.run.output,
            run_id=self.run.run_id,
            stamp=self.plan.stamp,
            retry=frozenset(str(s) for s in self.flags.retry),
            max_clip_s=self.flags.max_clip_s,
            io_threads=io_threads(self.plan.clips.last_part, self.placement),
        )
        reports: Shards = {}
        worker = None
        if self.placement.local and self.plan.todo:
            worker = ShardWorker(
                settings, self.task, lambda shard, *so_far: reports.update({shard: so_far})
            )
        self._begin(as_plain(self.flags) if config is None else config)
        if not self.plan.todo:
            return self._conclude([])
        whole = self.plan
        self.plan = planned = estimate.sampled(whole, share)
        refresh: Callable[[], Shards | None] = reports.copy
        if worker is not None:
            source = ShardSource(planned.clips, planned.shards, planned.changed)
            results = _scored_here(worker, source, planned.todo)
        else:
            from raysers.engine import cluster

            monitor = cluster.new_monitor()
            place = storage.join(self.run.output, "manifest")
            read = partial(ShardSource.stored, place, planned.shards, planned.changed)
            results = cluster.run_shards(
                planned.todo, read, settings, self.task, self.placement, monitor
            )
            refresh = partial(cluster.snapshot, monitor)
        clips = int(planned.shards.clips[planned.todo].sum())
        done = self._watch(results, refresh, clips)
        if len(planned.todo) == len(whole.todo):
            return self._conclude(done)
        price = self.flags.usd_per_hour
        lines = estimate.rest(whole, done, self.placement, price)
        progress.print_pairs("what the rest takes, by this sample", lines)
        progress.print_line("the same command without --sample scores it")
        self.run.finish("stopped", {"clips": whole.clips.num_rows, "sampled": clips})
        return Exit.DONE

    def rows(self, columns: Sequence[str]) -> pa.Table:
        """Columns of all rows of the output, shard by shard."""
        where, table, shards = self.run.output, self.task.table, len(self.plan.shards)
        return output.read_all(where, table, shards, columns, stamp=self.plan.stamp)

    def _place(self, audio_s: float, *, gpus: bool) -> Placement:
        workers = self.flags.workers
        if workers == "local":
            return here(gpus=gpus)
        small = audio_s <= LOCAL_MAX_S and not workers and not plan.has_cluster()
        # after a crash, workers of their own can die on a clip without ending the job
        if small and not ledger.has_marks(self.run.output):
            return here(gpus=gpus)
        from raysers.engine import cluster

        if self._connected is not None:
            self._connected.result()
        cluster.connect()
        end_on_sigterm()  # Ray, started in another thread, put its own handler there
        return cluster.place(workers, gpus=gpus)

    def _begin(self, config: Mapping[str, Any]) -> None:
        """Write what comes before any row: manifest, `db.yaml` and, last, the record."""
        where, clips = self.run.output, self.plan.clips
        if self.run.earlier is None or len(clips.firsts) > 1:
            clips.write(storage.join(where, "manifest"))
        listed = clips.part(0).schema
        rows = output.row_schema(self.task.schema, listed.names)
        schemas = {"manifest": listed, self.task.table: rows}
        about = f"{self.run.job} of {', '.join(self.flags.input)}"
        output.write_header(where, schemas, description=about, licence=self.task.licence)
        self.run.begin(config, self.plan.settings)

    def _watch(
        self, results: Iterator[ShardResult], refresh: Callable[[], Shards | None], clips: int
    ) -> list[ShardResult]:
        """Collect the results of shards as they finish, showing progress."""
        done: list[ShardResult] = []
        rows, table = len(self.task.variant_names), self.task.table
        totals = progress.Totals(total_s=self.plan.todo_s() * rows, rows=clips * rows)
        try:
            with progress.live(totals, refresh):
                for result in results:
                    totals.finished[result.shard] = (result.audio_s, dict(result.statuses))
                    done.append(result)
                    self.run.verify()
        except ConfigError:
            if self.run.earlier is None and not done:
                # a worker refused the model: nothing is left, as if it had been found at once
                self.run.abandon()
                for folder in ("manifest", table, "_attempts"):
                    with suppress(RaysersError):
                        for found in storage.list_objects(storage.join(self.run.output, folder)):
                            storage.delete(found.uri)
                output.remove_header(self.run.output, ("manifest", table))
            raise
        return done

    def _conclude(self, done: Sequence[ShardResult]) -> Exit:
        """Check the rows, write how the run ended, print it."""
        where, table, planned = self.run.output, self.task.table, self.plan
        names = self.task.variant_names
        statuses = output.check_rows(
            where, table, planned.clips, planned.shards, names, stamp=planned.stamp
        )
        failed = 1 - statuses[Status.OK] / statuses.total()
        now_s = time.time()
        first_s = min((result.began_at for result in done), default=now_s)
        total: dict[str, float] = {
            name: sum(getattr(result, name) for result in done)
            for name in ("scored_s", "padded_s", "model_s", "wait_s", "decoded")
        }
        faults: Counter[str] = Counter()
        examples: dict[str, str] = {}
        for name, (clips, file) in (item for result in done for item in result.faults.items()):
            faults[name] += clips
            examples[name] = file
        outcome = {
            "clips": planned.clips.num_rows,
            "rows": statuses.total(),
            "statuses": dict(statuses),
            "failed_share": round(failed, 6),
            "audio_s": round(total["scored_s"], 3),
            "wall_s": round(now_s - self._began_at, 3),
            "startup_s": round(max(first_s - self._began_at, 0.0), 3),
            "model_s": round(total["model_s"], 3),
            "wait_s": round(total["wait_s"], 3),
            "workers": "local" if self.placement.local else self.placement.workers,
            "device": self.placement.device,
            "worker_peak_bytes": max((result.peak_bytes for result in done), default=0),
            "decoded": total["decoded"],
            "faults": dict(faults),
            "padding_waste": round(
                1 - total["scored_s"] / total["padded_s"] if total["padded_s"] else 0.0, 4
            ),
        }
        ledger.tidy(where)
        for folder in (where, storage.join(where, "manifest"), storage.join(where, table)):
            storage.sweep(folder)
        good = failed <= self.flags.max_failed
        self.run.finish("done" if good else "done_with_failures", outcome)
        progress.print_outcome(outcome, storage.join(where, table))
        for name, clips in faults.most_common():
            count = f"{clips:,} clips, such as" if clips > 1 else "1 clip,"
            progress.print_warning(f"{count} {examples[name]}: {FAULTS[name]}")
        if not good:
            progress.print_warning(
                f"{failed:.1%} of the rows are not ok, more than --max-failed "
                f"{self.flags.max_failed:g} allows: see the columns status and error; "
                "--retry STATUS scores such rows again"
            )
        return Exit.DONE if good else Exit.TOO_MANY_FAILED


def _preload(names: Sequence[str]) -> None:
    """Import packages; errors are raised where the package is used, not while the job ends."""
    with suppress(Exception):
        for name in names:
            importlib.import_module(name)


def _scored_here(
    worker: ShardWorker, source: ShardSource, shards: Sequence[int]
) -> Iterator[ShardResult]:
    """Score shards in this process; those in work end early when the caller stops."""
    pool = ThreadPoolExecutor(SHARDS_AT_A_TIME, thread_name_prefix="shard")
    try:
        yield from pool.map(lambda shard: worker.run(source.block(shard)), shards)
    except BaseException:
        worker.stop()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        worker.close()
