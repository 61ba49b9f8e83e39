"""Speech recognition by name: signals in, text out.

Decoding is greedy: the likeliest token at every step, nothing sampled or tried twice. The text of a
clip depends on the clip alone: networks whose stock forward pass would let neighbours in compute
one at a time. Speech that is not there is an empty text, not an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from raysers.audio.samples import is_silent
from raysers.errors import CheckpointError, ClipError, ConfigError
from raysers.models import checkpoint
from raysers.models.backbones import FAMILIES, WHISPER, ModelName, parse_model_name
from raysers.models.emotion import EmotionModel, EmotionNetwork
from raysers.models.loading import LoadedModel
from raysers.models.pretrained import load_pretrained, open_folder, read_auto, reading
from raysers.models.scorer import Row, Scorer, auto_padded_s, score_rows
from raysers.models.speech import MOONSHINE, MoonshineRecogniser, speech_windows
from raysers.types import SAMPLE_RATE_HZ

Floats = npt.NDArray[np.float32]
_HINT = (
    "give moonshine (offline), the hub id of a CTC, Whisper or other speech-to-text model of "
    "transformers (facebook/wav2vec2-base-960h), a folder (./folder) or s3://bucket/prefix"
)
#: Whisper's windows, and the longest pieces of all that is not batched; longer than any clip.
_WINDOW_S, _ANY_S = 30.0, 1e6
#: Whisper's windows per forward pass; more only wait for the longest text among them.
_WINDOWS = {"cpu": 4, "cuda": 32}
#: What of `generation_config.json` says which texts are possible, not how to search for them.
_RULES = (
    "decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id", "prev_sot_token_id",
    "no_timestamps_token_id", "suppress_tokens", "begin_suppress_tokens", "forced_decoder_ids",
    "forced_bos_token_id", "max_length", "is_multilingual", "lang_to_id", "task_to_id", "language",
    "task", "no_repeat_ngram_size", "repetition_penalty", "alignment_heads",
)  # fmt: skip


def load_asr(
    name: str,
    *,
    device: str = "cpu",
    dtype: str = "auto",
    threads: int | None = None,
    language: str = "",
    timestamps: bool = False,
) -> Recogniser:
    """Load `moonshine`, or the recogniser of a hub id with an optional `@REVISION`, or of a folder.

    `dtype` is auto, fp32, bf16 or fp16 of all but moonshine, `language` one of a multilingual
    Whisper model, or `auto` for that of each clip; with `timestamps` words have times.
    """
    if name == MOONSHINE:
        if language not in ("", "en") or timestamps:
            raise ConfigError(
                "--asr moonshine is English and has no times of words: leave --language and "
                "--timestamps out, or give another --asr"
            )
        return MoonshineRecogniser(dtype=dtype, threads=threads)
    return StockRecogniser(name, device, dtype, threads, language, timestamps)


def parse_asr_name(name: str) -> ModelName:
    """Read an `--asr` text other than `moonshine`; ConfigError if neither a hub id nor a place."""
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
    """A CTC or speech-to-text network of transformers with the tokenizer of its folder."""

    def __init__(
        self, name: str, device: str, dtype: str, threads: int | None, language: str, times: bool
    ) -> None:
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
        self._is_ctc, self._times, self._language = is_ctc, times, language
        self._frame_samples = getattr(config, "inputs_to_logits_ratio", 0)
        rules = None if is_ctc else _rules(folder, language)
        changed = ("add_adapter", "conv_pos_batch_norm")  # not in the emotion models' pass
        exact = is_ctc and config.model_type in FAMILIES
        exact = exact and not any(getattr(config, key, False) for key in changed)
        network: EmotionNetwork
        if exact:
            with torch.device("meta"):
                network = CtcNetwork(config)
            network.load_state_dict(stock.state_dict(), assign=True)
        else:
            detects = language == "auto"
            network = StockNetwork(stock, extractor, rules, detects=detects, times=times)
        languages = getattr(rules, "lang_to_id", None) or {}
        self._languages = {number: token.strip("<|>") for token, number in languages.items()}
        aligned = getattr(rules, "alignment_heads", None)
        if times and not (aligned or hasattr(self._tokenizer, "word_delimiter_token")):
            raise ConfigError(
                f"--timestamps: this {config.model_type} has no times of words; CTC models and "
                "Whisper with alignment heads have"
            )
        if language and not languages:
            raise ConfigError(f"--language {language}: give a multilingual Whisper model as --asr")
        self._longest_s = _ANY_S if exact else _WINDOW_S
        loaded = LoadedModel(
            model=network.eval(),
            name=name,
            revision=revision,
            do_normalize=exact and bool(extractor.do_normalize),
        )
        self._scorer = Scorer(loaded, dtype=dtype, device=device, threads=threads)
        windows = _WINDOWS.get(self._scorer.device.type, _WINDOWS["cuda"])
        self.max_padded_s = windows * _WINDOW_S if whisper else auto_padded_s(self._scorer)
        self._least_padded_s = _WINDOW_S if whisper else 1 / SAMPLE_RATE_HZ

    def transcribe(self, signals: Sequence[Floats]) -> list[dict[str, Any] | ClipError]:
        """`text`, and `language` and `words` if asked for, of 16 kHz mono signals, or why none."""
        cut = [self._pieces(signal) for signal in signals]
        pieces = [piece for parts in cut for _, piece in parts]
        longest_s = max((len(piece) / SAMPLE_RATE_HZ for piece in pieces), default=0.0)
        at_once = max(1, int(self.max_padded_s / max(longest_s, self._least_padded_s)))
        batches = (pieces[start : start + at_once] for start in range(0, len(pieces), at_once))
        rows = iter([row for batch in batches for row in score_rows(self._scorer, batch)])
        return [self._row([(*part, next(rows)) for part in parts]) for parts in cut]

    def _pieces(self, signal: Floats) -> list[tuple[int, Floats]]:
        """First sample and samples of every piece with sound: networks invent words in silence."""
        pieces = speech_windows(signal, self._longest_s)
        starts = accumulate(map(len, pieces), initial=0)
        return [
            (start, piece)
            for start, piece in zip(starts, pieces, strict=False)
            if len(piece) < self._scorer.min_samples or not is_silent(piece)
        ]

    def _row(
        self, parts: Sequence[tuple[int, Floats, Row | ClipError]]
    ) -> dict[str, Any] | ClipError:
        """Columns of a clip from the tokens of its pieces; one piece's failure is the clip's."""
        texts: list[str] = []
        words: list[dict[str, Any]] = []
        spoken: Counter[int] = Counter()
        for start, piece, row in parts:
            if isinstance(row, ClipError):
                return row
            tokens = row.scores[row.scores != NO_TOKEN].astype(np.int64).tolist()
            times = {"output_word_offsets": True} if self._times and self._is_ctc else {}
            # the tokenizer joins what CTC repeats and drops its blanks
            found = self._tokenizer.decode(
                tokens,
                skip_special_tokens=not self._is_ctc,
                clean_up_tokenization_spaces=False,
                **times,
            )
            spoken[int(row.embedding[0])] += len(piece)
            texts += str(found.text if times else found).split()
            if self._times:
                frame_s = (self._frame_samples or len(piece) / len(tokens)) / SAMPLE_RATE_HZ
                spans = (
                    [(w["word"], w["start_offset"] * frame_s, w["end_offset"] * frame_s)
                     for w in found.word_offsets]
                    if times
                    else self._spoken(tokens, row.embedding[1:].tolist())
                )  # fmt: skip
                at_s = start / SAMPLE_RATE_HZ
                words += [{"word": w, "start_s": at_s + a, "end_s": at_s + b} for w, a, b in spans]
        columns: dict[str, Any] = {"text": " ".join(texts)}
        if self._language:
            most = self._languages.get(spoken.most_common(1)[0][0]) if spoken else None
            columns["language"] = most if self._language == "auto" else self._language
        return columns | ({"words": words} if self._times else {})

    def _spoken(
        self, tokens: Sequence[int], ends_s: Sequence[float]
    ) -> list[tuple[str, float, float]]:
        """Words of Whisper with start and end: runs of tokens up to the next space."""
        spans: list[tuple[list[int], float, float]] = []
        special = set(self._tokenizer.all_special_ids)
        for place, (token, end_s) in enumerate(zip(tokens, ends_s, strict=False)):
            if token in special:
                continue
            if not spans or self._tokenizer.decode([token]).startswith(" "):
                spans.append(([token], ends_s[place - 1] if place else 0.0, end_s))
            else:
                ids, start_s, _ = spans.pop()
                spans.append(([*ids, token], start_s, end_s))
        named = ((self._tokenizer.decode(ids).strip(), a, b) for ids, a, b in spans)
        return [(word, a, b) for word, a, b in named if word]


Recogniser = StockRecogniser | MoonshineRecogniser


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


def _rules(folder: Path, language: str) -> Any:
    """The folder's rules for a greedy search, never a translation; ConfigError for the language."""
    import transformers

    rules = checkpoint.read_json(folder / "generation_config.json")
    if rules.get("task_to_id"):
        rules["task"] = "transcribe"
    if language:
        known = sorted(token.strip("<|>") for token in rules.get("lang_to_id", {}))
        if known and language not in ("auto", *known):
            names = ", ".join(known)
            raise ConfigError(f"--language {language}: give auto, or one of {names}")
        rules["language"] = None if language == "auto" else language
    given = {"max_length": 200}  # six tokens a second
    given |= {key: value for key, value in rules.items() if key in _RULES}
    with reading(folder, "its generation_config.json cannot be read"):
        return transformers.GenerationConfig(
            **given, do_sample=False, num_beams=1, return_timestamps=False
        )


#: Samples of the shortest clip: one frame of Whisper's spectrogram, else a tenth of a second.
_WHISPER_MIN_SAMPLES, _MIN_SAMPLES = 400, 1_600
#: What stands behind a shorter clip's tokens in a batch.
NO_TOKEN = -1.0


class CtcNetwork(EmotionModel):
    """A backbone of the emotion models, out of padding's reach, and a layer to the alphabet."""

    def init_head(self) -> None:
        """The layer to the alphabet, as new."""
        self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size)

    @property
    def embedding_size(self) -> int:
        """Numbers of a frame."""
        return cast(int, self.config.hidden_size)

    def logits(self, padded: Tensor, lengths: Tensor) -> Tensor:
        """float32 [clips, frames, tokens]; behind a clip's own frames they mean nothing."""
        return cast(Tensor, self.lm_head(self._hidden(padded, lengths)[0].float()))

    def forward(self, padded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See `StockNetwork.forward`."""
        frames = self.geometry.frames(lengths).tolist()
        tokens = _likeliest(self.logits(padded, lengths))
        return _batched([row[:count] for row, count in zip(tokens, frames, strict=True)])


class StockNetwork(EmotionNetwork):
    """A stock network, its feature extractor, and rules of its search (None: CTC)."""

    def __init__(
        self, stock: Any, extractor: Any, rules: Any, *, detects: bool, times: bool
    ) -> None:
        super().__init__()
        self.stock, self.config, self._extractor = stock, stock.config, extractor
        self._rules, self._detects, self._times = rules, detects, times
        self._whisper = self.config.model_type == WHISPER

    @property
    def embedding_size(self) -> int:
        """Of the language beside the tokens."""
        return 1

    @property
    def min_samples(self) -> int:
        """Samples of the shortest clip."""
        return _WHISPER_MIN_SAMPLES if self._whisper else _MIN_SAMPLES

    def forward(self, padded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of 16 kHz clips, float32 [clips, tokens], and their language, [clips, 1].

        With `times` it is followed by where each token ends in seconds. Tokens are whole numbers,
        -1 behind a shorter text and where no language is detected, NaN where a logit is not finite.
        """
        signals = [row[:n] for row, n in zip(padded.cpu().numpy(), lengths.tolist(), strict=True)]
        # all of Whisper's windows are of one length, so they share a pass without padding
        at_once = len(signals) if self._whisper else 1
        starts = range(0, len(signals), at_once)
        parts = [self._tokens(signals[at : at + at_once]) for at in starts]
        tokens, others = ([row for part in parts for row in part[which]] for which in (0, 1))
        return _batched(tokens)[0], _batched(others)[0]

    def _tokens(self, signals: Sequence[Floats]) -> tuple[Tensor, Tensor]:
        lengths = {"return_attention_mask": True} if self._times and self._whisper else {}
        features = self._extractor(
            signals, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt", **lengths
        )
        if self._whisper and not lengths:
            features["attention_mask"] = torch.ones_like(features.input_features[:, 0]).long()
        features = features.to(self.stock.device, self.stock.dtype)
        language = torch.full((len(signals), 1), NO_TOKEN)
        if self._rules is None:
            return _likeliest(self.stock(**features).logits.float()), language
        how: dict[str, Any] = {"generation_config": self._rules}
        if self._detects:
            found = self.stock.detect_language(features["input_features"], **how).flatten()
            names = {number: token for token, number in self._rules.lang_to_id.items()}
            how["language"] = [names[number] for number in found.tolist()]
            language = found.float().cpu()[:, None]
        if self._times:
            found = self.stock.generate(**features, **how, return_token_timestamps=True)
            times = found["token_timestamps"].float().cpu()
            return found["sequences"].float(), torch.cat([language, times], dim=1)
        return cast(Tensor, self.stock.generate(**features, **how)).float(), language

    def cast(self, dtype: torch.dtype) -> None:
        """Let the network compute in `dtype`."""
        self.stock.to(dtype)


def _likeliest(logits: Tensor) -> Tensor:
    """Tokens [..., frames] of logits [..., frames, tokens]; NaN where the best is not finite."""
    best = logits.max(dim=-1)
    return best.indices.float().masked_fill(~best.values.isfinite(), torch.nan)


def _batched(tokens: list[Tensor]) -> tuple[Tensor, Tensor]:
    counts = torch.tensor([[float(len(row))] for row in tokens])
    return pad_sequence(tokens, batch_first=True, padding_value=NO_TOKEN), counts
