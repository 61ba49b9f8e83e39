"""Checkpoints: what loads gives the model card's scores, what does not is refused by name."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2Model

from raysers.errors import CheckpointError, ConfigError
from raysers.models.backbones import parse_model_name
from raysers.models.checkpoint import identify
from raysers.models.loading import load_emotion_model, save_emotion_model
from raysers.models.scorer import Scorer
from tests.unit.models.networks import PlainModel, small_config, small_model, speechlike

LABELS = {"0": "arousal", "1": "dominance", "2": "valence"}
Weights = dict[str, torch.Tensor]
SIGNAL = speechlike(12_345, 5)


class CardHead(nn.Module):
    """The published head: its layout is all that matters here."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(size, size)
        self.out_proj = nn.Linear(size, 3)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.out_proj(torch.tanh(self.dense(pooled)))


class CardModel(nn.Module):
    """The published checkpoint's class in plain torch around the stock backbone."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.wav2vec2 = Wav2Vec2Model(config)
        self.classifier = CardHead(config.hidden_size)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.wav2vec2(values)[0].mean(dim=1))


@pytest.fixture(scope="module")
def card() -> CardModel:
    torch.manual_seed(11)
    config = dict(small_config("msp-dim"))
    config.pop("model_type")
    return CardModel(Wav2Vec2Config(**config)).eval()


def old_names(weights: Weights) -> Weights:
    """As torch before 2.1 spelled weight norm: the published file."""
    return {
        k.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): v.clone()
        for k, v in weights.items()
    }


def write_folder(folder: Path, card: CardModel) -> Path:
    folder.mkdir()
    config = small_config("msp-dim") | {"id2label": LABELS, "vocab_size": None}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    save_file(old_names(card.state_dict()), folder / "model.safetensors")
    return folder


@pytest.fixture
def folder(tmp_path: Path, card: CardModel) -> Path:
    return write_folder(tmp_path / "model", card)


def card_scores(card: CardModel) -> np.ndarray:
    normalised = (SIGNAL - SIGNAL.mean()) / np.sqrt(SIGNAL.var() + 1e-7)
    with torch.inference_mode():
        return card(torch.from_numpy(normalised)[None])[0].numpy()


def our_scores(folder: Path | str) -> np.ndarray:
    scorer = Scorer(load_emotion_model(str(folder)), dtype="fp32", device="cpu", threads=1)
    return scorer.score([SIGNAL]).scores[0]


def to_bin(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")


def to_new_names(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    renamed = {
        k.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): v
        for k, v in weights.items()
    }
    save_file(renamed, folder / "model.safetensors")


def to_shards(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    keys = sorted(weights)
    where = {k: f"model-{1 + (i % 2)}.safetensors" for i, k in enumerate(keys)}
    for name in set(where.values()):
        save_file({k: weights[k] for k in keys if where[k] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def to_wrapped(folder: Path) -> None:
    """As torch's wrapper for several processes names them."""
    weights = load_file(folder / "model.safetensors")
    save_file({f"module.{k}": v for k, v in weights.items()}, folder / "model.safetensors")


def to_inner(folder: Path) -> None:
    """A model saved as a part of another."""
    weights = load_file(folder / "model.safetensors")
    save_file({f"model.{k}": v for k, v in weights.items()}, folder / "model.safetensors")


def to_other_order(folder: Path) -> None:
    """Outputs as valence, arousal, dominance."""
    edit_config(folder, id2label={"0": "Valence", "1": "Arousal", "2": "Dominance"})
    keys = ("classifier.out_proj.weight", "classifier.out_proj.bias")
    edit_weights(folder, lambda w: w.update({k: w[k][torch.tensor([2, 0, 1])] for k in keys}))


def to_processor(folder: Path) -> None:
    """As transformers 5 saves a processor."""
    (folder / "preprocessor_config.json").rename(folder / "p.json")
    content = {"feature_extractor": json.loads((folder / "p.json").read_text())}
    (folder / "processor_config.json").write_text(json.dumps(content | {"do_normalize": False}))


def to_trainer(folder: Path) -> None:
    """As a Trainer leaves it that did not get the preprocessor."""
    (folder / "preprocessor_config.json").unlink()
    (folder / "training_args.bin").write_bytes(b"x")


def to_leftovers(folder: Path) -> None:
    """Of pre-training; the vector of SpecAugment may be missing."""
    weights = load_file(folder / "model.safetensors")
    del weights["wav2vec2.masked_spec_embed"]
    save_file(weights | {"quantizer.bias": torch.zeros(2)}, folder / "model.safetensors")


LAYOUTS = [
    None, to_bin, to_new_names, to_shards, to_wrapped, to_inner, to_other_order, to_processor,
    to_trainer, to_leftovers,
]  # fmt: skip


@pytest.mark.parametrize("rewrite", LAYOUTS)
def test_published_layout_scores_as_the_model_card(
    folder: Path, card: CardModel, rewrite: Callable[[Path], None] | None
) -> None:
    if rewrite:
        rewrite(folder)
    np.testing.assert_allclose(our_scores(folder), card_scores(card), rtol=0, atol=1e-5)


def test_the_published_default_is_said_where_it_is_assumed(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    to_trainer(folder)
    identify(parse_model_name(str(folder)))
    assert "clips are normalised" in caplog.text
    edit_config(folder, model_type="wavlm")  # whose published sizes differ
    with pytest.raises(CheckpointError, match="copy it from the original"):
        identify(parse_model_name(str(folder)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoints_load_as_fp32(
    folder: Path, card: CardModel, dtype: torch.dtype
) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({k: v.to(dtype) for k, v in weights.items()}, folder / "model.safetensors")
    loaded = load_emotion_model(str(folder))
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    np.testing.assert_allclose(our_scores(folder), card_scores(card), rtol=0, atol=0.02)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, edit: Callable[[Weights], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors")


def no_head(weights: Weights) -> None:
    """What the stock classifier writes: other names in the same place."""
    for key in [k for k in weights if k.startswith("classifier.")]:
        del weights[key]
    weights["projector.weight"] = torch.zeros(8, 48)
    weights["classifier.weight"] = torch.zeros(3, 8)
    weights["classifier.bias"] = torch.zeros(3)


def poison(weights: Weights) -> None:
    weights["wav2vec2.encoder.layer_norm.weight"][3] = float("nan")


LAYER = "wav2vec2.encoder.layers.1.attention.k_proj.weight"


def preprocessor(folder: Path, text: str) -> None:
    (folder / "preprocessor_config.json").write_text(text)


def extra(key: str, *shape: int) -> Callable[[Path], Any]:
    """A tensor more, or one of another shape."""
    return partial(edit_weights, edit=lambda weights: weights.update({key: torch.zeros(shape)}))


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 661000000\n"


def to_adapter(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))


def lose_a_shard(folder: Path) -> None:
    to_shards(folder)
    (folder / "model-1.safetensors").unlink()


#: A folder's fault and the words it is refused with.
CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("shapes do not fit", {"intermediate_size": 80}),
    ("missing.*layers.2", {"num_hidden_layers": 3}),
    ("no place for.*layers.1", {"num_hidden_layers": 1}),
    ("id2label is.*LABEL_0", {"id2label": {"0": "LABEL_0"}}),
    ("id2label", {"id2label": {"0": "arousal", "1": "valence", "2": "valence"}}),
    ("id2label", {"id2label": LABELS | {"3": "quality"}}),
    ("model_type is 'bert'", {"model_type": "bert"}),
    ("add_adapter is True", {"add_adapter": True}),
    ("missing: layer_weights", {"use_weighted_layer_sum": True}),
    ("conv_pos_batch_norm", {"model_type": "hubert", "conv_pos_batch_norm": True}),
    ("pooling_mode is 'max'", {"pooling_mode": "max"}),
    ("hidden_size.*'wide'", {"hidden_size": "wide"}),
    ("hidden_size is 65537", {"hidden_size": 65_537}),
    ("hidden_size.*bool", {"hidden_size": True}),
    ("num_hidden_layers is -1", {"num_hidden_layers": -1}),
    ("num_hidden_layers is 257", {"num_hidden_layers": 257}),
    (r"conv_stride is \[5, 2, 2, 2, 0", {"conv_stride": [5, 2, 2, 2, 0, 2, 2]}),
    ("conv_kernel is .*-3", {"conv_kernel": [10, 3, 3, 3, 3, 2, -3]}),
    ("conv_dim is .* at most 32", {"conv_dim": [8] * 33}),
    ("conv_dim.*512", {"conv_dim": 512}),
    ("num_conv_pos_embeddings is 1000000", {"num_conv_pos_embeddings": 10**6}),
    ("no network can be built", {"hidden_size": -1}),
    ("describes a network of", {"num_hidden_layers": 200, "hidden_size": 16_384}),
    ("no network can be built", {"num_attention_heads": 5}),
    ("no network can be built", {"hidden_act": "nonsense"}),
]
REFUSALS: list[tuple[str, Callable[[Path], Any]]] = [
    *((words, partial(edit_config, **changes)) for words, changes in CONFIGS),
    ("no emotion head.*first.*classifier.dense.weight", partial(edit_weights, edit=no_head)),
    (r"out_proj.weight \[4, 48\] for \[3, 48\]", extra("classifier.out_proj.weight", 4, 48)),
    (f"missing: {LAYER}", partial(edit_weights, edit=lambda weights: weights.pop(LAYER))),
    ("no place for.*adapter", extra("wav2vec2.encoder.layers.0.adapter_layer.norm.weight", 2)),
    ("no place for.*layer_weights", extra("layer_weights", 3)),
    ("NaN.*encoder.layer_norm.weight", partial(edit_weights, edit=poison)),
    ("config.json cannot be read", lambda f: (f / "config.json").unlink()),
    ("not JSON", lambda f: (f / "config.json").write_text("{")),
    ("not an object", lambda f: (f / "config.json").write_text("[]")),
    ("sampling_rate is 8000", partial(preprocessor, text='{"sampling_rate": 8000}')),
    ('add the line "do_norm', partial(preprocessor, text='{"sampling_rate": 16000}')),
    ("do_normalize is 1", partial(preprocessor, text='{"do_normalize": 1}')),
    ("no weights", lambda f: (f / "model.safetensors").unlink()),
    ("git lfs pull", lambda f: (f / "model.safetensors").write_bytes(LFS_POINTER)),
    ("adapter must be merged", to_adapter),
    ("names model-1.safetensors, which is missing", lose_a_shard),
    ("not a readable weights", lambda f: (f / "model.safetensors").write_bytes(b"x" * 99)),
    ("does not exist", shutil.rmtree),
]


@pytest.mark.parametrize(("words", "spoil"), REFUSALS, ids=[words for words, _ in REFUSALS])
def test_refused_by_name(folder: Path, words: str, spoil: Callable[[Path], Any]) -> None:
    spoil(folder)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_emotion_model(str(folder))
    assert "\n" not in str(caught.value)


HUGE = 1 << 40
ODD_TENSORS: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "int8": ("torch.int8", lambda t: t.to(torch.int8)),
    "complex": ("torch.complex64", lambda t: t.to(torch.complex64)),
    "float8": ("torch.float8", lambda t: t.to(torch.float8_e4m3fn)),
    "sparse": ("torch.sparse_coo", lambda t: t.to_sparse()),
    "meta": ("on meta", lambda t: t.to("meta")),
    "zero stride": ("more elements than stored", lambda t: torch.zeros(1).expand(t.shape)),
    "zero stride, huge": ("more elements than stored", lambda t: torch.zeros(1).expand(HUGE)),
    "zero stride, huge, half": (
        "more elements than stored",
        lambda t: torch.zeros(1, dtype=torch.float16).expand(HUGE),
    ),
}


@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_only_plain_float_tensors_are_taken(folder: Path, kind: str) -> None:
    words, spoil = ODD_TENSORS[kind]
    to_bin(folder)
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save(weights | {LAYER: spoil(weights[LAYER])}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=rf"{LAYER} \(.*{words}"):
        load_emotion_model(str(folder))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_archives_that_inflate_are_not_opened(folder: Path, method: int) -> None:
    """Both would load: the reader inflates what is compressed, and entries may overlap."""
    to_bin(folder)
    path = folder / "pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        contents = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
        if method == zipfile.ZIP_STORED:  # the largest entry a thousand times
            largest = max(archive.infolist(), key=lambda info: info.file_size)
            archive.filelist.extend([largest] * 1_000)
    with pytest.raises(CheckpointError, match="is compressed"):
        load_emotion_model(str(folder))


class Exploit:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("plain", [True, False])
def test_malicious_pickle_is_refused_and_not_run(folder: Path, plain: bool) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    payload = {**weights, "extra": Exploit(folder / "owned")}
    if plain:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(payload, protocol=2))
    else:
        torch.save(payload, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        load_emotion_model(str(folder))
    assert not (folder / "owned").exists()


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "pipe", ["model.safetensors"], None])
def test_index_names_weights_of_its_folder_only(folder: Path, tmp_path: Path, name: object) -> None:
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    os.mkfifo(folder / "pipe")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="same folder"):
        load_emotion_model(str(folder))


def test_revision_follows_the_content(folder: Path, tmp_path: Path) -> None:
    first = load_emotion_model(str(folder)).revision
    shutil.copytree(folder, tmp_path / "copy")
    assert load_emotion_model(str(tmp_path / "copy")).revision == first
    edit_weights(folder, lambda w: w["classifier.out_proj.bias"].add_(0.5))
    assert load_emotion_model(str(folder)).revision != first


@pytest.mark.parametrize("kind", ["hubert-b", "wavlm-base", "data2vec", "w2v2-L"])
def test_saved_folder_comes_back_exactly(kind: str, tmp_path: Path) -> None:
    model = small_model(kind)
    save_emotion_model(model, tmp_path / "saved", do_normalize=False)
    loaded = load_emotion_model(str(tmp_path / "saved"))
    assert not loaded.do_normalize
    assert loaded.model.embedding_size == 48
    expected = model.state_dict()
    got = loaded.model.state_dict()
    assert list(got) == list(expected)
    assert all(torch.equal(got[k], expected[k]) for k in expected)


def test_saved_folder_opens_with_stock_tools(tmp_path: Path) -> None:
    """Others can load ours: the stock backbone finds every weight under its prefix."""
    model = small_model("w2v2-L")
    save_emotion_model(model, tmp_path)
    stock, report = Wav2Vec2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    values = torch.from_numpy(SIGNAL)[None]
    with torch.inference_mode():
        expected = stock.eval()(values)[0].mean(1)
        _, embeddings = model(values, torch.tensor([len(SIGNAL)]))
    torch.testing.assert_close(embeddings, expected, rtol=0, atol=1e-5)


def test_bottom_layers_of_a_checkpoint(folder: Path, card: CardModel) -> None:
    name = parse_model_name("msp-dim-1")
    local = type(name)(text=name.text, path=str(folder), layers=name.layers)
    model = load_emotion_model(local).model
    plain = PlainModel(model)  # stock network of one layer, the card's final norm on top
    assert len(plain.backbone.encoder.layers) == 1
    kept = card.wav2vec2.encoder.layers[0].feed_forward.output_dense.weight
    assert torch.equal(model.backbone.encoder.layers[0].feed_forward.output_dense.weight, kept)


DIGEST = """
import hashlib, torch
from raysers.models.loading import load_emotion_model
torch.manual_seed(7)
loaded = load_emotion_model("random:tiny")
digest = hashlib.sha256()
for key, value in sorted(loaded.model.state_dict().items()):
    digest.update(key.encode() + value.numpy().tobytes())
print(loaded.revision, digest.hexdigest())
"""


@pytest.mark.slow
def test_random_models_are_the_same_in_every_process(capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = subprocess.run(
        [sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True
    )
    exec(DIGEST.replace("(7)", "(8)"), {})
    assert capsys.readouterr().out == elsewhere.stdout
    assert elsewhere.stdout.startswith("random-0-")


def hub_cache(root: Path, folder: Path, commit: str) -> None:
    """A downloaded model as the hub library keeps it."""
    repo = root / "models--owner--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    shutil.copytree(folder, repo / "snapshots" / commit)


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that refuses connections, at once and on every machine, and an empty cache."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("no_hub")
def test_cached_hub_model_loads_without_network(
    folder: Path, tmp_path: Path, card: CardModel
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    hub_cache(tmp_path / "cache", folder, commit)
    loaded = load_emotion_model("owner/name")
    assert loaded.revision == commit
    scorer = Scorer(loaded, dtype="fp32", device="cpu")
    np.testing.assert_allclose(
        scorer.score([SIGNAL]).scores[0], card_scores(card), rtol=0, atol=1e-5
    )


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("name", ["owner/absent", "msp-dim", "owner/absent@v2"])
def test_absent_hub_model_is_one_clear_line(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be (reached|fetched)") as caught:
        load_emotion_model(name)
    assert "\n" not in str(caught.value)


def test_alias_without_weights_says_so() -> None:
    with pytest.raises(ConfigError, match="random:tiny"):
        load_emotion_model("tiny")
