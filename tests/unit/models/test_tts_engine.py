"""Which voice a text gets, what cannot be spoken, and what a command may not ask for."""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import pytest

from raysers.errors import ClipError, ConfigError
from raysers.models import tts
from raysers.models.tts_command import speech_program
from raysers.models.tts_engine import NEUTRAL, RANDOM, Engine, Line

pytest.importorskip("espeakng_loader")


def line(text, **how):
    return Line(
        **{"text": text, "language": None, "voice": "en-us", "rate_wpm": 175, "pitch": 50} | how
    )


def command(arguments):
    program = speech_program(f"{sys.executable} {arguments}", timeout_s=5, folder="/")
    return Engine(program=program)


@pytest.mark.parametrize(
    ("language", "voice"),
    [(None, "en-us"), ("", "en-us"), ("en", "en-us"), ("de", "de"), ("DE", "de"), ("fr_CA", "fr"),
     ("en-GB", "en-gb"), ("xx", "xx"), ("deu", "de"), ("fra-CA", "fr"), ("zh", "cmn"),
     ("zh-CN", "cmn"), ("no", "nb")],
)  # fmt: skip
def test_the_neutral_voice_is_the_plain_one_of_the_language(language, voice):
    assert Engine().voice_for(NEUTRAL, "hello", language) == voice


def test_random_voices_are_a_function_of_seed_and_text():
    texts = [f"sentence {i}" for i in range(400)]
    drawn = {seed: [Engine(seed=seed).voice_for(RANDOM, t, "de") for t in texts] for seed in (0, 1)}
    assert drawn[0] == [Engine(seed=0).voice_for(RANDOM, t, "de") for t in reversed(texts)][::-1]
    assert drawn[0] != drawn[1]
    counts = Counter(drawn[0])
    assert all(voice.partition("+")[0] == "de" for voice in counts)
    assert {voice.partition("+")[2] for voice in counts} <= {"", *tts.variants()}
    # 14 speakers: each is expected 29 times; 6 or 60 would be a chance of less than 1 in 10,000
    assert len(counts) == 14
    assert 6 < min(counts.values()) <= max(counts.values()) < 60


def test_espeak_speaks_what_the_line_says():
    said, rate_hz = Engine().speak(line("hello there", voice="en-gb+f3", rate_wpm=120, pitch=70))
    expected, _ = tts.speak("hello there", voice="en-gb", variant="f3", rate_wpm=120, pitch=70)
    assert np.array_equal(said, expected)
    assert rate_hz == 22_050


@pytest.mark.parametrize(
    ("text", "how", "status", "message"),
    [
        (" \n\t", {}, "empty", "blank"),
        ("...", {}, "empty", "nothing in the text is pronounced"),
        ("\u200b", {}, "empty", "nothing"),
        ("a" * 20_001, {}, "too_long", "20,001 characters"),
        ("hello", {"voice": "xx"}, "model_error", "unknown voice 'xx'"),
    ],
)
def test_what_cannot_be_spoken_has_a_status(text, how, status, message):
    with pytest.raises(ClipError, match=message) as caught:
        Engine().speak(line(text, **how))
    assert caught.value.status == status


def test_silence_of_a_program_is_empty_speech(tmp_path):
    source = (
        "import sys, wave\n"
        "out = wave.open(sys.argv[1], 'wb')\n"
        "out.setparams((1, 2, 9, 0, 'NONE', ''))\n"
        "out.writeframes(bytes(80))\n"
    )
    (tmp_path / "mute.py").write_text(source)
    with pytest.raises(ClipError) as caught:
        command(f"{tmp_path}/mute.py {{output}}").speak(line("hello"))
    assert caught.value.status == "empty"


@pytest.mark.parametrize(
    ("voices", "rates", "pitches", "message"),
    [
        (["en-usx"], [], [], "--voice en-usx"),
        (["en-us+nobody"], [], [], "no speaker 'nobody'"),
        ([NEUTRAL], [20], [], "--rate is 20: give 80 to 450"),
        ([NEUTRAL], [], [100], "--pitch is 100: give 0 to 99"),
    ],
)
def test_espeak_refuses_what_it_does_not_have(voices, rates, pitches, message):
    with pytest.raises(ConfigError, match=message):
        Engine().check(voices, rates, pitches)


@pytest.mark.parametrize(
    ("arguments", "voices", "rates", "message"),
    [
        ("{output}", ["anna"], [], r"--voice anna: --tts-command has no \{voice\}"),
        ("{output}", [NEUTRAL], [100], r"has no \{rate\}"),
        ("{output} {voice}", [NEUTRAL], [], "say which with --voice"),
        ("{output} {rate}", [NEUTRAL], [], "say which with --rate"),
        ("{output} {voice}", [RANDOM], [], "--voice random"),
    ],
)
def test_flags_and_placeholders_have_to_agree(arguments, voices, rates, message):
    with pytest.raises(ConfigError, match=message):
        command(arguments).check(voices, rates, [])


def test_a_program_that_is_not_installed_is_found_out_before_anything_is_written():
    engine = Engine(program=speech_program("no-such-tts", timeout_s=5, folder="/"))
    with pytest.raises(ConfigError, match="no program 'no-such-tts'"):
        engine.check([NEUTRAL], [], [])
    command("{output} {voice}").check(["anna", "bert"], [], [])
