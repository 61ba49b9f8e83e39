"""Files bent at random against an independent decoder: how many are cut in silence or refused.

The suite bends 300; every mistake is printed as a line of its own, with what makes it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.benchmarks.measure import Line, Scale, cores, judged

#: Bends that one process does in one go, from one seed.
_GO = 50


def bends(scale: Scale) -> Iterator[Line]:
    """One line per mistake, then one with their count."""
    from tests.unit.audio.bends import KINDS  # which needs PyAV

    goes = [(kind, seed) for kind in KINDS for seed in range(-(-scale.bends // _GO // len(KINDS)))]
    done = found = 0
    with ProcessPoolExecutor(cores(), mp_context=get_context("spawn")) as pool:
        for (kind, seed), wrong in zip(goes, pool.map(_bend, goes), strict=True):
            done += _GO
            found += len(wrong)
            for mistake in wrong:
                yield {"bench": "bends", "audio": "-".join(kind), "seed": seed, **mistake}
    yield judged({"bench": "bends", "files": done}, ratio=found, target=0, lower=True)


def _bend(go: tuple[tuple[str, str], int]) -> list[Line]:
    from tests.unit.audio.bends import bends, by_ffmpeg, by_soundfile, mistake

    wrong = []
    for number, data in enumerate(bends(*go, _GO)):
        if said := mistake(data, go[0], by_ffmpeg(data), by_soundfile(data)):
            wrong.append({"number": number, "mistake": said})
    return wrong
