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
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa

from raysers.audio.samples import FAULTS
from raysers.cli import as_plain
from raysers.data.manifest import Manifest
from raysers.data.shards import ShardSource
from raysers.data.sources import list_inputs
from raysers.engine import listing, output, plan, progress
from raysers.engine.listing import ClipJobFlags
from raysers.engine.placement import Placement, connecting, here, io_threads
from raysers.engine.plan import Plan
from raysers.engine.progress import Shards, Totals
from raysers.engine.worker import ClipTask, ShardResult, ShardWorker, WorkerSettings
from raysers.errors import ConfigError, RaysersError
from raysers.io import marks, storage
from raysers.run import Exit, Run, end_on_sigterm
from raysers.types import Status

#: Fewer clips are not worth another process that decodes.
CLIPS_PER_PROCESS = 64
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
        self.flags, self.run = flags, run
        self._began_at = time.time()
        self._connected: Future[None] | None = None

    @classmethod
    @contextmanager
    def open(cls, flags: ClipJobFlags, name: str, *, table: str) -> Iterator[ClipJob]:
        """Check the flags, claim the output, and begin to join the cluster if one is needed."""
        flags = listing.with_absolute_paths(flags)
        with Run.open(name, flags.output, table=table, dry_run=flags.dry_run) as run:
            if run.earlier is None:
                list_inputs(flags.input)  # only looks at each: a misspelt one costs no start
            job = cls(flags, run)
            if flags.workers != "local" and (flags.workers or listing.has_cluster()):
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

        `manifest` and `placement` are for jobs that have decided these already; `settings` decide
        the rows besides task and listing. Raises RefusedError where the output holds rows of other
        settings.
        """
        flags, run = self.flags, self.run
        preload = threading.Thread(target=_preload, args=(task.preloads,), daemon=True)
        if self._connected is None:  # the model may be needed in this process
            preload.start()
        clips = None if manifest is None else Manifest.of(manifest)
        own: dict[str, Any] = {"rows_version": listing.ROWS_VERSION}
        decisive = own if clips is not None else listing.listing_settings(flags)
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
            clips = plan.stored_manifest(run)
            if flags.extend:
                clips = plan.extended(flags, run, clips)
            elif not flags.limit:
                plan.warn_of_new_files(flags.input, clips)
        elif clips is None:
            clips = listing.list_clips(flags, local=True if flags.workers == "local" else None)
        if preload.ident is not None:  # a package that another thread still imports lacks names
            preload.join()
        audio_s = clips.audio_s * len(task.variant_names)
        self.placement = placement or self._place(audio_s, gpus=task.uses_gpus)
        asked, most = flags.decode_processes, clips.num_rows // CLIPS_PER_PROCESS
        beside = min(self.placement.decode_processes, most) if asked == "auto" else asked
        self.placement = replace(self.placement, decode_processes=beside)
        self.task = task.placed(self.placement, run.earlier)
        decisive |= {**self.task.settings, "manifest": clips.fingerprint}
        self.plan = plan.make_plan(flags, run, self.task.table, clips, decisive)
        if flags.retry and run.earlier is not None:
            self.plan = plan.with_failed(self.plan, flags, run.output, self.task.table)
        begun = run.earlier.started_at if run.earlier else ""
        progress.print_plan(run.job, begun, self.plan, flags.max_clip_s, self.task.notes)

    def estimate(self) -> Exit:
        """Benchmark a worker and print what the run would take; nothing is written."""
        guess = progress.estimate(self.plan, self.task, self.placement, self.flags.max_clip_s)
        progress.print_estimate(self.plan, guess, self.placement, self.flags.usd_per_hour)
        return Exit.DONE

    def execute(self, config: Mapping[str, Any] | None = None, *, share: float = 1.0) -> Exit:
        """Score what is left, check that every clip is exactly one row, write the record.

        `config` is for the record (default: all flags). With a `share`, score so much of what is
        left, drawn at random, and say what the rest takes. Raises ConfigError where a worker
        refused the model before anything was scored; what this run had written is removed.
        """
        settings = WorkerSettings(
            output=self.run.output,
            run_id=self.run.run_id,
            stamp=self.plan.stamp,
            retry=frozenset(str(s) for s in self.flags.retry),
            max_clip_s=self.flags.max_clip_s,
            io_threads=io_threads(self.plan.clips.last_part, self.placement),
            decode_processes=self.placement.decode_processes,
        )
        reports: Shards = {}
        worker = None
        if self.placement.local and self.plan.todo:
            worker = ShardWorker(
                settings, self.task, lambda shard, *so_far: reports.update({shard: so_far})
            )
        self._begin(as_plain(self.flags) if config is None else config)
        if not self.plan.todo:
            return self._conclude(progress.Totals())
        whole = self.plan
        self.plan = planned = progress.sampled(whole, share)
        refresh: Callable[[], Shards | None] = reports.copy
        if worker is not None:
            source = ShardSource(planned.clips, planned.shards, planned.changed)
            at_a_time = self.placement.shards_in_flight
            results = _scored_here(worker, source, planned.todo, reports, at_a_time)
        else:
            from raysers.engine import cluster

            monitor = cluster.new_monitor()
            place = storage.join(self.run.output, "manifest")
            read = partial(ShardSource, place, planned.shards, planned.changed)
            results = cluster.run_shards(
                planned.todo, read, settings, self.task, self.placement, monitor
            )
            refresh = partial(cluster.snapshot, monitor)
        clips = int(planned.shards.clips[planned.todo].sum())
        done = self._watch(results, refresh, clips)
        if len(planned.todo) == len(whole.todo):
            return self._conclude(done)
        progress.print_rest(whole, planned, done, self.placement, self.flags.usd_per_hour)
        self.run.finish("stopped", {"clips": whole.clips.num_rows, "sampled": clips})
        return Exit.DONE

    def rows(self, columns: Sequence[str]) -> pa.Table:
        """Columns of all rows of the output, shard by shard."""
        where, table, shards = self.run.output, self.task.table, len(self.plan.shards)
        return output.read_all(where, table, shards, columns, stamp=self.plan.stamp)

    def write_header(self, **more: pa.Schema) -> None:
        """Write `db.yaml` and the card, of manifest, rows and `more` tables."""
        listed = self.plan.clips.part(0).schema
        rows = output.row_schema(self.task.schema, listed.names)
        schemas = {"manifest": listed, self.task.table: rows, **more}
        about = f"{self.run.job} of {', '.join(self.flags.input)}"
        output.write_header(self.run.output, schemas, description=about, licence=self.task.licence)

    def _place(self, audio_s: float, *, gpus: bool) -> Placement:
        workers = self.flags.workers
        if workers == "local":
            return here(gpus=gpus)
        small = audio_s <= LOCAL_MAX_S and not workers and not listing.has_cluster()
        # after a crash, workers of their own can die on a clip without ending the job
        if small and not marks.has_attempts(self.run.output):
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
        self.write_header()
        self.run.begin(config, self.plan.settings)

    def _watch(
        self, results: Iterator[ShardResult], refresh: Callable[[], Shards | None], clips: int
    ) -> Totals:
        """Collect the results of shards as they finish, showing progress."""
        rows, table = len(self.task.variant_names), self.task.table
        done = Totals(total_s=self.plan.todo_s() * rows, rows=clips * rows)
        try:
            with progress.live(done, refresh):
                for result in results:
                    done.add(result)
                    self.run.verify()
        except ConfigError:
            if self.run.earlier is None and not done.shards:
                # a worker refused the model: nothing is left, as if it had been found at once
                self.run.abandon()
                for folder in ("manifest", table, "_attempts"):
                    with suppress(RaysersError):
                        for found in storage.list_objects(storage.join(self.run.output, folder)):
                            storage.delete(found.uri)
                output.remove_header(self.run.output, ("manifest", table))
            raise
        return done

    def _conclude(self, done: Totals) -> Exit:
        """Check the rows, write how the run ended, print it."""
        where, table, planned = self.run.output, self.task.table, self.plan
        names = self.task.variant_names
        statuses = output.check_rows(
            where, table, planned.clips, planned.shards, names, stamp=planned.stamp
        )
        failed = 1 - statuses[Status.OK] / statuses.total()
        now_s, total = time.time(), done.sums
        startup_s = min(done.began_at, now_s) - self._began_at
        faults = Counter({name: clips for name, (clips, _) in done.faults.items()})
        outcome = {
            "clips": planned.clips.num_rows,
            "rows": statuses.total(),
            "statuses": dict(statuses),
            "failed_share": round(failed, 6),
            "audio_s": round(total["scored_s"], 3),
            "wall_s": round(now_s - self._began_at, 3),
            "startup_s": round(max(startup_s, 0.0), 3),
            "model_s": round(total["model_s"], 3),
            "wait_s": round(total["wait_s"], 3),
            "workers": "local" if self.placement.local else self.placement.workers,
            "device": self.placement.device,
            "worker_peak_bytes": done.peak_bytes,
            "decoded": total["decoded"],
            "faults": dict(faults),
            "padding_waste": round(
                1 - total["scored_s"] / total["padded_s"] if total["padded_s"] else 0.0, 4
            ),
        }
        marks.tidy(where)
        for folder in (where, storage.join(where, "manifest"), storage.join(where, table)):
            storage.sweep(folder)
        good = failed <= self.flags.max_failed
        self.run.finish("done" if good else "done_with_failures", outcome)
        progress.print_outcome(outcome, storage.join(where, table))
        for name, clips in faults.most_common():
            count = f"{clips:,} clips, such as" if clips > 1 else "1 clip,"
            progress.print_warning(f"{count} {done.faults[name][1]}: {FAULTS[name]}")
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
    worker: ShardWorker, source: ShardSource, shards: Sequence[int], reports: Shards, at_a_time: int
) -> Iterator[ShardResult]:
    """Score shards in this process; those in work end early when the caller stops."""
    pool = ThreadPoolExecutor(at_a_time, thread_name_prefix="shard")
    try:
        for result in pool.map(lambda shard: worker.run(source.block(shard)), shards):
            reports.pop(result.shard, None)
            yield result
    except BaseException:
        worker.stop()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        worker.close()
