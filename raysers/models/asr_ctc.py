"""CTC recognition with any wav2vec2, HuBERT, WavLM or data2vec-audio model, greedy.

The network is walked through as the emotion models are, so padding reaches no statistic of it
(group norm included) and a clip's letters do not depend on its batch; the stock forward pass of
the base models gives other letters in a batch than alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from raysers.audio.level import is_silent
from raysers.errors import CheckpointError, ClipError
from raysers.models import checkpoint, loading
from raysers.models.backbones import FAMILIES
from raysers.models.emotion import EmotionModel
from raysers.models.loading import LoadedModel
from raysers.models.scorer import Floats, Row, Scorer, auto_padded_s, score_rows

#: Classes that decode as `Wav2Vec2CTCTokenizer`; others need code or data of their own.
_TOKENIZERS = ("Wav2Vec2CTCTokenizer", "Wav2Vec2Tokenizer", None)

#: Largest alphabet: syllabaries of thousands exist, a million outputs is a damaged number.
_MOST_OUTPUTS = 1_000_000

#: What stands behind a shorter clip's tokens in a batch.
_NO_TOKEN = -1

#: Configuration keys that describe outputs, left out of the emotion models' configurations.
_VOCABULARY_KEYS = {"vocab_size"}


class CtcNetwork(EmotionModel):
    """A speech backbone and one linear layer to the alphabet.

    It is scored as the emotion models are: what takes the place of a clip's scores are its best
    tokens, one a frame.
    """

    def init_head(self) -> None:
        """The layer to the alphabet, as new."""
        self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size)

    @property
    def embedding_size(self) -> int:
        """Numbers of a frame."""
        return cast(int, self.config.hidden_size)

    def logits(self, padded: Tensor, lengths: Tensor) -> Tensor:
        """float32 [clips, frames, tokens] before any softmax; arguments as of `forward`.

        With a float32 backbone a clip's own frames equal the plain single-file forward pass to
        about 1e-6.
        """
        hidden, _ = self._hidden(padded, lengths)
        return cast(Tensor, self.lm_head(hidden.float()))

    def forward(self, padded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Best token of every frame, float32 [clips, frames], and how sure, [clips, 1].

        Whole numbers, exact in float32; behind a clip's own frames -1, and NaN throughout where a
        logit is not finite. How sure is the mean of the best logits.

        Args:
            padded: float32 [clips, samples], 16 kHz, zero behind each clip.
            lengths: int64 [clips], samples of each clip, at least the receptive field.
        """
        best = self.logits(padded, lengths).max(dim=-1)
        frames = self.geometry.frames(lengths).to(best.values.device)
        own = torch.arange(best.values.shape[1], device=frames.device) < frames[:, None]
        tokens = best.indices.float().masked_fill(~best.values.isfinite(), torch.nan)
        sure = best.values.masked_fill(~own, 0.0).sum(1) / frames
        return tokens.masked_fill(~own, _NO_TOKEN), sure[:, None]


class CtcRecogniser:
    """A CTC network with the alphabet in its folder.

    Args:
        folder: local folder.
        config: its `config.json`.
        name: what `--asr` said.
        revision: commit or content hash of the folder.
        device: `cpu` or `cuda`.
        dtype: precision of the backbone; the layer to the alphabet stays in float32.
        threads: compute threads on CPUs.

    Raises:
        CheckpointError: the folder is not a CTC model that can be decoded.
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
        loaded = load_ctc_network(folder, config, name, revision)
        self._tokenizer = load_ctc_tokenizer(folder, outputs=config["vocab_size"])
        self._scorer = Scorer(loaded, dtype=dtype, device=device, threads=threads)
        self.max_padded_s = auto_padded_s(self._scorer)

    def transcribe(self, signals: Sequence[Floats]) -> list[str | ClipError]:
        """Text of each 16 kHz mono signal, or why it has none."""
        rows = score_rows(self._scorer, signals)
        return [
            self._text(row.scores, signal) if isinstance(row, Row) else row
            for row, signal in zip(rows, signals, strict=True)
        ]

    def _text(self, tokens: Floats, signal: Floats) -> str:
        if is_silent(signal):
            return ""
        numbers = tokens[tokens != _NO_TOKEN].astype(np.int64).tolist()
        # repeated tokens are one, blanks vanish, the delimiter parts words: all by the folder
        text = str(self._tokenizer.decode(numbers, clean_up_tokenization_spaces=False))
        return " ".join(text.split())


def load_ctc_network(folder: Path, config: dict[str, Any], name: str, revision: str) -> LoadedModel:
    """The network with its weights, every one in its place.

    Raises:
        CheckpointError: another network, or weights that do not fit.
    """
    checkpoint.check_config(config, folder)
    do_normalize = checkpoint.read_do_normalize(folder, config)
    with torch.device("meta"):
        network = build_ctc_network(config, folder)
    checkpoint.check_size(sum(p.numel() for p in network.parameters()), folder)
    tensors = loading.read_weights(checkpoint.weight_paths(folder))
    if not any(key.startswith("lm_head.") for key in tensors):
        raise CheckpointError(
            f"{folder} has no lm_head: a model that was fine-tuned for recognition has one"
        )
    loading.load_weights(network, tensors, folder)
    return LoadedModel(
        model=network.eval(),
        name=name,
        revision=revision,
        do_normalize=do_normalize,
    )


def build_ctc_network(config: dict[str, Any], where: object) -> CtcNetwork:
    """The network of a `config.json`, weights as initialised.

    Raises:
        CheckpointError: a value no network can be built from.
    """
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    size = config.get("vocab_size")
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= _MOST_OUTPUTS:
        raise CheckpointError(f"{where}: vocab_size is {str(size)[:40]!r}, not a number of tokens")
    config_class = getattr(transformers, FAMILIES[config["model_type"]].config_class)
    base = {"pad_token_id", "bos_token_id", "eos_token_id"}
    known = {k: v for k, v in config.items() if k in {*config_class.__annotations__} - base}
    try:
        return CtcNetwork(config_class(**known))
    except (*BUILD_ERRORS, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{where}: no network can be built: {reason}") from error


#: What impossible values of a configuration lead to inside the constructors.
BUILD_ERRORS = (
    TypeError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    RuntimeError,
    ZeroDivisionError,
)


def load_ctc_tokenizer(folder: Path, *, outputs: int) -> Any:
    """The folder's own `Wav2Vec2CTCTokenizer`, with a token for each of the network's `outputs`.

    Raises:
        CheckpointError: it is missing, of another kind, or of another alphabet.
    """
    from transformers import Wav2Vec2CTCTokenizer

    if not (folder / "vocab.json").is_file():
        raise CheckpointError(f"{folder} has no vocab.json: its outputs have no letters")
    settings = folder / "tokenizer_config.json"
    said = checkpoint.read_json(settings) if settings.is_file() else {}
    kind = said.get("tokenizer_class")
    if kind not in _TOKENIZERS:
        raise CheckpointError(f"{folder}: tokenizer {kind} is not supported, only {_TOKENIZERS[0]}")
    vocabulary = checkpoint.read_json(folder / "vocab.json")
    if not all(isinstance(number, int) for number in vocabulary.values()):
        raise CheckpointError(f"{folder}: vocab.json is not one alphabet of tokens and numbers")
    try:
        tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (*BUILD_ERRORS, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: its tokenizer cannot be read: {reason}") from error
    delimiter = said.get("word_delimiter_token")
    if isinstance(delimiter, dict):  # as older versions wrote tokens
        delimiter = delimiter.get("content")
    if isinstance(delimiter, str):  # transformers 5 forgets it on the way and goes on with "|"
        tokenizer._word_delimiter_token = delimiter
    numbers = set(tokenizer.get_vocab().values())
    if lost := [n for n in range(outputs) if n not in numbers]:
        raise CheckpointError(
            f"{folder}: vocab.json has no token for {len(lost)} outputs of the network ({lost[0]})"
        )
    return tokenizer
