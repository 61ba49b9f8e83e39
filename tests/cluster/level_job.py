"""The tests' job as a command: a driver can be connected to one cluster only.

python -m tests.cluster.level_job CLIPS FOLDER PAUSE_S
"""

from __future__ import annotations

import sys
from pathlib import Path

from raysers.engine.job import ClipJob
from raysers.engine.listing import ClipJobFlags
from raysers.run import run_main
from tests.cluster.tasks import LevelTask


def main() -> int:
    """Score the clips by their levels, one a shard, into `out` of the folder."""
    clips, folder, pause_s = sys.argv[1:]
    flags = ClipJobFlags(input=(clips,), output=str(Path(folder) / "out"), shard_s=1.1)
    with ClipJob.open(flags, "level", table=LevelTask.table) as job:
        job.prepare(LevelTask(diary=folder, pause_s=float(pause_s)))
        return job.execute()


if __name__ == "__main__":
    sys.exit(run_main(main))
