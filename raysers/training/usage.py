"""How a model is used, for its card: our command, and a class for plain `transformers`.

The class scores one clip at a time: a plain mean over frames, and a group norm over samples, are
only right where nothing is padded.
"""

from __future__ import annotations

import json
import shlex

from raysers.models.backbones import WHISPER
from raysers.text import fenced, visible
from raysers.types import SAMPLE_RATE_HZ

#: Family -> what `transformers` calls its classes, and the attribute the parameters lie under.
_CLASSES = {
    "wav2vec2": ("Wav2Vec2", "wav2vec2"),
    "hubert": ("Hubert", "hubert"),
    "wavlm": ("WavLM", "wavlm"),
    "data2vec-audio": ("Data2VecAudio", "data2vec_audio"),
}

_PLAIN = """\
import torch
from torch import nn
from transformers import AutoFeatureExtractor, {stem}Model, {stem}PreTrainedModel


class EmotionModel({stem}PreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        size = config.hidden_size
        self.{attribute} = {stem}Model(config)
        self.classifier = nn.ModuleDict(
            {{"dense": nn.Linear(size, size), "out_proj": nn.Linear(size, 3)}}
        )
        self.post_init()

    def forward(self, samples):
        pooled = self.{attribute}(samples).last_hidden_state.mean(dim=1)
        return self.classifier["out_proj"](torch.tanh(self.classifier["dense"](pooled)))


folder = {folder}
model = EmotionModel.from_pretrained(folder).float().eval()
prepare = AutoFeatureExtractor.from_pretrained(folder)


def score(signal):
    \"\"\"Arousal, dominance, valence of one mono clip, float32 at 16 kHz.\"\"\"
    inputs = prepare(signal, sampling_rate={rate}, return_tensors="pt")
    with torch.no_grad():
        return model(inputs.input_values)[0].tolist()"""


def usage(name: str, model_type: str, pooling: str | None) -> str:
    """Markdown that shows how to score clips with the model in folder `name`.

    Args:
        name: of the folder.
        model_type: family of the network.
        pooling: as in `CardFacts`; None where the dimensions are not trained.
    """
    folder = "./" + visible(name)
    command = "raysers annotate recordings/ -o emotions/ --model "
    ours = "A whole archive, by raysers:"
    shown = [ours, fenced(command + shlex.quote(folder), "bash")]
    if pooling is None:
        return "\n\n".join(shown)
    if model_type in _CLASSES and pooling in ("masked", "unmasked"):
        stem, attribute = _CLASSES[model_type]
        code = _PLAIN.format(
            stem=stem, attribute=attribute, folder=json.dumps(folder), rate=SAMPLE_RATE_HZ
        )
        shown += ["One clip, with torch and transformers alone:", fenced(code, "python")]
    elif model_type == WHISPER:
        shown.append(
            "The stock Whisper encoder of transformers takes windows of exactly 30 s; raysers runs"
            " it at each clip's own length, so only clips of 30 s score the same in both."
        )
    else:
        shown.append("The network is not one that transformers has a class for.")
    return "\n\n".join(shown)
