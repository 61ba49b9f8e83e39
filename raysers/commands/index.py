r"""A manifest of clips from audio folders, prefixes, tar shards or tables.

    raysers index s3://bucket/calls -o s3://bucket/calls-manifest \
        --segment window --window-s 10 --hop-s 5
    raysers index emodb -o M --corpus emodb --emotion-map russell-mehrabian

Reads headers only (all of the audio for --segment vad). The other jobs take OUTPUT as --input.
With --corpus, each --input is the folder of a corpus; speaker, sex, split, transcript and labels go
into the manifest.

Result: OUTPUT/manifest/part-*.parquet, the same bytes for the same input.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from raysers.cli import CorpusName, ListingFlags, as_plain, command
from raysers.data.manifest import Manifest
from raysers.engine import listing, output, progress
from raysers.engine.listing import index_labelled
from raysers.io.storage import absolute, join, suffix_of
from raysers.run import Exit, Run

JOB = "index"


@dataclass(frozen=True, kw_only=True)
class IndexFlags(ListingFlags):
    """Flags of this job."""

    corpus: CorpusName = "none"
    """Which corpus the folders are, for labels; auto recognises them, none takes plain audio."""
    emotion_map: str = ""
    """Map from categories to missing dimensions: russell-mehrabian, or a YAML file."""
    speakers: str = ""
    """CSV with video or speaker, and sex, for corpora without them."""

    def label_settings(self) -> dict[str, str]:
        """Where labels come from; empty without any, so that older outputs stay valid."""
        if self.corpus == "none" and not (self.emotion_map or self.speakers):
            return {}
        is_file = "/" in self.emotion_map or bool(suffix_of(self.emotion_map))
        return {
            "corpus": self.corpus,
            "emotion_map": absolute(self.emotion_map) if is_file else self.emotion_map,
            "speakers": absolute(self.speakers) if self.speakers else "",
        }


def index(flags: IndexFlags) -> int:
    """List, read headers, cut into clips, write; returns the exit code."""
    flags = listing.with_absolute_paths(flags)
    labels = flags.label_settings()
    settings = listing.listing_settings(flags) | labels
    with Run.open(JOB, flags.output) as run:
        run.refuse_other_settings(settings)
        if run.earlier is not None and run.earlier.status == "done":
            print(f"{run.output} holds this manifest already; for new files index elsewhere")
            return Exit.DONE
        if labels:
            segmenting = listing.segmenting(flags)
            table, notes = index_labelled(
                flags.input, **labels, segmenting=segmenting, limit=flags.limit
            )
            manifest = Manifest.of(table)
            listing.refuse_unseen_input(manifest)
        else:
            manifest, notes = listing.list_clips(flags), []
        for note in notes:
            progress.print_warning(note)
        manifest.write(join(run.output, "manifest"))
        about = f"{JOB} of {', '.join(flags.input)}"
        output.write_header(run.output, {"manifest": manifest.part(0).schema}, description=about)
        run.begin(as_plain(flags), settings)
        counts = (progress.count_statuses(part) for part in manifest.parts(["status"]))
        statuses = sum(map(Counter, counts), Counter())
        outcome = {"clips": manifest.num_rows, "statuses": dict(statuses)}
        run.finish("done", outcome)
        progress.print_statuses(statuses)
        progress.print_manifest(manifest.num_rows, manifest.audio_s, run.output)
    return Exit.DONE


main = command(IndexFlags, index, __doc__ or "", positional="input")
