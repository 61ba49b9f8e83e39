"""Whisper recognition, greedy: the likeliest token at every step, nothing drawn or tried twice.

Whisper takes windows of 30 s, whatever the clip's length. Longer clips are cut at a pause and the
texts joined; the stock long-form decoding is not used, because there the text of one window decides
where the next begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raysers.audio.level import is_silent, quiet_pieces
from raysers.errors import CheckpointError, ClipError, ConfigError
from raysers.models import checkpoint, loading
from raysers.models.asr_ctc import BUILD_ERRORS
from raysers.models.emotion import EmotionNetwork
from raysers.models.loading import LoadedModel
from raysers.models.scorer import Scorer, score_rows
from raysers.types import SAMPLE_RATE_HZ

#: Where to look for a pause before the end of a window.
_SEARCH_S = 8.0

#: Windows per forward pass; more only wait for the longest text among them.
_CPU_WINDOWS = 4
_GPU_WINDOWS = 32

#: Samples of one spectral frame: the shortest clip with something to hear.
_MIN_SAMPLES = 400

_OUTPUT_HEAD = "proj_out.weight"
_TOKEN_EMBEDDING = "model.decoder.embed_tokens.weight"

#: The front end of every Whisper; another one would need other code.
_HEARING = checkpoint.WHISPER_FRONT | {"chunk_length": 30}

_GENERATION_FILE = "generation_config.json"

#: What of `generation_config.json` says which texts are possible; how to search for them does not
#: count, because the search is always greedy.
_RULES = (
    "decoder_start_token_id",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "prev_sot_token_id",
    "no_timestamps_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_decoder_ids",
    "max_length",
    "is_multilingual",
    "lang_to_id",
    "task_to_id",
    "language",
    "task",
    "no_repeat_ngram_size",
    "repetition_penalty",
)


class WhisperNetwork(EmotionNetwork):
    """The stock network behind what scores clips: a clip's scores are the tokens of its text."""

    def __init__(self, stock: Any, extractor: Any, generation: Any) -> None:
        super().__init__()
        self.stock = stock
        self.config = stock.config
        self._extractor = extractor
        self._generation = generation

    @property
    def embedding_size(self) -> int:
        """Numbers of a frame of the encoder."""
        return int(self.config.d_model)

    @property
    def min_samples(self) -> int:
        """Samples of the shortest clip with something to hear."""
        return _MIN_SAMPLES

    def forward(self, padded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of every clip, float32 [clips, tokens], and how many they are, [clips, 1].

        Whole numbers, exact in float32; the shorter texts end in padding tokens.

        Args:
            padded: float32 [clips, samples], 16 kHz, at most 30 s.
            lengths: int64 [clips], samples of each clip.
        """
        signals = [row[:n] for row, n in zip(padded.cpu().numpy(), lengths.tolist(), strict=True)]
        mel = self._extractor(signals, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
        features = mel.input_features.to(self.stock.device, self.stock.dtype)
        tokens = self.stock.generate(
            features,
            generation_config=self._generation,
            attention_mask=torch.ones_like(features[:, 0], dtype=torch.long),  # all of a window
        )
        return tokens.float(), (tokens >= 0).sum(1, keepdim=True).float()

    def cast(self, dtype: torch.dtype) -> None:
        """Let the network compute in `dtype`."""
        self.stock.to(dtype)

    def freeze(self, part: str) -> None:
        """Raises ConfigError: recognisers are not trained."""
        raise ConfigError(f"--freeze {part}: a Whisper network is not trained here")

    def gradient_checkpointing(self, on: bool) -> None:
        """Recognisers are not trained, so there is nothing to keep."""


class WhisperRecogniser:
    """A Whisper network with the tokenizer in its folder.

    Arguments and errors as of `CtcRecogniser`; `dtype` is that of the whole network.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        name: str,
        revision: str,
        *,
        device: str,
        dtype: str,
        threads: int | None,
    ) -> None:
        self.name, self.revision, self.device = name, revision, device
        stock = _stock_network(folder, config)
        self._tokenizer, extractor, generation = _companions(folder, stock.config.num_mel_bins)
        self._window_s = float(extractor.chunk_length)
        network = WhisperNetwork(stock, extractor, generation)
        loaded = LoadedModel(
            model=network.eval(),
            name=name,
            revision=revision,
            do_normalize=False,
        )
        self._scorer = Scorer(loaded, dtype=dtype, device=device, threads=threads)
        windows = _CPU_WINDOWS if self._scorer.device.type == "cpu" else _GPU_WINDOWS
        self.max_padded_s = windows * self._window_s

    def transcribe(self, signals: Sequence[npt.NDArray[np.float32]]) -> list[str | ClipError]:
        """Text of each 16 kHz mono signal, or why it has none."""
        cut = [self._pieces(signal) for signal in signals]
        texts = iter(self._texts([piece for pieces in cut for piece in pieces]))
        return [_joined([next(texts) for _ in pieces]) for pieces in cut]

    def _pieces(self, signal: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        pieces = quiet_pieces(signal, longest_s=self._window_s, search_s=_SEARCH_S)
        # of silence, Whisper invents words
        return [p for p in pieces if len(p) < _MIN_SAMPLES or not is_silent(p)]

    def _texts(self, pieces: Sequence[npt.NDArray[np.float32]]) -> list[str | ClipError]:
        at_once = max(1, int(self.max_padded_s / self._window_s))
        return [
            row if isinstance(row, ClipError) else self._text(row.scores)
            for start in range(0, len(pieces), at_once)
            for row in score_rows(self._scorer, pieces[start : start + at_once])
        ]

    def _text(self, tokens: npt.NDArray[np.float32]) -> str:
        numbers = tokens.astype(np.int64).tolist()
        return str(self._tokenizer.decode(numbers, skip_special_tokens=True)).strip()


def _joined(texts: Sequence[str | ClipError]) -> str | ClipError:
    """The text of a clip from those of its pieces; one piece's failure is the clip's."""
    words = []
    for text in texts:
        if isinstance(text, ClipError):
            return text
        words.append(text)
    return " ".join(filter(None, words))


def _stock_network(folder: Path, config: dict[str, Any]) -> Any:
    """`WhisperForConditionalGeneration` with the folder's weights, every one in its place.

    Raises:
        CheckpointError: numbers no network has, or weights that do not fit.
    """
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    checkpoint.check_numbers(config, folder)
    known = {k: v for k, v in config.items() if k in transformers.WhisperConfig.__annotations__}
    try:
        with torch.device("meta"):
            settings = transformers.WhisperConfig(**known)
            network = transformers.WhisperForConditionalGeneration(settings)
    except (*BUILD_ERRORS, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: no network can be built: {reason}") from error
    checkpoint.check_size(sum(p.numel() for p in network.parameters()), folder)
    tensors = loading.read_weights(checkpoint.weight_paths(folder))
    if _TOKEN_EMBEDDING in tensors:  # one matrix under two names, usually stored once
        tensors.setdefault(_OUTPUT_HEAD, tensors[_TOKEN_EMBEDDING])
    loading.load_weights(network, tensors, folder)
    return network.eval()


def _companions(folder: Path, mel_bins: object) -> tuple[Any, Any, Any]:
    """Tokenizer, feature extractor and the rules of decoding.

    Raises:
        CheckpointError: one is missing or cannot be read, or has another front end.
    """
    import transformers

    for key, wanted in (_HEARING | {"feature_size": mel_bins}).items():
        found = checkpoint.read_json(folder / checkpoint.PREPROCESSOR_FILE).get(key, wanted)
        if found != wanted:
            raise CheckpointError(
                f"{folder}: {key} is {str(found)[:40]!r}, only {wanted} is supported"
            )
    rules = checkpoint.read_json(folder / _GENERATION_FILE)
    if rules.get("task_to_id"):
        rules["task"] = "transcribe"  # never a translation, also where the folder says nothing
    try:
        tokenizer = transformers.WhisperTokenizer.from_pretrained(
            str(folder), local_files_only=True
        )
        extractor = transformers.WhisperFeatureExtractor.from_pretrained(
            str(folder), local_files_only=True
        )
        generation = transformers.GenerationConfig(
            **{key: value for key, value in rules.items() if key in _RULES},
            do_sample=False,
            num_beams=1,
            return_timestamps=False,
        )
    except (*BUILD_ERRORS, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: its tokenizer cannot be read: {reason}") from error
    return tokenizer, extractor, generation
