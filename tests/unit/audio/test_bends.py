"""Files bent at random: no `ok` clip lacks audio that an independent decoder finds.

The reference is FFmpeg (PyAV). What it and libsndfile both decode in full is never refused.
"""

import pytest

pytest.importorskip("av", reason="PyAV is the reference decoder")

from tests.unit.audio.bends import KINDS, bends, by_ffmpeg, by_soundfile, mistake

BENDS = 300


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_bent_files_are_whole_or_have_a_status(kind, capfd):
    wrong = {}
    for number, data in enumerate(bends(kind, 0, BENDS // len(KINDS) + 1)):
        found = by_ffmpeg(data), by_soundfile(data)
        capfd.readouterr()
        if said := mistake(data, kind, *found):
            wrong[number] = said
        assert capfd.readouterr() == ("", "")
    assert not wrong
