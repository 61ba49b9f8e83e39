"""Flags that every job takes, beside its own."""

from __future__ import annotations

import os

from raysers.cli import parse
from raysers.engine.listing import ClipJobFlags
from raysers.io.storage import REQUESTER_PAYS


def test_shared_flags_stand_anywhere_and_the_command_line_wins(tmp_path, monkeypatch):
    monkeypatch.setenv(REQUESTER_PAYS, "0")
    config = tmp_path / "config.yaml"
    lines = ["limit: 0", "hop-s: 2", "segment: window", "retry: [missing, truncated]"]
    config.write_text("\n".join([*lines, "dry_run: true"]))
    given = ["--input", "a b", "--config", str(config), "--output", "o", "--hop-s", "3"]
    flags = parse(ClipJobFlags, given, description="")
    assert flags.input == ("a b",)
    assert (flags.output, flags.limit, flags.hop_s, flags.segment) == ("o", 0, 3.0, "window")
    assert (flags.retry, flags.dry_run) == (("missing", "truncated"), True)
    assert os.environ[REQUESTER_PAYS] == "0"
    parse(ClipJobFlags, ["--input", "a", "--requester-pays", "--output", "o"], description="")
    assert os.environ[REQUESTER_PAYS] == "1"
    config.write_text("output: elsewhere")
    given = ["--input", "a", "--config", str(config)]
    assert parse(ClipJobFlags, given, description="", output="emotions").output == "elsewhere"


def test_an_empty_value_in_a_file_is_a_value(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text('audio-stream: ""\nmodel: null\nretry: []\nextend: false')
    given = ["--input", "a", "-o", "b", "--config", str(config)]
    flags = parse(ClipJobFlags, given, description="")
    assert flags.audio_stream == ""  # and not the default, 0
    assert (flags.model, flags.retry, flags.extend) == ("raysers-base", (), False)
