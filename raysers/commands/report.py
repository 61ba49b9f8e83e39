"""Tables and figures of any runs as one page that works from a disk.

    raysers report ANNOTATED -o REPORT          your archive, with clips to play
    raysers report EVALUATED ROBUSTNESS STUDY -o REPORT

Seconds; a map of embeddings takes some more. Needs no cluster; an archive of a million clips takes
under a minute and 2 GB. The page names missing data, with the command that produces it.

Result: REPORT/index.html, its figures in REPORT/figures as SVG and PNG; of archives excerpts of
audio in REPORT/audio, and REPORT/rate.csv, a table of clips to rate by hand.
"""

from __future__ import annotations

from dataclasses import dataclass

from raysers.cli import Output, Uris, as_plain, command
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.report.archive import AudioMode
from raysers.report.evidence import read_evidence
from raysers.report.report import PAGE, write_report
from raysers.run import Exit, Run, with_absolute_paths

JOB = "report"


@dataclass(frozen=True, kw_only=True)
class ReportFlags:
    """Flags of this job."""

    runs: Uris
    """Output folders of the other jobs; each is known by its run.json."""
    output: Output
    """Folder or s3:// prefix for the page and its figures."""
    audio: AudioMode = "copy"
    """Audio of the clips to listen to: short excerpts beside the page, links to the files, none."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        if not self.runs:
            raise ConfigError("--runs is empty: give the output folders of other jobs")
        if not self.output:
            raise ConfigError("--output is empty: give a folder or an s3:// prefix")


def report(flags: ReportFlags) -> int:
    """Read the runs, write page and figures, say what is missing; returns the exit code."""
    flags = with_absolute_paths(flags, "runs")
    runs, output = flags.runs, flags.output
    if output in runs:
        raise ConfigError(f"--output {output} is one of --runs: choose another folder")
    settings = {"runs": list(runs)}
    with Run.open(JOB, output) as run:
        run.refuse_other_settings(settings)
        found = read_evidence(runs)
        run.begin(as_plain(flags), settings)
        names, missing = write_report(found, output, flags.audio)
        outcome = {
            "runs": len(runs),
            "figures": names,
            "missing": [f"{one.name}: {one.why}" for one in missing],
        }
        run.finish("done", outcome)
    if missing:
        print(f"not in these runs: {', '.join(one.name for one in missing)} (the page says how)")
    print(f"report: {storage.join(output, PAGE)}")
    return Exit.DONE


main = command(ReportFlags, report, __doc__ or "", positional="runs")
