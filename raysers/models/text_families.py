"""Kinds of text encoders there are, and how a network is built from a `config.json` of one.

Only the encoder is built: a checkpoint's pooler, language model or classifier has no place in it.
A configuration is a stranger's, so its numbers are bounded before anything is allocated.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raysers.errors import CheckpointError
from raysers.models.checkpoint import CONFIG_FILE, check_size


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFamily:
    """How `transformers` names one kind of encoder.

    `prefix` is what its parameters begin with inside larger networks. Positions of the RoBERTa
    kind are counted from behind the padding's own, which costs a few of them.
    """

    stem: str
    prefix: str
    positions_after_padding: bool = False
    tokenizer: str = ""

    @property
    def tokenizer_class(self) -> str:
        """Class that reads vocabularies in the family's own layout."""
        return f"{self.tokenizer or self.stem}Tokenizer"


#: By `model_type`.
TEXT_FAMILIES: Mapping[str, TextFamily] = {
    "albert": TextFamily(stem="Albert", prefix="albert"),
    "bert": TextFamily(stem="Bert", prefix="bert"),
    "camembert": TextFamily(stem="Camembert", prefix="roberta", positions_after_padding=True),
    "deberta-v2": TextFamily(stem="DebertaV2", prefix="deberta"),
    "distilbert": TextFamily(stem="DistilBert", prefix="distilbert", tokenizer="Bert"),
    "electra": TextFamily(stem="Electra", prefix="electra", tokenizer="Bert"),
    "mpnet": TextFamily(stem="MPNet", prefix="mpnet", positions_after_padding=True),
    "roberta": TextFamily(stem="Roberta", prefix="roberta", positions_after_padding=True),
    "xlm-roberta": TextFamily(stem="XLMRoberta", prefix="roberta", positions_after_padding=True),
}

#: Largest whole numbers of a configuration, above any encoder that exists.
_MOST = {
    "num_hidden_layers": 200,
    "n_layers": 200,
    "num_hidden_groups": 200,
    "inner_group_num": 200,
    "hidden_size": 16_384,
    "dim": 16_384,
    "embedding_size": 16_384,
    "intermediate_size": 65_536,
    "hidden_dim": 65_536,
    "num_attention_heads": 256,
    "n_heads": 256,
    "vocab_size": 4_000_000,
    "type_vocab_size": 1_024,
    "max_position_embeddings": 1_000_000,
    "relative_attention_num_buckets": 65_536,
}

#: Keys that change the network, and the values that stay a plain encoder.
_ONLY_VALUES: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
}

#: What impossible values lead to inside the networks' constructors.
_BUILD_ERRORS = (
    TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError, ZeroDivisionError,
)  # fmt: skip


def family_of(config: Mapping[str, Any], where: object) -> TextFamily:
    """The family of a configuration, whose values have been looked at.

    Raises:
        CheckpointError: another kind of network, or values of no encoder.
    """
    kind = config.get("model_type")
    if kind not in TEXT_FAMILIES:
        raise CheckpointError(
            f"{where}: model_type is {kind!r}; text encoders are {', '.join(TEXT_FAMILIES)}"
        )
    for key, allowed in _ONLY_VALUES.items():
        if config.get(key) not in (*allowed, None):
            raise CheckpointError(f"{where}: {key} is {config[key]!r}: not a plain text encoder")
    for key, most in _MOST.items():
        value = config.get(key, 1)
        least = 0 if key == "type_vocab_size" else 1  # some families have no sentence pairs
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise CheckpointError(
                f"{where}: {key} is {str(value)[:40]!r}, not a whole number from {least} to {most}"
            )
    return TEXT_FAMILIES[str(kind)]


def build_encoder(config: Mapping[str, Any], where: object) -> Any:
    """The encoder of a `config.json`, weights as initialised, in evaluation mode.

    Raises:
        CheckpointError: as `family_of`, or a network that cannot be built.
    """
    family = family_of(config, where)
    with torch.device("meta"):  # costs nothing, however large the numbers are
        sketch = _built(config, family, where)
    check_size(sum(p.numel() for p in sketch.parameters()), where)
    with torch.random.fork_rng(devices=[]):  # initialisation draws: leave the generator as it was
        return _built(config, family, where).eval()


def _built(config: Mapping[str, Any], family: TextFamily, where: object) -> Any:
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    config_class = getattr(transformers, f"{family.stem}Config")
    model_class = getattr(transformers, f"{family.stem}Model")
    known = {k: v for k, v in config.items() if k in config_class.__annotations__}
    has_pooler = "add_pooling_layer" in inspect.signature(model_class).parameters
    try:
        settings = config_class(**known)
        return model_class(settings, **({"add_pooling_layer": False} if has_pooler else {}))
    except (*_BUILD_ERRORS, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{where}: no text encoder can be built from {CONFIG_FILE}: {reason}"
        ) from error


def encoder_weights(
    tensors: Mapping[str, Tensor], family: TextFamily, model: nn.Module
) -> dict[str, Tensor]:
    """The tensors of the encoder under its own names; those of heads beside it are left out.

    Older checkpoints call the parameters of layer norms gamma and beta.
    """
    parts = {name.partition(".")[0] for name in model.state_dict()}
    found = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(f"{family.prefix}.")
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            name = name.removesuffix(old) + new if name.endswith(f"LayerNorm{old}") else name
        is_count = name.endswith(("position_ids", "token_type_ids"))
        if name.partition(".")[0] in parts and not is_count:
            found[name] = tensor
    return found


def most_tokens(model: Any, family: TextFamily) -> int:
    """Tokens of one text, special ones included, that the encoder has positions for."""
    lost = model.embeddings.padding_idx + 1 if family.positions_after_padding else 0
    return int(model.config.max_position_embeddings) - lost
