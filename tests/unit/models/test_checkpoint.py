"""Model folders in which a file is none: refused in one line that names it, at once."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from raysers.errors import CheckpointError
from raysers.models import checkpoint

FILES = ("config.json", "model.safetensors", "vocab.json", "merges.txt")


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listener(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def link_out(path: Path) -> None:
    outside = path.parent.parent / "outside.json"
    outside.write_text("{}")
    path.symlink_to(outside)


def folder(path: Path) -> None:
    path.mkdir()


def too_big(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("make", [device, pipe, listener, link_out, folder, too_big])
def test_no_file_is_read_without_end_or_from_elsewhere(
    model: Path, name: str, make: Callable[[Path], None]
) -> None:
    checkpoint.check_folder(model)
    (model / name).unlink()
    make(model / name)
    if name.endswith(".safetensors") and make is too_big:
        return checkpoint.check_folder(model)  # sparse, and the reader checks it
    with pytest.raises(CheckpointError) as raised:
        checkpoint.check_folder(model)
    assert str(model / name) in str(raised.value)
    assert "\n" not in str(raised.value)
    if name.endswith(".json") and make is not link_out:
        with pytest.raises(CheckpointError, match=name):
            checkpoint.read_json(model / name)
    return None


def test_links_of_the_hubs_cache_and_within_the_folder_work(model: Path) -> None:
    cache = model.parent / "models--owner--name"
    (cache / "snapshots" / "abc").mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, name in enumerate(FILES):
        shutil.move(model / name, cache / "blobs" / str(number))
        (cache / "snapshots" / "abc" / name).symlink_to(f"../../blobs/{number}")
    checkpoint.check_folder(cache / "snapshots" / "abc")
    (model / "a.json").write_text("{}")
    (model / "b.json").symlink_to("a.json")
    (model / "gone.json").symlink_to("nowhere")
    (model.parent / "linked").symlink_to(model)
    checkpoint.check_folder(model)
    checkpoint.check_folder(model.parent / "linked")
    (cache / "snapshots" / "abc" / "x.json").symlink_to("../../../outside.json")
    (cache.parent / "outside.json").write_text("{}")
    with pytest.raises(CheckpointError, match="out of the model folder"):
        checkpoint.check_folder(cache / "snapshots" / "abc")


#: Sizes of real models of other kinds: text encoders, recognisers.
KNOWN_SIZES = [
    {"vocab_size": 250_002, "type_vocab_size": 0, "max_relative_positions": -1},
    {"vocab_size": 51_866, "max_target_positions": 448, "suppress_tokens": list(range(90))},
    {"conv_dim": [512] * 7, "tdnn_dim": [512, 512, 512, 512, 1500], "vocab_size": None},
    {"num_train_samples": 10**6, "seed": 2**60, "freeze_layers": False, "model_size": "large"},
]
NO_SIZES = [
    {"hidden_size": 65_537},
    {"num_hidden_layers": 10**5},
    {"vocab_size": 10**7},
    {"conv_dim": [1] * 33},
    {"conv_stride": [0]},
    {"num_conv_pos_embeddings": -2},
]


@pytest.mark.parametrize("config", KNOWN_SIZES)
def test_sizes_of_real_models_pass(config: dict[str, object]) -> None:
    checkpoint.check_numbers(config, "model")


@pytest.mark.parametrize("config", NO_SIZES)
def test_sizes_of_no_model_are_refused_by_name(config: dict[str, object]) -> None:
    for content in (config, {"model_type": "whisper", "text_config": config}):
        with pytest.raises(CheckpointError, match=next(iter(config))):
            checkpoint.check_numbers(content, "model")
