"""Text encoders against stock transformers on one unpadded text at a time."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from transformers import BertTokenizer, T5Config, T5Model

from raysers.errors import CheckpointError, ConfigError
from raysers.models.pretrained import TextEncoder
from tests.unit.models.text_folders import (
    KINDS,
    POSITIONS,
    SENTENCEPIECE,
    WORDS,
    change_config,
    ids_of,
    plain_vector,
    write_encoder,
    write_sentencepiece,
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


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [(k, p) for k in KINDS for p in ("mean", "cls") if (k, p) != ("gpt2", "cls")],
)
def test_every_kind_equals_stock_transformers_in_any_batch(kind, pooling, tmp_path):
    plain = write_encoder(tmp_path, kind)
    encoder = TextEncoder(str(tmp_path), pooling)
    known = [text for text in TEXTS if "🎭" not in text]
    expected = np.stack([plain_vector(plain, ids_of(t), pooling).numpy() for t in known])
    np.testing.assert_allclose(encoder.encode(known), expected, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.1  # the texts are told apart
    assert encoder.hidden_size == 16


def test_text_batch_equals_single(bert):
    encoder = TextEncoder(str(bert[0]))
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    for size in (None, 12):
        texts = [*TEXTS, TEXTS[0]][::-1]
        together = encoder.encode(texts, tokens_per_pass=size)
        np.testing.assert_allclose(together, [*alone, alone[0]][::-1], atol=1e-5)
    assert encoder.encode([]).shape == (0, 16)
    expected = plain_vector(bert[1], ids_of("")).numpy()  # the special tokens alone
    np.testing.assert_allclose(encoder.encode(["", "  \n"]), [expected, expected], atol=1e-5)


@pytest.mark.parametrize("task", ["ForPreTraining", "ForSequenceClassification"])
def test_an_encoder_inside_a_larger_network_is_found(task, tmp_path):
    plain = write_encoder(tmp_path, "bert", task)
    expected = plain_vector(plain, ids_of("the day")).numpy()
    np.testing.assert_allclose(
        TextEncoder(str(tmp_path)).encode(["the day"])[0], expected, atol=1e-5
    )


def test_a_folder_with_a_bare_vocabulary_makes_the_family_s_tokens(bert, tmp_path):
    folder = shutil.copytree(bert[0], tmp_path / "vocab")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    ids = BertTokenizer(str(folder / "vocab.txt"))("This IS a wonderfully day!")["input_ids"]
    expected = plain_vector(bert[1], ids).numpy()
    encoder = TextEncoder(str(folder))
    np.testing.assert_allclose(
        encoder.encode(["This IS a wonderfully day!"])[0], expected, atol=1e-5
    )


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_a_sentencepiece_folder_makes_the_pieces_of_that_library(kind, tmp_path):
    plain = write_encoder(tmp_path, kind, vocab_size=90)
    pieces = write_sentencepiece(tmp_path, kind)
    first, shift, last = SENTENCEPIECE[kind][2]
    texts = ["this was a wonderful day !", "never   really awful"]
    ids = [[first, *(i + shift for i in pieces.encode(text)), last] for text in texts]
    assert min(map(len, ids)) > 4
    expected = [plain_vector(plain, one).numpy() for one in ids]
    np.testing.assert_allclose(TextEncoder(str(tmp_path)).encode(texts), expected, atol=1e-5)


def test_albert_with_pieces_that_transformers_cannot_read_is_refused_by_name(tmp_path):
    write_encoder(tmp_path, "albert", vocab_size=90)
    write_sentencepiece(tmp_path, "albert", unk_id=0)  # the library's own order of special pieces
    with pytest.raises(CheckpointError, match="its albert tokenizer"):
        TextEncoder(str(tmp_path))


def test_networks_that_are_no_plain_encoders_are_refused(tmp_path):
    write_encoder(tmp_path / "gpt2", "gpt2")
    with pytest.raises(CheckpointError, match="give --text-pooling mean"):
        TextEncoder(str(tmp_path / "gpt2"), "cls")
    settings = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    T5Model(T5Config(vocab_size=32, **settings)).save_pretrained(tmp_path / "t5")
    with pytest.raises(CheckpointError, match="t5 is not a plain text encoder"):
        TextEncoder(str(tmp_path / "t5"))


@pytest.mark.parametrize(
    ("kind", "most"), [("bert", POSITIONS), ("roberta", POSITIONS - 1), ("mpnet", POSITIONS - 2)]
)
def test_text_behind_the_last_position_is_not_read(kind, most, tmp_path):
    plain = write_encoder(tmp_path, kind)
    encoder = TextEncoder(str(tmp_path))
    fits, over = " ".join(["day"] * (most - 2)), " ".join(["day"] * (most - 1))
    assert encoder.max_tokens == most
    expected = plain_vector(plain, ids_of(fits)).numpy()
    np.testing.assert_allclose(encoder.encode([over, fits]), [expected, expected], atol=1e-5)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", {"model_type": "unheard"}, "model_type is 'unheard'"),
        ("config.json", {"is_decoder": True}, "is_decoder"),
        ("config.json", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("config.json", "[1]", "not an object"),
        ("tokenizer.json", "{", "tokenizer cannot be read"),
        ("tokenizer.json", None, "no tokenizer"),
        ("model.safetensors", None, "no weights"),
    ],
)
def test_a_folder_that_is_no_encoder_is_refused_in_one_line(file, content, words, bert, tmp_path):
    folder = shutil.copytree(bert[0], tmp_path / "broken")
    if isinstance(content, dict):
        change_config(folder, **content)
    elif content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(CheckpointError, match=words) as raised:
        TextEncoder(str(folder))
    assert "\n" not in str(raised.value)


def test_a_token_without_a_vector_is_refused_before_a_text_needs_it(bert, tmp_path):
    folder = shutil.copytree(bert[0], tmp_path / "more")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    tokenizer["added_tokens"].append({"id": size, "content": "[laughs]", **flags})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match=f"token {size}, but the network"):
        TextEncoder(str(folder))


@pytest.mark.parametrize("name", ["no model", "owner/", "a/b/c", "bert@", "./not-there", ""])
def test_a_name_of_nothing_is_refused(name):
    with pytest.raises(ConfigError):
        TextEncoder(name)
