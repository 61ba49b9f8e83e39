"""Networks of transformers from model folders of strangers: complete, or refused by name.

The stock loader draws what a folder lacks at random and drops what it has no place for, and both
still yield numbers. Nothing of a folder is executed: no code, no pickle, no kernel of a hub.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from raysers.errors import CheckpointError, ConfigError, RaysersError
from raysers.models import checkpoint, loading
from raysers.models.checkpoint import CONFIG_FILE, PREPROCESSOR_FILE, PROCESSOR_FILE

#: Files beside the weights and the configuration that decide what a network is fed and what its
#: outputs mean.
COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "spm.model", "sentencepiece.bpe.model",
    "normalizer.json", "generation_config.json", PROCESSOR_FILE,
)  # fmt: skip

#: Keys of a configuration that choose code rather than a network.
_CODE_KEYS = ("auto_map", "attn_implementation", "_attn_implementation")


def open_folder(
    path: str | None, hub_id: str | None, revision: str | None, flag: str, cache_dir: Any = None
) -> tuple[Path, str]:
    """Local folder of a model, and its revision: the hub's commit, or a content hash.

    Raises:
        ConfigError: it cannot be fetched; a folder of an object store is fetched by the caller.
        CheckpointError: no folder, one without weights, or one that is not safe to read.
    """
    if hub_id is not None:
        folder = checkpoint.fetch_snapshot(hub_id, revision, cache_dir, also=COMPANIONS, flag=flag)
        checkpoint.check_folder(folder)
        return folder, folder.name
    folder = Path(str(path)).expanduser()
    if str(path).startswith("s3://"):
        raise ConfigError(f"{flag} {path}: fetch the folder first and load the local copy")
    if not folder.is_dir():
        raise CheckpointError(f"{flag} {path} does not exist: give a folder")
    checkpoint.check_folder(folder)
    names = (CONFIG_FILE, PREPROCESSOR_FILE, *COMPANIONS)
    files = [folder / name for name in names if (folder / name).is_file()]
    return folder, checkpoint.content_hash([*files, *checkpoint.weight_paths(folder)])


def load_pretrained(folder: Path, *autos: str, inside: bool = False) -> Any:
    """The network of a folder with every weight in its place: float32, on the CPU, for inference.

    Args:
        folder: as `open_folder` returns it.
        autos: names of transformers' Auto classes, of which the first that knows the kind is used.
        inside: the folder may hold a larger network around this one; heads are left out, and the
            pooler, which is not used, may be missing.

    Raises:
        CheckpointError: another kind of network, numbers no network has, or weights that are
            missing, unexpected, misshapen, quantised or not finite.
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
    unused = (
        "masked_spec_embed",
        *(["pooler.dense.weight", "pooler.dense.bias"] if inside else []),
    )
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
