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
from tokenizers import Tokenizer, decoders, models

LETTERS = "|ETAONIHSRDLUMWCFGYPBVK'XJQZ"
ALPHABET = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {c: 4 + i for i, c in enumerate(LETTERS)}

_SMALL = {
    "conv_dim": [32] * 7, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
    "vocab_size": len(ALPHABET),
}  # fmt: skip
_LAYER = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}

#: Stem of the classes and settings, in the published layouts: wav2vec2-base-960h,
#: wav2vec2-large-960h-lv60-self, hubert-large-ls960-ft, wavlm-base-plus, data2vec-audio-base-960h.
BATCHED: dict[str, tuple[str, dict[str, Any]]] = {
    "wav2vec2-group": ("Wav2Vec2", {}),
    "wav2vec2-layer": ("Wav2Vec2", _LAYER),
    "hubert": ("Hubert", _LAYER),
    "wavlm": ("WavLM", {}),
    "data2vec": (
        "Data2VecAudio",
        {"num_conv_pos_embeddings": 5, "conv_pos_kernel_size": 19, "conv_bias": False},
    ),
    "mms": ("Wav2Vec2", _LAYER | {"adapter_attn_dim": 8}),
}
#: Networks whose stock forward pass is used as it is, clip by clip.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "conformer": ("Wav2Vec2Conformer", {}),
    "unispeech": ("UniSpeech", {}),
    "sew": ("SEW", {"squeeze_factor": 2, "conv_dim": [32] * 13}),
    "w2v-bert": ("Wav2Vec2Bert", {"feature_projection_input_dim": 160}),
    "adapter": ("Wav2Vec2", _LAYER | {"add_adapter": True}),
    "hubert-batch-norm": ("Hubert", {"conv_pos_batch_norm": True}),
}
CTC = BATCHED | OTHERS


def write_ctc(folder: Path, kind: str = "wav2vec2-group", *, together: bool = False) -> None:
    """Write a CTC folder whose texts differ from clip to clip.

    `together`: feature extractor and tokenizer in one processor, as transformers 5 saves them.
    """
    stem, settings = CTC[kind]
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(11)
    config = getattr(transformers, f"{stem}Config")(**(_SMALL | settings))
    model = getattr(transformers, f"{stem}ForCTC")(config).eval()
    with torch.no_grad():
        _move_norms(model)
        model.lm_head.weight.mul_(20)
    model.save_pretrained(folder)
    words = {"eng": ALPHABET} if kind == "mms" else ALPHABET
    (folder / "vocab.json").write_text(json.dumps(words))
    language = {"target_lang": "eng"} if kind == "mms" else {}
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), **language)
    if kind == "w2v-bert":
        extractor = transformers.SeamlessM4TFeatureExtractor()
    else:
        extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    _save(folder, transformers.Wav2Vec2Processor, extractor, tokenizer, together)


def _save(folder: Path, kind: Any, extractor: Any, tokenizer: Any, together: bool) -> None:
    for part in [kind(extractor, tokenizer)] if together else [extractor, tokenizer]:
        part.save_pretrained(folder)


def _move_norms(model: torch.nn.Module) -> None:
    """Norms and biases away from 1 and 0, where a swapped one would go unnoticed."""
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.add_(0.2 * torch.randn(parameter.shape))


_SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>")
_TASKS = ("<|translate|>", "<|transcribe|>", "<|notimestamps|>")


def write_whisper(folder: Path, *, multilingual: bool = False, together: bool = False) -> None:
    """Write a Whisper folder that spells with single letters; `together` as of `write_ctc`."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = {chr(code): code - 33 for code in range(33, 127)}
    (folder / "vocab.json").write_text(json.dumps(letters))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    number = {token: len(letters) + i for i, token in enumerate((*_SPECIAL, *_TASKS))}
    tokenizer = transformers.WhisperTokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        additional_special_tokens=list(number)[1:],
    )
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
        suppress_tokens=list(number.values())[1:],
        begin_suppress_tokens=[end],
        is_multilingual=multilingual,
        **(known if multilingual else {}),
        **ends,
    )
    model.save_pretrained(folder)
    extractor = transformers.WhisperFeatureExtractor(feature_size=20)
    _save(folder, transformers.WhisperProcessor, extractor, tokenizer, together)


def write_moonshine(folder: Path) -> None:
    """Write a Moonshine folder that spells with single letters."""
    letters = {c: i for i, c in enumerate(("<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz"))}
    backend = Tokenizer(models.BPE(vocab=letters, merges=[], unk_token="<unk>"))
    backend.decoder = decoders.Fuse()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(3)
    config = transformers.MoonshineConfig(
        vocab_size=len(letters), hidden_size=32, intermediate_size=64, max_position_embeddings=64,
        encoder_num_hidden_layers=2, decoder_num_hidden_layers=2,
        encoder_num_attention_heads=4, decoder_num_attention_heads=4,
    )  # fmt: skip
    model = transformers.MoonshineForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    model.generation_config = transformers.GenerationConfig(
        max_length=16, bos_token_id=1, eos_token_id=2, pad_token_id=2, decoder_start_token_id=1
    )
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)


def plain_texts(folder: Path, signals: list[np.ndarray]) -> list[str]:
    """One file at a time through transformers' own pipeline, spaces between words single."""
    pipeline = transformers.pipeline("automatic-speech-recognition", model=str(folder))
    # its own default is a beam of five
    greedy = {} if pipeline.type == "ctc" else {"generate_kwargs": {"num_beams": 1}}
    texts = [pipeline({"raw": s, "sampling_rate": 16_000}, **greedy)["text"] for s in signals]
    return [" ".join(text.split()) for text in texts]


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
