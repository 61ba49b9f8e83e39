r"""Speech from texts, as clips with a manifest that every other job takes.

    raysers synthesize --templates this-is -o spoken
    raysers synthesize sentences.csv --voice random -o s3://bucket/spoken
    raysers synthesize sentences.csv -o spoken --tts-command \
        'piper --model en.onnx --input-file {text_file} --output-file {output}'

A short sentence takes espeak-ng about 8 ms of CPU. Rerunning the command resumes.

Result: OUTPUT/audio/*.wav and OUTPUT/manifest, one row per text, voice, rate and pitch, with the
text as `transcript` and every other column of the texts beside it.
"""

from __future__ import annotations

import time
from dataclasses import replace

from raysers.cli import as_plain, command
from raysers.engine import progress
from raysers.run import Exit, Run, absolute_output
from raysers.words import speaking
from raysers.words import synthesize as synthesis
from raysers.words.speaking import TABLE, Speaking
from raysers.words.synthesize import JOB, SynthesizeFlags, check


def synthesize(flags: SynthesizeFlags) -> int:
    """Read, plan, speak what is left, conclude; returns the exit code."""
    flags.check()
    flags = replace(flags, output=absolute_output(flags.output))
    with Run.open(JOB, flags.output, table=TABLE, dry_run=flags.dry_run) as run:
        read, engine = check(flags, run), flags.engine
        pool = speaking.worker_pool(flags.workers)
        plan = synthesis.utterances(
            read.table, flags.variants, engine, run.output, f".{flags.audio_format}"
        )
        blocks = synthesis.shard_blocks(plan)
        again = frozenset(map(str, flags.retry))
        left = synthesis.shards_left(run.output, blocks, again)
        for note in read.notes:
            progress.print_warning(note)
        line = f"{JOB}: {len(read.table):,} texts, {len(plan):,} sound files, {len(blocks)} shards"
        todo = sum(map(len, left))
        print(line if todo == len(plan) else f"{line}; {todo:,} left", flush=True)
        if flags.dry_run:
            estimate = speaking.estimate(left, engine, pool)
            progress.print_pairs("estimate (nothing was written)", estimate)
            return Exit.DONE
        started_s = time.perf_counter()
        synthesis.write_header(run.output, plan, flags.texts or ", ".join(flags.templates))
        run.begin(as_plain(flags), flags.settings(read.table))
        settings = Speaking(
            engine=engine,
            output=run.output,
            run_id=run.run_id,
            audio_format=flags.audio_format,
            redo=again,
            resumed=run.earlier is not None,
        )
        speaking.run_shards(left, settings, pool)
        wall_s = time.perf_counter() - started_s
        return synthesis.conclude(
            run, plan, len(blocks), wall_s=wall_s, max_failed=flags.max_failed
        )


main = command(SynthesizeFlags, synthesize, __doc__ or "", positional="texts")
