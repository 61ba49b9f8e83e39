"""Operations of the paper's networks, against what others counted and measured."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Wav2Vec2Config, Wav2Vec2Model, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from raysers.models.backbones import BACKBONES
from raysers.models.loading import build_network
from raysers.studies.cost import operations_per_s
from raysers.studies.networks import PRETRAININGS, small_config


@pytest.mark.parametrize("alias", ["w2v2-b", "w2v2-L-robust"])
def test_torch_counts_as_many_operations(alias):
    """In the plain network of transformers, at small size; six seconds of one clip."""
    config = small_config(alias)
    network = Wav2Vec2Model(Wav2Vec2Config(**config, attn_implementation="eager")).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 96_000))
    # frames are rounded down, and so are the kernels at the ends
    assert 6 * sum(operations_per_s(config)) == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_torch_counts_as_many_operations_of_whisper():
    """In the stock encoder with positions for six seconds; the spectrogram is not counted."""
    config = BACKBONES["whisper-tiny"].config(2) | {"max_source_positions": 300}
    known = {key: value for key, value in config.items() if key != "model_type"}
    network = WhisperEncoder(WhisperConfig(**known, attn_implementation="eager")).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 80, 600))
    assert 6 * sum(operations_per_s(config)) == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_torch_counts_as_many_operations_of_cnn14():
    """Its convolutions; the spectrogram is not counted."""
    config = small_config("cnn14")
    network = build_network(config, "cnn14").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 96_000), torch.tensor([96_000]))
    assert 6 * sum(operations_per_s(config)) == pytest.approx(counter.get_total_flops(), rel=0.1)


@pytest.mark.parametrize(("alias", "layers", "known"), [("w2v2-b", 12, 14), ("msp-dim", 12, 21)])
def test_the_full_size_is_what_was_measured(alias, layers, known):
    """Billions a second of audio, as measured on the full networks."""
    operations = sum(operations_per_s(BACKBONES[alias].config(layers)))
    assert operations / 1e9 == pytest.approx(known, rel=0.05)


def test_small_networks_keep_what_tells_the_families_apart():
    for alias in PRETRAININGS:
        full, small = BACKBONES[alias].config(), small_config(alias)
        for key in ("model_type", "feat_extract_norm", "do_stable_layer_norm", "conv_bias"):
            assert small[key] == full[key]
        assert small["hidden_size"] < full["hidden_size"]
