"""Recognisers in the layout of the published ones, at toy width, and the plain way to use them.

Torch and transformers only: nothing of the project, so that tests compare with other code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

LETTERS = "|ETAONIHSRDLUMWCFGYPBVK'XJQZ"
ALPHABET = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {c: 4 + i for i, c in enumerate(LETTERS)}

_SMALL = {
    "conv_dim": [32] * 7,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": len(ALPHABET),
}
_LAYER = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}

#: The published layouts: wav2vec2-base-960h, wav2vec2-large-960h-lv60-self, hubert-large-ls960-ft,
#: wavlm-base-plus, data2vec-audio-base-960h.
CTC: dict[str, tuple[type, type, dict[str, Any]]] = {
    "wav2vec2-group": (transformers.Wav2Vec2Config, transformers.Wav2Vec2ForCTC, {}),
    "wav2vec2-layer": (transformers.Wav2Vec2Config, transformers.Wav2Vec2ForCTC, _LAYER),
    "hubert": (transformers.HubertConfig, transformers.HubertForCTC, _LAYER),
    "wavlm": (transformers.WavLMConfig, transformers.WavLMForCTC, {}),
    "data2vec": (
        transformers.Data2VecAudioConfig,
        transformers.Data2VecAudioForCTC,
        {"num_conv_pos_embeddings": 5, "conv_pos_kernel_size": 19, "conv_bias": False},
    ),
}


def write_ctc(folder: Path, kind: str = "wav2vec2-group", **config: Any) -> Any:
    """Write a CTC folder whose texts differ from clip to clip; returns the stock model."""
    config_class, model_class, flags = CTC[kind]
    torch.manual_seed(11)
    model = model_class(config_class(**(_SMALL | flags | config))).eval()
    with torch.no_grad():
        _move_norms(model)
        model.lm_head.weight.mul_(20)
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(ALPHABET))
    transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return model


def _move_norms(model: torch.nn.Module) -> None:
    """Norms and biases away from 1 and 0, where a swapped one would go unnoticed."""
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.add_(0.2 * torch.randn(parameter.shape))


def _bytes_alphabet() -> list[str]:
    """The 256 letters of a byte-level vocabulary, as GPT-2 writes bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    letters = dict(zip(plain, map(chr, plain), strict=True))
    letters |= {b: chr(256 + i) for i, b in enumerate(others)}
    return [letters[b] for b in range(256)]


_SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>")
_TASKS = ("<|translate|>", "<|transcribe|>", "<|notimestamps|>")


def write_whisper(folder: Path, *, multilingual: bool = False) -> Any:
    """Write a Whisper folder with a byte-level vocabulary; returns the stock model."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = {letter: i for i, letter in enumerate(_bytes_alphabet())}
    (folder / "vocab.json").write_text(json.dumps(letters))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    number = {token: len(letters) + i for i, token in enumerate((*_SPECIAL, *_TASKS))}
    tokenizer = transformers.WhisperTokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        additional_special_tokens=list(number)[1:],
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(5)
    end = number["<|endoftext|>"]
    ends = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end}
    ends["decoder_start_token_id"] = number["<|startoftranscript|>"]
    config = transformers.WhisperConfig(
        vocab_size=len(letters) + len(number), num_mel_bins=20, d_model=32,
        encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=1500, max_target_positions=40,
        suppress_tokens=None, begin_suppress_tokens=None, **ends,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        _move_norms(model)
        # what is heard and where in the text decide the next letter, not the letter before
        model.model.decoder.embed_positions.weight.mul_(30)
        for layer in (model.model.encoder.conv1, model.model.encoder.conv2):
            layer.weight.mul_(20)
        for layer in model.model.decoder.layers:
            attention = layer.encoder_attn
            for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
                part.weight.mul_(20)
    known = {
        "lang_to_id": {token: number[token] for token in _SPECIAL[2:]},
        "task_to_id": {"translate": number[_TASKS[0]], "transcribe": number[_TASKS[1]]},
        "task": "transcribe",  # or the stock pipeline leaves it open
    }
    model.generation_config = transformers.GenerationConfig(
        max_length=24,
        no_timestamps_token_id=number["<|notimestamps|>"],
        suppress_tokens=[*range(33), *range(94, 256), *list(number.values())[1:]],
        begin_suppress_tokens=[end],
        is_multilingual=multilingual,
        **(known if multilingual else {}),
        **ends,
    )
    model.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=20).save_pretrained(folder)
    return model


def plain_texts(folder: Path, signals: list[np.ndarray]) -> list[str]:
    """One file at a time through transformers' own pipeline."""
    pipeline = transformers.pipeline("automatic-speech-recognition", model=str(folder))
    # its own default is a beam of five
    greedy = {"generate_kwargs": {"num_beams": 1}} if pipeline.type == "seq2seq_whisper" else {}
    return [pipeline({"raw": s, "sampling_rate": 16_000}, **greedy)["text"] for s in signals]


def clips(lengths: list[int], seed: int = 1) -> list[np.ndarray]:
    """Speech-like noise: bands that come and go, of these numbers of samples."""
    rng = np.random.default_rng(seed)
    made = []
    for length in lengths:
        times = np.arange(length) / 16_000
        tones = sum(
            np.sin(2 * np.pi * rng.uniform(100, 3000) * times + rng.uniform(0, 6))
            * np.clip(np.sin(2 * np.pi * rng.uniform(0.5, 4) * times + rng.uniform(0, 6)), 0, 1)
            for _ in range(6)
        )
        noise = rng.standard_normal(length)
        made.append((0.05 * tones + 0.02 * noise).astype(np.float32))
    return made
