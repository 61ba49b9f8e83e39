"""Folders as other tools write them: scored as stock transformers scores them, or refused."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    HubertConfig,
    HubertForSequenceClassification,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    WavLMConfig,
    WavLMForSequenceClassification,
)

from raysers.errors import CheckpointError
from raysers.models.backbones import parse_model_name
from raysers.models.checkpoint import identify
from raysers.models.loading import load_emotion_model
from raysers.models.scorer import Scorer
from raysers.types import DIMENSIONS
from tests.places import SHARED_DATA
from tests.unit.models.networks import small_config, speechlike

SCRIPT = SHARED_DATA.parent / "cases" / "checkpoints" / "make.py"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="its folders are not on this machine")

SCORED = (
    "a_bf16", "a_bin", "a_bin_old", "a_bin_ordered", "a_bin_param", "a_fp16", "a_oldnames",
    "a_sharded", "a_std", "e_ehcalabres8", "b_capitals", "b_order_avd", "b_order_vad",
    "i_trainer_no_pre", "j_processor5", "k_not_normalised", "n_5conv", "n_group",
    "o_data2vec", "o_hubert", "o_wavlm", "p_ddp_module", "p_model_prefix", "q_automap", "t_both",
)  # fmt: skip
REFUSED = {
    "b_act": "id2label", "b_label_n": "id2label", "c_four": "id2label", "c_one_output": "id2label",
    "c_two_outputs": "id2label", "d_stock_3class": "id2label",
    "d_stock_adv": "must be fine-tuned first", "d_superb_hubert": "id2label",
    "d_superb_w2v2": "id2label", "k_8khz": "sampling_rate is 8000",
    "k_no_flag": "add the line", "m_adapter": "add_adapter", "m_attn_adapter": "only null",
    "r_lora": "merge_and_unload", "s_conformer": "supported: wav2vec2",
    "s_emotion2vec": "supported: wav2vec2", "s_sew": "supported: wav2vec2",
    "s_unispeech": "supported: wav2vec2", "s_w2vbert": "supported: wav2vec2",
    "s_whisper": "only 80 is computed", "t_onnx_only": "as save_pretrained writes it",
    "t_tf_only": "as save_pretrained writes it", "u_lfs_pointer": "git lfs pull",
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("wild")
    shutil.copy(SCRIPT, place)
    with torch.random.fork_rng(devices=[]):
        runpy.run_path(str(place / SCRIPT.name))
    yield place / "models"
    shutil.rmtree(place)


def stock_scores(folder: Path, signal: np.ndarray) -> dict[str, float]:
    """The published class by hand: stock backbone, mean over time, dense, tanh, projection."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model.bin"))
    read = load_file if files[0].suffix == ".safetensors" else torch.load
    weights: dict[str, Any] = {}
    for file in files:
        weights |= read(file)
    for wrapper in ("module.", "model."):
        weights = {key.removeprefix(wrapper): value.float() for key, value in weights.items()}
    config = AutoConfig.from_pretrained(folder)
    backbone = AutoModel.from_config(config, dtype=torch.float32).eval()
    prefix = backbone.base_model_prefix + "."
    own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    assert not backbone.load_state_dict(own, strict=False).unexpected_keys
    head = {key.removeprefix("classifier."): value for key, value in weights.items()}
    normalise = folder.name != "k_not_normalised"
    extractor = Wav2Vec2FeatureExtractor(do_normalize=normalise)
    values = extractor(signal, sampling_rate=16_000, return_tensors="pt").input_values
    with torch.inference_mode():
        pooled = backbone(values)[0].mean(1)
        hidden = torch.tanh(pooled @ head["dense.weight"].T + head["dense.bias"])
        scores = (hidden @ head["out_proj.weight"].T + head["out_proj.bias"])[0]
    labels = json.loads((folder / "config.json").read_text())["id2label"]
    return {labels[str(i)].lower(): value.item() for i, value in enumerate(scores)}


@pytest.mark.parametrize("name", SCORED)
def test_what_others_write_scores_as_stock_transformers(folders: Path, name: str) -> None:
    signal, other = speechlike(9_876, 1), speechlike(16_000, 2)
    scorer = Scorer(load_emotion_model(str(folders / name)), dtype="fp32", device="cpu", threads=1)
    expected = stock_scores(folders / name, signal)
    for batch in ([signal], [signal, other]):
        found, labels = scorer.score(batch), list(expected)
        if "anger" in labels or "angry" in labels:
            assert np.isnan(found.scores).all()
            odds = np.exp([*expected.values()])
            np.testing.assert_allclose(found.extras[0], odds / odds.sum(), atol=1e-5)
        else:
            ours = dict(zip(DIMENSIONS, found.scores[0], strict=True))
            assert ours == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("config_class", "network", "kind"),
    [
        (Wav2Vec2Config, Wav2Vec2ForSequenceClassification, "w2v2-L"),
        (HubertConfig, HubertForSequenceClassification, "w2v2-b"),
        (WavLMConfig, WavLMForSequenceClassification, "wavlm-base"),
        (WavLMConfig, WavLMForSequenceClassification, "wavlm-large"),
    ],
)
def test_a_stock_classifier_of_emotions_gives_its_own_probabilities(
    config_class: Any, network: Any, kind: str, weighted: bool, tmp_path: Path
) -> None:
    """Those of SUPERB sum the states of all layers by learned weights."""
    names = ("anger", "joy", "sadness", "neutral")
    # the last state is the normalised one, as in the library that such classifiers are from
    keys = {"use_weighted_layer_sum": weighted, "tie_last_hidden_states": True}
    keys |= small_config(kind)
    torch.manual_seed(2)
    stock = network(config_class(**keys, id2label=dict(enumerate(names)))).eval()
    if weighted:
        torch.nn.init.normal_(stock.layer_weights)
    stock.save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(tmp_path)
    loaded = load_emotion_model(str(tmp_path))
    assert loaded.model.outputs.columns == ("p_anger", "p_joy", "p_sadness", "p_neutral")
    scorer = Scorer(loaded, dtype="fp32", device="cpu", threads=1)
    signal, other = speechlike(9_876, 1), speechlike(16_000, 2)
    inputs = Wav2Vec2FeatureExtractor()(signal, sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        expected = stock(inputs.input_values).logits.softmax(1)[0].numpy()
    found = scorer.score([other, signal])
    np.testing.assert_allclose(found.extras[1], expected, atol=1e-5)
    assert np.ptp(expected) > 1e-3
    assert np.isnan(found.scores).all()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_scored_is_refused_in_one_line(folders: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=REFUSED[name]) as caught:
        load_emotion_model(str(folders / name))
    assert "\n" not in str(caught.value)


def test_every_folder_is_known(folders: Path) -> None:
    assert sorted(path.name for path in folders.iterdir()) == sorted((*SCORED, *REFUSED))


def test_a_model_is_checked_as_it_is_loaded_before_its_weights_are_read(folders: Path) -> None:
    for name in SCORED:
        loaded = load_emotion_model(str(folders / name))
        found = identify(parse_model_name(str(folders / name)))
        assert (found.revision, found.embedding_size) == (
            loaded.revision,
            loaded.model.embedding_size,
        )
        if not loaded.model.outputs.trained:
            assert found.outputs.columns[0] == "p_angry"
