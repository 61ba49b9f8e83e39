"""Tiny text encoders of every kind as transformers saves them, with a vocabulary of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "the", "day", "time", "people", "was", "is", "this",
    "wonderful", "terrible", "great", "awful", "not", "very", "really", "i", "you", "they", "it",
    "never", "##s", "##ing", "##ly", "!", ".", ",", "?", "[MASK]",
]  # fmt: skip
POSITIONS = 24

_SMALL: dict[str, Any] = {
    "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": POSITIONS, "pad_token_id": 0,
}  # fmt: skip
_DISTIL = {
    "vocab_size": len(WORDS), "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32,
    "max_position_embeddings": POSITIONS, "pad_token_id": 0,
}  # fmt: skip
#: Class names and changed settings by `model_type`.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "albert": ("Albert", _SMALL | {"embedding_size": 8}),
    "bert": ("Bert", _SMALL),
    "camembert": ("Camembert", _SMALL),
    "deberta-v2": ("DebertaV2", _SMALL),
    "distilbert": ("DistilBert", _DISTIL),
    "electra": ("Electra", _SMALL | {"embedding_size": 8}),
    "gpt2": (
        "GPT2",
        {"vocab_size": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24},
    ),
    "mpnet": ("MPNet", _SMALL),
    "roberta": ("Roberta", _SMALL),
    "xlm-roberta": ("XLMRoberta", _SMALL),
}


def write_encoder(folder: Path, kind: str = "bert", task: str = "Model", **changes: Any) -> Any:
    """A folder with a randomly drawn encoder (as part of a task's network); the plain encoder."""
    stem, settings = KINDS[kind]
    config = getattr(transformers, f"{stem}Config")(**(settings | changes))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = getattr(transformers, f"{stem}{task}")(config).eval()
        for parameter in network.parameters():  # away from the zeros and ones they start with
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    network.save_pretrained(folder)
    write_tokenizer(folder)
    return network if task == "Model" else getattr(network, network.base_model_prefix)


def write_tokenizer(folder: Path) -> None:
    """A word-piece `tokenizer.json` whose stored truncation and padding are a trap."""
    tokenizer = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_truncation(max_length=4)
    tokenizer.enable_padding(length=20)
    tokenizer.save(str(folder / "tokenizer.json"))


#: Name and training of the vocabulary in the published folders of a kind, which have no
#: `tokenizer.json`, and the token numbers of pieces: beginning, shift of the pieces, end.
SENTENCEPIECE: dict[str, tuple[str, dict[str, Any], tuple[int, int, int]]] = {
    "xlm-roberta": ("sentencepiece.bpe.model", {}, (0, 1, 2)),
    "camembert": ("sentencepiece.bpe.model", {}, (5, 4, 6)),
    "deberta-v2": (
        "spm.model",
        {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
        | {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"},
        (1, 0, 2),
    ),
    "albert": (
        "spiece.model",
        {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "pad_piece": "<pad>"}
        | {"control_symbols": ["[CLS]", "[SEP]", "[MASK]"]},
        (2, 0, 3),
    ),
}


def write_sentencepiece(folder: Path, kind: str, **training: Any) -> SentencePieceProcessor:
    """Put a small sentencepiece model in the place of `tokenizer.json`; returns it."""
    file, published, _ = SENTENCEPIECE[kind]
    (folder / "tokenizer.json").unlink()
    SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS[k:] + WORDS[:k]) for k in range(4, 28)]),
        model_prefix=str(folder / "made"), vocab_size=80, hard_vocab_limit=False, minloglevel=2,
        **(training or published),
    )  # fmt: skip
    (folder / "made.vocab").unlink()
    made = (folder / "made.model").rename(folder / file)
    return SentencePieceProcessor(model_file=str(made))


def ids_of(text: str) -> list[int]:
    """Token numbers of a text of known words, by hand."""
    return [2, *(WORDS.index(word) if word in WORDS else 1 for word in text.split()), 3]


@torch.inference_mode()
def plain_vector(model: Any, ids: list[int], pooling: str = "mean") -> torch.Tensor:
    """What stock transformers make of one unpadded text."""
    hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return hidden[0] if pooling == "cls" else hidden.mean(0)


def change_config(folder: Path, **changes: Any) -> None:
    """Edit a `config.json`."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
