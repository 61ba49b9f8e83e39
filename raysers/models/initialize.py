"""From a model's name to a network that is ready to be trained: new head, mel front, adapters.

Unlike `load_emotion_model`, this takes a bare pre-trained backbone and gives it a new head. What is
new comes from the seed alone, whatever torch's generator gave before.

The mel front is for small models from random weights: the first convolution becomes a bank of
mel-spaced filters, then the whole front learns to give log-mel frames (no labels needed). Adapters
(LoRA, Hu et al. 2021, arXiv:2106.09685): queries and values are computed with `W + 2 B A`, of which
A [rank, in] and B [out, rank] are trained. Both leave a standard network to be stored.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from raysers.errors import CheckpointError, ConfigError
from raysers.models import backbones, checkpoint, loading
from raysers.models.backbones import CNN14, ModelName, Outputs
from raysers.models.checkpoint import PREPROCESSOR_FILE, ModelFolder
from raysers.models.emotion import EmotionModel, EmotionNetwork
from raysers.models.frontend import frames_to_train, valid
from raysers.models.whisper import MelSettings, mel_of_windows
from raysers.types import SAMPLE_RATE_HZ

#: Weights of `EmotionNetwork.attach`.
_SIDE_HEADS = ("categories.", "uncertainty.", "ood.")
Freeze = Literal["auto", "cnn", "backbone", "none"]
Pooling = Literal["masked", "unmasked", "statistics", "attentive"]
Front = Literal["plain", "mel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InitialModel(loading.LoadedModel):
    """A float32 network on the CPU, in evaluation mode, and what must be known to train it.

    `freeze` is what was decided (`cnn`, `backbone` or `none`); `head_kept` whether a trained head
    came with the model; `licence` what the model card's header says.
    """

    freeze: str
    head_kept: bool
    licence: str | None


def start_model(
    name: str,
    *,
    seed: int,
    layers: int | None = None,
    freeze: Freeze = "auto",
    pooling: Pooling = "masked",
    head_dropout: float | None = None,
    layer_weights: bool = False,
    front: Front = "plain",
) -> InitialModel:
    """Build the network that training starts from.

    `name` is an alias, a hub id, a local folder (a bare backbone, its pre-training model, or a
    fine-tuned one whose head is kept), or `random:` and an alias, a folder or a `config.json`: then
    all weights come from `seed`. By default `freeze` is `none` for random weights and `cnn` for
    trained ones; pooling `unmasked` averages over padding too, in training only; `layer_weights`
    learns a weighted sum of all layers' states; `front` `mel` needs random weights.
    """
    parsed = backbones.parse_model_name(name, "--backbone")
    if None not in (parsed.layers, layers) and parsed.layers != layers:
        raise ConfigError(f"--layers {layers}: {name} says {parsed.layers} layers; drop one")
    layers = parsed.layers if layers is None else layers
    # a file describes a network without weights
    random = parsed.random or (parsed.path or "").endswith(".json")
    if front == "mel" and not random:
        raise ConfigError(f"--front mel is for random:NAME models, {name} has a trained front")
    folder = None if random else checkpoint.open_folder(parsed, "--backbone")
    config = checkpoint.random_config(parsed) if folder is None else folder.config
    if config["model_type"] == CNN14 and (pooling != "masked" or layer_weights):
        flag = "--layer-weights" if layer_weights else f"--pooling {pooling}"
        raise ConfigError(f"{flag}: cnn14 has no transformer layers, and its own pooling")
    config = backbones.keep_layers(config, layers, name) | {
        "pooling_mode": "mean" if pooling in ("masked", "unmasked") else pooling
    }
    if layer_weights:
        config["use_weighted_layer_sum"] = True
    if head_dropout is not None:
        config["final_dropout"] = head_dropout
    if Outputs.from_config(config, name).points:
        # heads on frames before the last norm go; a new head learns nothing from frames so large
        config["final_norm"] = True
    if folder is None:
        model, head_kept = loading.random_network(config, name, seed), False
        revision = checkpoint.random_revision(config, seed)
        do_normalize = _normalises(parsed, config)
    else:
        with torch.random.fork_rng(devices=[]):
            model, head_kept = _trained(folder, config, layers, pooling, seed)
        revision, do_normalize = folder.revision, folder.do_normalize
    if front == "mel":
        as_mel_bank(model)
    if pooling == "unmasked" and isinstance(model, EmotionModel):
        model.pooling.whole_rows = True
    if freeze == "auto":
        freeze = "none" if folder is None or config["model_type"] == CNN14 else "cnn"
    model.freeze(freeze)
    return InitialModel(
        model=model.eval(),
        do_normalize=do_normalize,
        name=name,
        revision=revision,
        freeze=freeze,
        head_kept=head_kept,
        licence=None if folder is None else checkpoint.licence_of(folder.path),
    )


def _normalises(name: ModelName, config: dict[str, Any]) -> bool:
    """What a folder says whose network is taken without its weights, else by its family."""
    if name.path is not None and (Path(name.path) / PREPROCESSOR_FILE).is_file():
        return checkpoint.read_do_normalize(Path(name.path), config)
    return config["model_type"] not in backbones.UNNORMALISED


def _trained(
    folder: ModelFolder, config: dict[str, Any], layers: int | None, pooling: Pooling, seed: int
) -> tuple[EmotionNetwork, bool]:
    """The network with all its weights, and whether its head is the folder's.

    A head for other labels, or of another layout, is replaced by a new one.
    """
    where = folder.path
    model = loading.build_on_meta(config, where)
    tensors = loading.read_weights(folder.weights)
    tensors = {key.removeprefix("model."): value for key, value in tensors.items()}
    # these were fitted to embeddings that training is going to change
    tensors = {key: value for key, value in tensors.items() if not key.startswith(_SIDE_HEADS)}
    if not isinstance(model, EmotionModel):
        loading.load_weights(model, tensors, where)
        return model, True
    tensors = loading.keep_bottom(model.backbone_tensors(tensors), layers)
    try:
        order = checkpoint.label_order(folder.config, where)
    except CheckpointError:  # a head for other labels
        order = []
    kept = bool(order) and "classifier.dense.weight" in tensors
    had_mode = folder.config.get("pooling_mode") or "mean"
    if kept and had_mode != model.pooling_mode:
        raise ConfigError(
            f"--pooling {pooling}: the model was trained with {had_mode} pooling;"
            f" use --pooling {'masked' if had_mode == 'mean' else had_mode}"
        )
    torch.manual_seed(seed)
    model.init_head()
    # stock checkpoints may lack SpecAugment's vector; training needs one
    new = {f"{model.family.prefix}.masked_spec_embed": torch.rand(model.config.hidden_size)}
    if model.layer_weights is not None:
        new["layer_weights"] = model.layer_weights.detach()
    if not kept:
        own = {key: value for key, value in tensors.items() if not is_head(key)}
        tensors = own | {k: v for k, v in model.state_dict().items() if is_head(k)}
    loading.load_weights(model, new | tensors, where)
    loading.reorder_outputs(model, order if kept else [])
    return model, kept


def is_head(key: str) -> bool:
    """Whether a weight belongs to what sits on the backbone: pooling, head, or another head."""
    return key.startswith(("pooling.", "classifier.", "projector.", "layer_weights"))


#: A shorter window (6.25 ms) cannot tell the low mel bands apart.
_LEAST_TAPS = 100
#: Cosine, sine and their negatives: after a ReLU their sum is a band's magnitude.
_PHASES = 4


def as_mel_bank(model: EmotionNetwork) -> None:
    """Make the first convolution a mel-spaced bank of windowed cosines in four phases, in place.

    Channel `4 b + p` is band b, from low to high, at phase `p / 4` of a turn, under a Hann window
    as long as the kernel, each of unit energy, without bias. Raises ConfigError for other kernels.
    """
    conv = _first_convolution(model)
    channels, _, taps = conv.weight.shape
    if taps < _LEAST_TAPS or channels % _PHASES:
        raise ConfigError(
            f"--front mel needs a first convolution of at least {_LEAST_TAPS} taps and channels in"
            f" multiples of {_PHASES}; this model has {taps} taps and {channels} channels"
        )
    centres_hz = _mel_spaced(channels // _PHASES)
    time_s = (torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2) / SAMPLE_RATE_HZ
    turns = torch.arange(_PHASES, dtype=torch.float64) / _PHASES
    angle = 2 * math.pi * (centres_hz[:, None, None] * time_s + turns[:, None])
    bank = torch.hann_window(taps, periodic=False, dtype=torch.float64) * torch.cos(angle)
    bank = functional.normalize(bank.reshape(channels, 1, taps), dim=2)
    with torch.no_grad():
        conv.weight.copy_(bank)
        if conv.bias is not None:
            conv.bias.zero_()


def regress_mel(
    model: EmotionNetwork,
    batches: Iterator[tuple[Tensor, Tensor]],
    *,
    steps: int,
    lr: float,
    seed: int,
) -> list[float]:
    """Let the front learn to give 64 log-mel bands, through a linear layer that is then dropped.

    Targets are windows of 32 ms around the centre of what each frame sees, standardised per band by
    the first batch. Only the front changes, even where it is frozen otherwise. `batches` are those
    of training, on the model's device. Returns the mean squared error of each step, in variances.
    """
    front = _emotion_model(model).backbone.feature_extractor
    geometry, settings = _emotion_model(model).geometry, MelSettings()
    trainable = [parameter.requires_grad for parameter in front.parameters()]
    first = _first_convolution(model).weight
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = nn.Linear(model.config.conv_dim[-1], settings.bands).to(first.device)
    front.requires_grad_(True)
    optimizer = torch.optim.Adam([*front.parameters(), *reader.parameters()], lr=lr)
    losses: list[float] = []
    centre = scale = torch.zeros(0)
    for step, (padded, lengths) in enumerate(itertools.islice(batches, steps)):
        hidden = frames_to_train(front, geometry, padded, lengths)
        mask = valid(geometry.frames(lengths), hidden.shape[1]).to(hidden.device)
        with torch.no_grad():
            target = mel_of_frames(padded, model, hidden.shape[1], settings)[mask]
            if step == 0:
                centre, scale = target.mean(0), target.std(0, correction=0).clamp_min(1e-3)
        loss = functional.mse_loss(reader(hidden[mask]), (target - centre) / scale)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    for parameter, wanted in zip(front.parameters(), trainable, strict=True):
        parameter.requires_grad_(wanted)
        parameter.grad = None
    return losses


def mel_of_frames(
    padded: Tensor, model: EmotionNetwork, frames: int, settings: MelSettings
) -> Tensor:
    """[clips, frames, bands]: one window in the middle of each frame's receptive field."""
    geometry = _emotion_model(model).geometry
    left = (geometry.receptive_field_samples - settings.window_samples) // 2
    needed = (frames - 1) * geometry.hop_samples + settings.window_samples
    signal = functional.pad(padded, (-left, 0))  # a negative number of zeros cuts
    signal = functional.pad(signal, (0, max(0, needed - signal.shape[1])))
    return mel_of_windows(signal, geometry.hop_samples, settings)[:, :frames]


def _mel_spaced(bands: int) -> Tensor:
    """float64 [bands]: centres in Hz, evenly spaced on O'Shaughnessy's scale 2595 lg(1 + f/700)."""
    low, high = (2595 * math.log10(1 + hz / 700) for hz in (50.0, 7_800.0))
    mels = torch.linspace(low, high, bands, dtype=torch.float64)
    return 700 * (10 ** (mels / 2595) - 1)


def _emotion_model(model: EmotionNetwork) -> EmotionModel:
    if not isinstance(model, EmotionModel):
        raise ConfigError("--front mel: this network has no convolutional front on samples")
    return model


def _first_convolution(model: EmotionNetwork) -> nn.Conv1d:
    conv = _emotion_model(model).backbone.feature_extractor.conv_layers[0].conv
    assert isinstance(conv, nn.Conv1d)
    return conv


#: How names of adapters' parameters end; they are no parameters of the stored model.
ADAPTERS = (".lora_a", ".lora_b")


class _Adapted(nn.Module):
    """A linear layer with its adapter; B starts at 0, so the first network is the given one."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.lora_a = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    @property
    def weight(self) -> Tensor:
        return self.base.weight + 2.0 * (self.lora_b @ self.lora_a)

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.weight, self.bias)


def add_adapters(model: EmotionNetwork, rank: int, seed: int) -> None:
    """Freeze the backbone and give its attention adapters, in place; ConfigError without any."""
    names = [n for n, _ in model.named_modules() if n.endswith((".q_proj", ".v_proj"))]
    if not names:
        raise ConfigError("--lora: the network has no attention: leave it out")
    model.freeze("backbone")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in names:
            base = model.get_submodule(name)
            assert isinstance(base, nn.Linear)
            model.set_submodule(name, _Adapted(base, rank))


def merged(model: EmotionNetwork) -> EmotionNetwork:
    """The model itself where it has no adapters, else a copy with them in its weights."""
    names = [name for name, module in model.named_modules() if isinstance(module, _Adapted)]
    if not names:
        return model
    model = copy.deepcopy(model)
    for name in names:
        adapted = model.get_submodule(name)
        assert isinstance(adapted, _Adapted)
        adapted.base.weight.data = adapted.weight.detach()
        model.set_submodule(name, adapted.base)
    return model
