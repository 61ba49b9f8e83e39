"""A manifest of clips from audio folders, prefixes, tar shards or tables.

    python jobs/index.py --input s3://bucket/calls --output s3://bucket/calls-manifest \
        --segment window --window-s 10 --hop-s 5

Reads headers only (all of the audio for --segment vad). The other jobs take OUTPUT as --input.
Result: OUTPUT/manifest/part-*.parquet, the same bytes for the same input.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from raysers.config import ListingFlags, as_plain, parse
from raysers.distributed import clipjob, cluster, planning, summary
from raysers.run import (
    Exit,
    finished,
    new_record,
    quiet_environment,
    refuse_other_settings,
    run_main,
)

JOB = "index"


@dataclass(frozen=True, kw_only=True)
class IndexFlags(ListingFlags):
    """Flags of this job."""


def index(flags: IndexFlags) -> int:
    """List, read headers, cut into clips, write; returns the exit code."""
    flags = planning.anchored(flags)
    settings = planning.listing_settings(flags)
    with planning.before_writing():
        earlier = planning.open_output(flags, JOB, "manifest")
        if earlier is not None:
            refuse_other_settings(flags.output, earlier, JOB, settings)
            if earlier.status == "done":
                print(f"{flags.output} holds this manifest already; for new files index elsewhere")
                return Exit.DONE
        cluster.connect()
        manifest = planning.list_clips(flags)
    record = new_record(JOB, as_plain(flags), settings, None)
    clipjob.begin_output(flags, JOB, manifest, {}, record)
    outcome = {"clips": manifest.num_rows, "statuses": summary.count_statuses(manifest)}
    finished(record, "done", outcome).save(flags.output)
    summary.print_statuses(outcome["statuses"])
    summary.print_manifest(manifest, flags.output)
    return Exit.DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with `argv` (default: the command line); returns the exit code."""
    quiet_environment()
    return run_main(lambda: index(parse(IndexFlags, argv, description=__doc__ or "")))


if __name__ == "__main__":
    sys.exit(main())
