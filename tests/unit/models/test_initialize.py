"""Where training starts: what comes from files is theirs, what is new comes from the seed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from raysers.errors import CheckpointError, ConfigError
from raysers.models.emotion import EmotionModel
from raysers.models.initialize import InitialModel, start_model
from raysers.models.loading import save_emotion_model
from tests.published import PlainModel, write_checkpoint
from tests.unit.models.networks import SMALL, small_config, small_model

STOCK = {
    "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
    "hubert": (transformers.HubertConfig, transformers.HubertModel),
    "wavlm": (transformers.WavLMConfig, transformers.WavLMModel),
    "data2vec-audio": (transformers.Data2VecAudioConfig, transformers.Data2VecAudioModel),
}


def stock_backbone(kind: str) -> Any:
    torch.manual_seed(21)
    keys = dict(small_config(kind))
    config_class, model_class = STOCK[keys.pop("model_type")]
    return model_class(config_class(**keys)).eval()


def save_bare(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    return folder


def backbone_of(start: InitialModel) -> dict[str, Tensor]:
    assert isinstance(start.model, EmotionModel)
    return start.model.backbone.state_dict()


@pytest.mark.parametrize("kind", ["w2v2-b", "hubert-L", "wavlm-base", "data2vec"])
def test_a_bare_backbone_saved_by_transformers_is_taken_as_it_is(tmp_path: Path, kind: str) -> None:
    stock = stock_backbone(kind)
    start = start_model(str(save_bare(tmp_path, stock)), seed=5)
    torch.testing.assert_close(backbone_of(start), stock.state_dict(), rtol=0, atol=0)
    assert (start.freeze, start.head_kept, start.do_normalize) == ("cnn", False, True)
    assert (start.model.min_samples, start.model.embedding_size) == (400, 48)
    assert not any(p.is_meta for p in start.model.parameters())
    scores, _ = start.model(torch.randn(1, 4_000), torch.tensor([4_000]))
    assert scores.isfinite().all()


def test_the_new_head_is_the_seeds(tmp_path: Path) -> None:
    folder = str(save_bare(tmp_path, stock_backbone("w2v2-b")))

    def head(seed: int, **options: Any) -> Tensor:
        torch.rand(seed)  # what was drawn before must not matter
        return start_model(folder, seed=seed, **options).model.classifier.dense.weight

    torch.manual_seed(0)
    first, again, other = head(1), head(1), head(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # drawn as the published script's: normal, as wide as the configuration says
    assert first.std().item() == pytest.approx(0.02, rel=0.1)
    before = torch.random.get_rng_state()
    start_model(folder, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_pretraining_and_recognition_models_start_too(tmp_path: Path) -> None:
    keys = dict(small_config("w2v2-b"))
    keys.pop("model_type")
    torch.manual_seed(1)
    config = transformers.Wav2Vec2Config(**keys, vocab_size=12, codevector_dim=32)
    for number, kind in enumerate(
        (
            transformers.Wav2Vec2ForPreTraining,
            transformers.Wav2Vec2ForCTC,
            transformers.Wav2Vec2ForSequenceClassification,
        )
    ):
        stock = kind(config)
        start = start_model(str(save_bare(tmp_path / str(number), stock)), seed=0)
        torch.testing.assert_close(backbone_of(start), stock.wav2vec2.state_dict(), rtol=0, atol=0)
        assert not start.head_kept


def test_a_fine_tuned_head_is_kept_and_one_for_other_labels_is_not(tmp_path: Path) -> None:
    card = write_checkpoint(tmp_path)
    start = start_model(str(tmp_path), seed=3)
    assert start.head_kept
    torch.testing.assert_close(start.model.state_dict(), card.state_dict(), rtol=0, atol=0)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {"0": "arousal", "1": "valence", "2": "dominance"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ordered = start_model(str(tmp_path), seed=3)
    assert ordered.head_kept
    bias = start.model.classifier.out_proj.bias
    assert torch.equal(ordered.model.classifier.out_proj.bias, bias[torch.tensor([0, 2, 1])])
    config["id2label"] = {"0": "angry", "1": "calm", "2": "sad"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    other = start_model(str(tmp_path), seed=3)
    assert not other.head_kept
    assert not torch.equal(other.model.classifier.dense.weight, start.model.classifier.dense.weight)


@pytest.mark.parametrize("wrapper", ["module.", "model."])
def test_names_of_a_wrapper_around_a_network_are_read_through(tmp_path: Path, wrapper: str) -> None:
    card = write_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({f"{wrapper}{key}": value for key, value in load_file(path).items()}, path)
    start = start_model(str(tmp_path), seed=3)
    assert start.head_kept
    torch.testing.assert_close(start.model.state_dict(), card.state_dict(), rtol=0, atol=0)


def test_a_preprocessor_where_the_command_runs_is_no_part_of_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": false}')
    monkeypatch.chdir(tmp_path)
    assert start_model("random:tiny", seed=0).do_normalize


def test_layers_are_cut_from_the_top(tmp_path: Path) -> None:
    stock = stock_backbone("w2v2-L")
    start = start_model(str(save_bare(tmp_path, stock)), seed=0, layers=1)
    expected = {k: v for k, v in stock.state_dict().items() if "encoder.layers.1." not in k}
    torch.testing.assert_close(backbone_of(start), expected, rtol=0, atol=0)
    assert start.model.config.num_hidden_layers == 1


def test_random_models_are_drawn_from_the_seed_alone(tmp_path: Path) -> None:
    a, b = start_model("random:tiny", seed=1), start_model("random:tiny", seed=1)
    c = start_model("random:tiny", seed=2)
    torch.testing.assert_close(a.model.state_dict(), b.model.state_dict(), rtol=0, atol=0)
    kernel = "wav2vec2.feature_extractor.conv_layers.0.conv.weight"
    assert not torch.equal(a.model.state_dict()[kernel], c.model.state_dict()[kernel])
    assert (a.freeze, a.do_normalize, a.revision == b.revision) == ("none", True, True)
    assert a.revision != c.revision
    path = tmp_path / "config.json"
    path.write_text(json.dumps(small_config("w2v2-b")))
    for name in (f"random:{tmp_path}", f"random:{path}", str(path)):
        start = start_model(name, seed=1, layers=1, head_dropout=0.3)
        assert start.model.config.num_hidden_layers == 1
        assert start.model.classifier.dropout.p == 0.3
        assert start.freeze == "none"


def test_head_dropout_and_pooling_are_saved(tmp_path: Path) -> None:
    start = start_model("random:tiny", seed=0, head_dropout=0.25, pooling="attentive")
    assert start.model.embedding_size == 128
    save_emotion_model(start.model, tmp_path)
    again = start_model(str(tmp_path), seed=9, pooling="attentive")
    assert again.head_kept
    assert again.model.config.final_dropout == 0.25
    torch.testing.assert_close(again.model.state_dict(), start.model.state_dict(), rtol=0, atol=0)


def test_what_was_trained_loads_into_the_model_cards_class(tmp_path: Path) -> None:
    keys = SMALL | {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
    (tmp_path / "config.json").write_text(json.dumps(keys | {"model_type": "wav2vec2"}))
    start = start_model(f"random:{tmp_path}", seed=4)
    saved = tmp_path / "saved"
    save_emotion_model(start.model, saved)
    card = PlainModel(transformers.Wav2Vec2Config.from_pretrained(saved)).eval()
    card.load_state_dict(load_file(saved / "model.safetensors"))
    signal = torch.randn(1, 7_000)
    with torch.no_grad():
        ours = start.model(signal, torch.tensor([7_000]))
        torch.testing.assert_close(ours, card(signal), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlanguage: en\nlicense: cc-by-nc-sa-4.0\ntags: [x]\n---\n# A\n", "cc-by-nc-sa-4.0"),
        ('---\r\nlicense: "apache-2.0"\r\n---\r\n', "apache-2.0"),
        ("# A model\n\nlicense: mine\n", None),
        ("---\nlanguage: en\n---\nlicense: mine\n", None),
        (None, None),
    ],
)  # fmt: skip
def test_licence_is_what_the_cards_header_says(
    tmp_path: Path, card: str | None, licence: str | None
) -> None:
    write_checkpoint(tmp_path)
    if card is not None:
        (tmp_path / "README.md").write_bytes(card.encode())
    assert start_model(str(tmp_path), seed=0).licence == licence


def narrow_cnn14(folder: Path) -> None:
    keys = {"model_type": "cnn14", "widths": [4, 6, 8, 10, 12, 16]}
    (folder / "config.json").write_text(json.dumps(keys))


def test_cnn14_starts_from_random_weights_or_its_own_folder(tmp_path: Path) -> None:
    narrow_cnn14(tmp_path)
    start = start_model(f"random:{tmp_path}", seed=0, head_dropout=0.5)
    assert (start.freeze, start.do_normalize, start.model.embedding_size) == ("none", False, 16)
    assert start.model.final_dropout.p == 0.5
    other = start_model(f"random:{tmp_path}", seed=1)
    assert not torch.equal(start.model.fc1.weight, other.model.fc1.weight)
    save_emotion_model(start.model, tmp_path / "saved", do_normalize=start.do_normalize)
    again = start_model(str(tmp_path / "saved"), seed=7)
    assert (again.freeze, again.do_normalize, again.head_kept) == ("none", False, True)
    torch.testing.assert_close(again.model.state_dict(), start.model.state_dict(), rtol=0, atol=0)
    with pytest.raises(ConfigError, match="random:cnn14"):
        start_model("cnn14", seed=0)


def save_attentive(folder: Path) -> None:
    save_emotion_model(small_model("w2v2-b", pooling_mode="attentive"), folder)


def break_weights(folder: Path) -> None:
    save_bare(folder, stock_backbone("w2v2-b"))
    weights = load_file(folder / "model.safetensors")
    weights.pop("encoder.layers.1.attention.k_proj.weight")
    save_file(weights, folder / "model.safetensors")


REFUSED: list[tuple[str, Callable[[Path], Any] | None, str, dict[str, Any]]] = [
    ("fetch the folder", None, "s3://bucket/model", {}),
    ("--front mel is for random", write_checkpoint, "", {"front": "mel"}),
    ("at least 100 taps", None, "random:tiny", {"front": "mel"}),
    ("on samples", narrow_cnn14, "random:", {"front": "mel"}),
    ("cnn14 has no transformer layers", None, "random:cnn14", {"pooling": "attentive"}),
    ("--freeze cnn", narrow_cnn14, "random:", {"freeze": "cnn"}),
    ("drop one", None, "random:tiny-1", {"layers": 2}),
    ("2 layers: keep 1 to 2", None, "random:tiny", {"layers": 3}),
    ("no transformer layers", None, "random:cnn14", {"layers": 3}),
    ("use --pooling attentive", save_attentive, "", {}),
    ("use --pooling masked", write_checkpoint, "", {"pooling": "attentive"}),
    ("missing.*layers.1.attention", break_weights, "", {}),
    ("does not exist", None, "./not-there", {}),
    ("preprocessor_config", lambda f: stock_backbone("wavlm-base").save_pretrained(f), "", {}),
]


@pytest.mark.parametrize(("words", "make", "name", "options"), REFUSED, ids=[r[0] for r in REFUSED])
def test_refusals_name_the_fix(
    tmp_path: Path,
    words: str,
    make: Callable[[Path], Any] | None,
    name: str,
    options: dict[str, Any],
) -> None:
    if make is not None:
        make(tmp_path)
    with pytest.raises((ConfigError, CheckpointError), match=words) as caught:
        start_model(name if name not in ("", "random:") else f"{name}{tmp_path}", seed=0, **options)
    assert "\n" not in str(caught.value)
