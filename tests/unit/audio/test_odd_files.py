"""Every odd file of the collection has one fate, decided by hand here."""

import csv

import av
import numpy as np
import pytest
import soundfile as sf
import soxr

from raysers.audio.decode import decode, probe
from raysers.errors import ClipError
from raysers.types import Status
from tests.places import SHARED_DATA, needs_shared

ODD = SHARED_DATA / "ci" / "odd"

#: What each file is, as a start of its name, with its fate when decoded whole.
FATES = {
    "cpy_pluck-alaw.aifc": Status.OK,
    "cpy_pluck-pcm8.wav": Status.OK,
    "emodb_03a01Fa.mp3": Status.OK,
    "hound_crash-24728523": Status.UNREADABLE,
    "hound_crash-e5471f5b": Status.UNREADABLE,
    "hound_nonstandard-01.wav": Status.OK,
    "hound_oom-48ae4cd0": Status.UNREADABLE,
    "hound_pcmwaveformat-24bit-4byte-48kHz-stereo.wav": Status.OK,
    "hound_pop.wav": Status.OK,
    "hound_waveformatextensible-24bit-192kHz-mono.wav": Status.OK,
    "hound_waveformatextensible-24bit-4byte-48kHz-stereo.wav": Status.OK,
    "hound_waveformatextensible-ieeefloat-44100Hz-mono.wav": Status.NOT_FINITE,
    "lfs_1001_IEO_ANG_HI.wav": Status.UNREADABLE,
    "lh_common_voice_en_651325.mp3": Status.OK,
    "lh_real_8ch.wav": Status.OK,
    "lh_stereo.mp3": Status.OK,
    "ps_awful.wav": Status.UNSUPPORTED,
    "ps_bad.wav": Status.UNREADABLE,
    "ps_evil.wav": Status.UNREADABLE,
    "ps_goforward.raw": Status.UNSUPPORTED,
    "ps_null.wav": Status.EMPTY,
    "pydub_bach.ogg": Status.UNSUPPORTED,
    "pydub_test1_empty.wav": Status.EMPTY,
    "pydub_test5.webm": Status.UNSUPPORTED,
    "pydub_wrong_extension.aac": Status.UNSUPPORTED,
    "sb_example1.wav": Status.UNREADABLE,
    "scipy_test-44100Hz-be-1ch-4bytes.wav": Status.OK,
    "scipy_test-44100Hz-le-1ch-4bytes-early-eof-no-data.wav": Status.UNREADABLE,
    "scipy_test-44100Hz-le-1ch-4bytes-early-eof.wav": Status.TRUNCATED,
    "scipy_test-44100Hz-le-1ch-4bytes-incomplete-chunk.wav": Status.UNREADABLE,
    "scipy_test-48000Hz-2ch-64bit-float-le-wavex.wav": Status.OK,
    "scipy_test-8000Hz-le-1ch-1byte-ulaw.wav": Status.OK,
    "scipy_test-8000Hz-le-3ch-5S-24bit-inconsistent.wav": Status.OK,
    "scipy_test-8000Hz-le-3ch-5S-53bit.wav": Status.UNSUPPORTED,
    "sr_audio-stereo-24-bit-44100Hz.flac": Status.OK,
    "sr_french.aiff": Status.OK,
    "trunc_20_03a01Fa.wav": Status.UNREADABLE,
    "trunc_30395_03a01Fa.wav": Status.TRUNCATED,
    "trunc_44_03a01Fa.wav": Status.TRUNCATED,
    "trunc_45_03a01Fa.wav": Status.TRUNCATED,
    "tt_8khz_5s.opus": Status.OK,
    "tt_adpcm.wav": Status.OK,
    "tt_empty_file.wav": Status.EMPTY,
    "tt_gsm_6_10.wav": Status.OK,
    "tt_id3_header_with_a_zero_byte.wav": Status.OK,
    "tt_ilbm.aiff": Status.UNSUPPORTED,
    "tt_invalid_file.wav": Status.UNREADABLE,
    "tt_invalid_sample_rate.aiff": Status.UNREADABLE,
    "tt_mp3_audio.wav": Status.OK,
    "ünïcode näme": Status.OK,
}

#: Words a message must hold for its reader to know what to do.
HINTS = {
    "lfs_1001_IEO_ANG_HI.wav": "git lfs pull",
    "sb_example1.wav": "symbolic link",
    "pydub_wrong_extension.aac": "MP4",
    "pydub_test5.webm": "WebM",
    "pydub_bach.ogg": "Ogg/FLAC",
    "tt_ilbm.aiff": "image",
    "ps_goforward.raw": "headerless",
    "hound_waveformatextensible-ieeefloat-44100Hz-mono.wav": "samples of 1.64e+04",
    "ps_awful.wav": "1092676 Hz",
    "trunc_30395_03a01Fa.wav": "promises 1.898 s, the file holds 0.948 s",
}

pytestmark = needs_shared


def path_of(start: str) -> str:
    (path,) = [p for p in ODD.iterdir() if p.name == start or p.name.startswith(start)]
    return str(path)


def fate_of(source, name: str) -> tuple[Status, str]:
    try:
        decode(source, name=name)
    except ClipError as error:
        return error.status, error.message
    return Status.OK, ""


def test_every_odd_file_is_listed():
    with open(ODD / "manifest.csv", newline="", encoding="utf-8") as file:
        listed = {row["file"] for row in csv.DictReader(file)}
    on_disk = {p.name for p in ODD.iterdir()} - {"manifest.csv"}
    assert on_disk == listed
    assert {path_of(start) for start in FATES} == {str(ODD / name) for name in listed}


@pytest.mark.parametrize("start", sorted(FATES))
def test_path_and_file_object_share_the_decided_fate(start, monkeypatch):
    monkeypatch.setattr("raysers.audio.libav.library", lambda: None)
    path = path_of(start)
    fate, message = fate_of(path, start)
    assert fate == FATES[start], message
    assert HINTS.get(start, "") in message
    with open(path, "rb") as file:
        assert fate_of(file, start) == (fate, message)


@pytest.mark.parametrize("start", sorted(k for k, v in FATES.items() if v is Status.OK))
def test_good_ones_decode_as_by_hand(start):
    path = path_of(start)
    native, rate_hz = sf.read(path, dtype="float64", always_2d=True)
    expected = soxr.resample(native.mean(axis=1).astype(np.float32), rate_hz, 16000)
    signal = decode(path, name=start)
    assert signal.dtype == np.float32
    assert signal.size >= 1
    if expected.size:
        # lossy decoders may count their last, padded frame differently
        assert abs(signal.size - expected.size) <= 400
        n = min(signal.size, expected.size)
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(signal[:n], expected[:n], atol=1e-6 * scale)


@pytest.mark.parametrize(
    "start", ["pydub_bach.ogg", "pydub_test5.webm", "pydub_wrong_extension.aac"]
)
def test_what_pyav_reads_is_decoded_as_by_hand(start):
    resampler = av.AudioResampler(format="fltp")
    with av.open(path_of(start)) as file:
        frames = [part for frame in file.decode(audio=0) for part in resampler.resample(frame)]
    native = np.concatenate([frame.to_ndarray() for frame in frames], axis=1).mean(axis=0)
    expected = soxr.resample(native, frames[0].sample_rate, 16000)
    signal = decode(path_of(start), name=start)
    assert abs(signal.size - expected.size) <= 400
    # behind the packet that the WebM lacks at 1.328 s, its times count and not its samples
    n = 21_000 if start.endswith("webm") else min(signal.size, expected.size) - 400
    np.testing.assert_allclose(signal[:n], expected[:n], atol=1e-5)


def test_16_khz_speech_passes_bit_for_bit():
    path = path_of("ünïcode näme")
    native, _ = sf.read(path, dtype="float32")
    assert np.array_equal(decode(path, name="x"), native)


def test_probe_tells_of_the_cut_without_decoding():
    info = probe(path_of("trunc_30395_03a01Fa.wav"), name="x")
    assert (info.frames, info.promised_frames) == (15175, 30372)
    assert (info.sample_rate_hz, info.channels, info.codec) == (16000, 1, "WAV/PCM_16")


def test_the_part_before_a_cut_is_good():
    whole, _ = sf.read(path_of("emodb_03a01Fa.mp3"), dtype="float32")
    cut = path_of("trunc_30395_03a01Fa.wav")
    assert np.array_equal(decode(cut, name="x", end_ns=900_000_000), whole[:14400])
    with pytest.raises(ClipError) as caught:
        decode(cut, name="x", start_ns=500_000_000, end_ns=1_000_000_000)
    assert caught.value.status is Status.TRUNCATED
