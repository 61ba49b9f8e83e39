"""The largest numbers a configuration may hold, far above any model that exists.

A line of JSON must not be able to fill the memory: each number is checked by itself before a
network is built, and their product, the number of parameters, before its weights are allocated.
"""

from __future__ import annotations

from typing import Any

from raysers.errors import CheckpointError

#: Largest whole numbers.
_MOST = {
    "num_hidden_layers": 200,
    "hidden_size": 16_384,
    "intermediate_size": 65_536,
    "num_attention_heads": 256,
    "num_conv_pos_embeddings": 4_096,
    "num_conv_pos_embedding_groups": 1_024,
    "conv_pos_kernel_size": 4_096,
    "num_buckets": 65_536,
    "max_bucket_distance": 1_000_000,
    "num_feat_extract_layers": 32,
    "mel_bands": 1_024,
    "window_samples": 65_536,
    "hop_samples": 65_536,
    "d_model": 16_384,
    "encoder_layers": 200,
    "decoder_layers": 200,
    "encoder_attention_heads": 256,
    "decoder_attention_heads": 256,
    "encoder_ffn_dim": 65_536,
    "decoder_ffn_dim": 65_536,
    "num_mel_bins": 1_024,
    "max_source_positions": 65_536,
    "max_target_positions": 65_536,
}

#: The same for entries of the lists that describe the convolutions.
_MOST_PER_CONV = {
    "conv_dim": 8_192,
    "conv_kernel": 4_096,
    "conv_stride": 4_096,
    "widths": 8_192,
}
_MOST_CONVS = 32

#: The largest speech backbones have 2e9.
_MOST_PARAMETERS = 4_000_000_000


def check_numbers(config: dict[str, Any], where: object) -> None:
    """Refuse numbers that no network has.

    Raises:
        CheckpointError: naming the key.
    """
    for key, most in _MOST.items():
        if key in config:
            _check_number(config[key], most, f"{where}: {key}")
    for key, most in _MOST_PER_CONV.items():
        entries = config.get(key, [1])
        if not isinstance(entries, list) or not 1 <= len(entries) <= _MOST_CONVS:
            raise CheckpointError(f"{where}: {key} is not a list of 1 to {_MOST_CONVS} numbers")
        for entry in entries:
            _check_number(entry, most, f"{where}: an entry of {key}")


def check_size(parameters: int, where: object) -> None:
    """Refuse a network of more parameters than any that exists.

    Raises:
        CheckpointError: each number of the configuration is possible, but all of them are not.
    """
    if parameters > _MOST_PARAMETERS:
        raise CheckpointError(
            f"{where}: config.json describes a network of {parameters:.1e} parameters; at most"
            f" {_MOST_PARAMETERS:.0e} are built"
        )


def _check_number(value: object, most: int, what: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise CheckpointError(f"{what} is {str(value)[:40]!r}, not a whole number from 1 to {most}")
