"""Speech recognition by name: signals in, text out.

Decoding is greedy: the likeliest token at every step, nothing sampled or tried twice. The text of a
clip depends on the clip alone, whatever else is in its batch: where a network's stock forward pass
would let neighbours in, its clips are computed one at a time. Speech that is not there is an empty
text, not an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from raysers.audio.level import is_silent, quiet_pieces
from raysers.errors import CheckpointError, ClipError, ConfigError
from raysers.models import checkpoint
from raysers.models.backbones import FAMILIES, WHISPER, ModelName, parse_model_name
from raysers.models.emotion import EmotionModel, EmotionNetwork
from raysers.models.loading import LoadedModel
from raysers.models.moonshine import MOONSHINE, MoonshineRecogniser
from raysers.models.pretrained import load_pretrained, open_folder, read_auto, reading
from raysers.models.scorer import Row, Scorer, auto_padded_s, score_rows
from raysers.types import SAMPLE_RATE_HZ

Floats = npt.NDArray[np.float32]

#: What `--asr` is without a word from the user: it needs no download.
DEFAULT_ASR = MOONSHINE

_HINT = (
    "give moonshine (offline), the hub id of a CTC, Whisper or other speech-to-text model of "
    "transformers (facebook/wav2vec2-base-960h), a folder (./folder) or s3://bucket/prefix"
)

#: Whisper's windows, and the longest pieces of all that is not batched; where to look for a pause
#: before their end; and longer than any clip.
_WINDOW_S, _SEARCH_S, _ANY_S = 30.0, 8.0, 1e6
#: Whisper's windows per forward pass; more only wait for the longest text among them.
_CPU_WINDOWS, _GPU_WINDOWS = 4, 32

#: Samples of the shortest clip: one frame of Whisper's spectrogram. A tenth of a second, which is
#: shorter than any word, where the receptive field is not known.
_WHISPER_MIN_SAMPLES, _MIN_SAMPLES = 400, 1_600

#: What stands behind a shorter clip's tokens in a batch.
_NO_TOKEN = -1.0

#: Tokens of a piece where the folder does not say: six a second.
_MOST_TOKENS = 200
#: What of `generation_config.json` says which texts are possible; how to search for them does not
#: count, because the search is always greedy.
_RULES = (
    "decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id", "prev_sot_token_id",
    "no_timestamps_token_id", "suppress_tokens", "begin_suppress_tokens", "forced_decoder_ids",
    "forced_bos_token_id", "max_length", "is_multilingual", "lang_to_id", "task_to_id", "language",
    "task", "no_repeat_ngram_size", "repetition_penalty",
)  # fmt: skip


def load_asr(
    name: str, *, device: str = "cpu", dtype: str = "auto", threads: int | None = None
) -> Recogniser:
    """Load a recogniser.

    Args:
        name: `moonshine`, a hub id with an optional `@REVISION`, or a local folder.
        device: `cpu` or `cuda`; moonshine always computes on the CPU.
        dtype: auto, fp32, bf16 or fp16 of all but moonshine.
        threads: compute threads of this process on CPUs; None leaves the libraries' setting.

    Raises:
        ConfigError: no such name, no way to fetch it, or a format it does not compute in.
        CheckpointError: the folder is no model whose texts can be trusted.
    """
    if is_moonshine(name):
        return MoonshineRecogniser(dtype=dtype, threads=threads)
    return StockRecogniser(name, device=device, dtype=dtype, threads=threads)


def is_moonshine(name: str) -> bool:
    """Whether `--asr` means the recogniser that comes as a package with its weights."""
    return name == MOONSHINE


def parse_asr_name(name: str) -> ModelName:
    """Read an `--asr` text other than `moonshine`.

    Raises:
        ConfigError: it is neither a hub id nor a place.
    """
    try:
        parsed = parse_model_name(name)
    except ConfigError as error:
        raise ConfigError(f"unknown --asr {name!r}: {_HINT}") from error
    if parsed.alias is not None or parsed.random:
        raise ConfigError(f"--asr {name!r} is an emotion model or a bare backbone: {_HINT}")
    if parsed.path is not None and not parsed.is_object_store and not Path(parsed.path).is_dir():
        raise ConfigError(f"--asr {name}: there is no such folder; {_HINT}")
    return parsed


class StockRecogniser:
    """A CTC or speech-to-text network of transformers with the tokenizer of its folder.

    Attributes:
        name: what `--asr` said.
        revision: commit or content hash the texts come from.
        device: where it computes, `cpu` or `cuda`.
        max_padded_s: padded seconds of a batch that it is fastest with.
    """

    def __init__(self, name: str, *, device: str, dtype: str, threads: int | None) -> None:
        parsed = parse_asr_name(name)
        folder, revision = open_folder(parsed.path, parsed.hub_id, parsed.revision, "--asr")
        self.name, self.revision, self.device = name, revision, device
        stock = load_pretrained(folder, "AutoModelForCTC", "AutoModelForSpeechSeq2Seq")
        config, is_ctc = stock.config, type(stock).__name__.endswith("CTC")
        if stock.main_input_name == "input_ids":
            raise CheckpointError(f"{folder}: {config.model_type} needs a prompt beside the speech")
        whisper = config.model_type == WHISPER
        extractor = _extractor(folder, config)
        self._tokenizer = _tokenizer(folder, stock, spells_all=is_ctc)
        self._skip_special = not is_ctc
        changed = ("add_adapter", "conv_pos_batch_norm")  # not in the emotion models' pass
        exact = is_ctc and config.model_type in FAMILIES
        exact = exact and not any(getattr(config, key, False) for key in changed)
        network: EmotionNetwork
        if exact:
            with torch.device("meta"):
                network = CtcNetwork(config)
            network.load_state_dict(stock.state_dict(), assign=True)
        else:
            network = StockNetwork(stock, extractor, None if is_ctc else _rules(folder, config))
        self._longest_s = _ANY_S if exact else _WINDOW_S
        loaded = LoadedModel(
            model=network.eval(),
            name=name,
            revision=revision,
            do_normalize=exact and bool(extractor.do_normalize),
        )
        self._scorer = Scorer(loaded, dtype=dtype, device=device, threads=threads)
        windows = _CPU_WINDOWS if self._scorer.device.type == "cpu" else _GPU_WINDOWS
        self.max_padded_s = windows * _WINDOW_S if whisper else auto_padded_s(self._scorer)
        self._least_padded_s = _WINDOW_S if whisper else 1 / SAMPLE_RATE_HZ

    def transcribe(self, signals: Sequence[Floats]) -> list[str | ClipError]:
        """Text of each 16 kHz mono signal in [-1, 1], or why it has none; never raises for one.

        Raises:
            DeviceLost: the accelerator is broken for good.
        """
        cut = [self._pieces(signal) for signal in signals]
        pieces = [piece for parts in cut for piece in parts]
        longest_s = max((len(piece) / SAMPLE_RATE_HZ for piece in pieces), default=0.0)
        at_once = max(1, int(self.max_padded_s / max(longest_s, self._least_padded_s)))
        batches = (pieces[start : start + at_once] for start in range(0, len(pieces), at_once))
        rows = iter([row for batch in batches for row in score_rows(self._scorer, batch)])
        return [self._text([next(rows) for _ in parts]) for parts in cut]

    def _pieces(self, signal: Floats) -> list[Floats]:
        pieces = quiet_pieces(signal, longest_s=self._longest_s, search_s=_SEARCH_S)
        # networks invent words in silence
        return [p for p in pieces if len(p) < self._scorer.min_samples or not is_silent(p)]

    def _text(self, rows: Sequence[Row | ClipError]) -> str | ClipError:
        """The text of a clip from the tokens of its pieces; one piece's failure is the clip's."""
        words: list[str] = []
        for row in rows:
            if isinstance(row, ClipError):
                return row
            tokens = row.scores[row.scores != _NO_TOKEN].astype(np.int64).tolist()
            # the tokenizer joins what CTC repeats and drops its blanks
            text = self._tokenizer.decode(
                tokens, skip_special_tokens=self._skip_special, clean_up_tokenization_spaces=False
            )
            words += str(text).split()
        return " ".join(words)


Recogniser = StockRecogniser | MoonshineRecogniser


class CtcNetwork(EmotionModel):
    """A backbone of the emotion models and one linear layer to the alphabet.

    Padding reaches no statistic of it, group norm included; the stock forward pass of the base
    models gives other letters in a batch than alone.
    """

    def init_head(self) -> None:
        """The layer to the alphabet, as new."""
        self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size)

    @property
    def embedding_size(self) -> int:
        """Numbers of a frame."""
        return cast(int, self.config.hidden_size)

    def logits(self, padded: Tensor, lengths: Tensor) -> Tensor:
        """float32 [clips, frames, tokens]; behind a clip's own frames they mean nothing."""
        hidden, _ = self._hidden(padded, lengths)
        return cast(Tensor, self.lm_head(hidden.float()))

    def forward(self, padded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See `StockNetwork.forward`."""
        frames = self.geometry.frames(lengths).tolist()
        tokens = _likeliest(self.logits(padded, lengths))
        return _padded([row[:count] for row, count in zip(tokens, frames, strict=True)])


class StockNetwork(EmotionNetwork):
    """A stock network, its feature extractor, and rules of its search (None: CTC)."""

    def __init__(self, stock: Any, extractor: Any, rules: Any) -> None:
        super().__init__()
        self.stock, self.config = stock, stock.config
        self._extractor, self._rules = extractor, rules
        self._whisper = self.config.model_type == WHISPER

    @property
    def embedding_size(self) -> int:
        """Of the count beside the tokens."""
        return 1

    @property
    def min_samples(self) -> int:
        """Samples of the shortest clip."""
        return _WHISPER_MIN_SAMPLES if self._whisper else _MIN_SAMPLES

    def forward(self, padded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of every clip, float32 [clips, tokens], and how many they are, [clips, 1].

        Whole numbers, exact in float32; -1 behind a shorter text, NaN where a logit is not finite.

        Args:
            padded: float32 [clips, samples], 16 kHz, zero behind each clip.
            lengths: int64 [clips], samples of each clip.
        """
        signals = [row[:n] for row, n in zip(padded.cpu().numpy(), lengths.tolist(), strict=True)]
        # all of Whisper's windows are of one length, so they share a pass without padding
        at_once = len(signals) if self._whisper else 1
        starts = range(0, len(signals), at_once)
        return _padded([row for at in starts for row in self._tokens(signals[at : at + at_once])])

    def _tokens(self, signals: Sequence[Floats]) -> Tensor:
        features = self._extractor(signals, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
        if self._whisper:
            features["attention_mask"] = torch.ones_like(features.input_features[:, 0]).long()
        features = features.to(self.stock.device, self.stock.dtype)
        if self._rules is None:
            return _likeliest(self.stock(**features).logits.float())
        return cast(Tensor, self.stock.generate(**features, generation_config=self._rules)).float()

    def cast(self, dtype: torch.dtype) -> None:
        """Let the network compute in `dtype`."""
        self.stock.to(dtype)

    def freeze(self, part: str) -> None:
        """Raises ConfigError: recognisers are not trained."""
        raise ConfigError(f"--freeze {part}: a recogniser is not trained here")

    def gradient_checkpointing(self, on: bool) -> None:
        """Nothing to do: recognisers are not trained."""


def _likeliest(logits: Tensor) -> Tensor:
    """Tokens [..., frames] of logits [..., frames, tokens]; NaN where the best is not finite."""
    best = logits.max(dim=-1)
    return best.indices.float().masked_fill(~best.values.isfinite(), torch.nan)


def _padded(tokens: list[Tensor]) -> tuple[Tensor, Tensor]:
    counts = torch.tensor([[float(len(row))] for row in tokens])
    return pad_sequence(tokens, batch_first=True, padding_value=_NO_TOKEN), counts


def _extractor(folder: Path, config: Any) -> Any:
    """The folder's feature extractor; CheckpointError if another one than the network's."""
    for file in (checkpoint.PREPROCESSOR_FILE, checkpoint.PROCESSOR_FILE):
        if (folder / file).is_file():
            checkpoint.check_numbers(checkpoint.read_json(folder / file), folder)
    extractor = read_auto(folder, "AutoFeatureExtractor", checkpoint.PREPROCESSOR_FILE)
    expected = {"sampling_rate": SAMPLE_RATE_HZ}
    if config.model_type == WHISPER:
        bands = {"chunk_length": int(_WINDOW_S), "feature_size": config.num_mel_bins}
        expected = checkpoint.WHISPER_FRONT | bands
    for key, value in expected.items():
        if (found := getattr(extractor, key, value)) != value:
            raise CheckpointError(f"{folder}: {key} is '{found}', only {value} is supported")
    return extractor


def _tokenizer(folder: Path, stock: Any, *, spells_all: bool) -> Any:
    """The folder's tokenizer; CheckpointError if the network has outputs that it cannot spell."""
    tokenizer = read_auto(folder, "AutoTokenizer", "tokenizer")
    file = folder / "tokenizer_config.json"
    delimiter = (checkpoint.read_json(file) if file.is_file() else {}).get("word_delimiter_token")
    if isinstance(delimiter, str) and hasattr(tokenizer, "_word_delimiter_token"):
        tokenizer._word_delimiter_token = delimiter  # transformers 5 goes on with "|"
    with reading(folder, "its tokenizer has no vocabulary"):
        known = {number for number in tokenizer.get_vocab().values() if isinstance(number, int)}
    outputs = stock.config.get_text_config(decoder=True).vocab_size
    lost = [number for number in range(outputs) if number not in known]
    if len(lost) > (0 if spells_all else outputs // 2):  # timestamps are no text
        raise CheckpointError(
            f"{folder}: its tokenizer has no token for {len(lost)} outputs of the network,"
            f" such as {lost[0]}"
        )
    return tokenizer


def _rules(folder: Path, config: Any) -> Any:
    """The folder's rules for a greedy search; never a translation, whatever the folder says."""
    import transformers

    rules = checkpoint.read_json(folder / "generation_config.json")
    if rules.get("task_to_id"):
        rules["task"] = "transcribe"
    known = {"max_length": _MOST_TOKENS}
    known |= {key: value for key, value in rules.items() if key in _RULES}
    with reading(folder, "its generation_config.json cannot be read"):
        return transformers.GenerationConfig(
            **known, do_sample=False, num_beams=1, return_timestamps=False
        )
