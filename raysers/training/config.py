"""Flags of training, and the recipes that fill in what is left open: 0 and `recipe`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

from raysers.cli import Output, Uris
from raysers.errors import ConfigError

FlagsT = TypeVar("FlagsT", bound="TrainingFlags")
#: What each kind of network is trained with: the paper's section 3.1, and CNN14's own.
RECIPES: dict[str, dict[str, Any]] = {
    "transformer": {"epochs": 5, "batch_size": 32, "lr": 1e-4, "optimiser": "adam"},
    "cnn14": {"epochs": 60, "batch_size": 64, "lr": 1e-2, "optimiser": "sgd"},
}
#: Whether it holds, its flag, and what to give instead.
Rule = tuple[bool, str, str]


class Ruled(ABC):
    """Flags with rules."""

    @abstractmethod
    def rules(self) -> Iterator[Rule]:
        """The rules."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag whose rule does not hold."""
        for good, flag, wanted in self.rules():
            if not good:
                value = getattr(self, flag.removeprefix("--").replace("-", "_"))
                shown = "empty" if value in ("", ()) else value
                raise ConfigError(f"{flag} is {shown}: give {wanted}")


@dataclass(frozen=True, kw_only=True)
class LabelledFlags:
    """Which labelled clips are trained on, and which are kept apart."""

    data: Uris = ()
    """Labelled data with a `split`: manifests, tables, corpora, audformat databases."""
    train: Uris = ()
    """Instead of --data: what to train on, all of it."""
    dev: Uris = ()
    """With --train: what chooses the best epoch."""
    corpus: str = "auto"
    """Layout of the data: auto recognises it, none takes folders for plain audio."""
    emotion_map: str = ""
    """Takes missing labels from the emotion category: `russell-mehrabian`, or a YAML file."""
    speakers: str = ""
    """CSV with `speaker`, or `video` (the session), and `sex`, for data that does not say."""
    folds: int = 0
    """Split by speaker into N folds instead of by the data's own splits."""
    fold: int = 0
    """Which of the --folds is kept apart as dev, from 0."""
    allow_leakage: bool = False
    """Train although speakers or sessions are in several splits; the results are marked."""
    train_fraction: float = 1.0
    """Share of the training clips; a smaller share is part of every larger one."""
    balance: bool = False
    """Repeat clips of smaller corpora, so that an epoch has equally many of each."""
    shuffle_labels: bool = False
    """Control: give every clip the labels of another one; a sound setup then learns nothing."""
    limit: int = 0
    """Only the first N clips of the data; 0 takes all."""
    min_clip_s: float = 0.0
    """Shorter clips are left out; those too short for the network always are."""
    max_clip_s: float = 60.0
    """Longer clips are left out of training and dev; 60 s holds every clip of the paper's data."""
    max_failed: float = 0.05
    """Highest share of clips that cannot be used before the job ends with exit code 3."""


@dataclass(frozen=True, kw_only=True)
class NetworkFlags:
    """What is trained, and which of its parameters."""

    backbone: str = "w2v2-L-robust-12"
    """Alias, hub id, folder or s3:// prefix; `random:` before it, or before a config.json, starts
    from random weights."""
    layers: int = 0
    """Keep the bottom N transformer layers; 0 keeps all."""
    freeze: Literal["auto", "cnn", "backbone", "none"] = "auto"
    """Parameters that stay as they are; auto is cnn, and none for random weights and cnn14."""
    lora: int = 0
    """Rank of low-rank adapters that are trained in place of the backbone; 0: none."""
    pooling: Literal["masked", "unmasked", "statistics", "attentive"] = "masked"
    """How frames become one vector per clip."""
    layer_weights: bool = False
    """Score a sum of all transformer layers' states by weights that are learned, in place of the
    last layer's."""
    head_dropout: float | None = None
    """Dropout of the head, 0..1, in place of the network's own."""
    front: Literal["plain", "mel"] = "plain"
    """mel: a random network's first convolution starts as a bank of mel-spaced filters."""
    front_steps: int = 0
    """Steps in which the convolutions first learn to give log-mel frames; needs --front mel."""


@dataclass(frozen=True, kw_only=True)
class LearningFlags:
    """How the parameters move."""

    epochs: int = 0
    """Passes over the training clips; 0: 5, and 60 for cnn14."""
    batch_size: int = 0
    """Clips per step, over all workers together; 0: 32, and 64 for cnn14."""
    lr: float = 0.0
    """Learning rate; 0: 1e-4, and 0.01 for cnn14."""
    optimiser: Literal["recipe", "adam", "adamw", "sgd"] = "recipe"
    """recipe: Adam, and SGD with Nesterov momentum .9 for cnn14."""
    schedule: Literal["recipe", "constant", "linear", "cosine"] = "recipe"
    """How the learning rate falls after --warmup; recipe: it does not."""
    warmup: float = 0.0
    """Share of all steps in which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """Weight decay: decoupled for adamw, added to the gradient else."""
    clip_norm: float = 0.0
    """Most that the gradient's norm may be; 0 does not clip it."""
    loss: Literal["ccc", "mse"] = "ccc"
    """1 - CCC over the whole global batch, or the mean squared error."""
    target_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Weights of arousal, dominance and valence in the loss."""
    categories: bool = False
    """Also train a head for the emotion categories of the data, or it alone where nothing else is
    labelled; the same as --category-weight 1."""
    category_weight: float = 0.0
    """Weight of the categories' cross-entropy in the loss; 0: none, and 1 with --categories."""
    sex_weight: float = 0.0
    """Weight in the loss of a head for the speakers' sex, which only training has; 0: none."""
    accumulate: int = 1
    """Handle each worker's part of a batch in N pieces, to need less memory; same result."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them, to need less memory; same result."""
    ema: float = 0.0
    """Decay of a running average of the parameters that is scored and kept; 0: none."""
    patience: int = 0
    """Stop after N epochs without a better dev CCC (UAR with categories alone); 0 never stops
    early."""
    eval_steps: int = 0
    """Score the dev clips every N steps too, for the metrics table; 0: after every epoch only."""
    keep: Literal["best", "best-step", "last"] = "best"
    """The epoch with the best dev CCC (UAR with categories alone), the best of --eval-steps too, or
    the last epoch (which needs no dev clips)."""
    save_dtype: Literal["fp32", "fp16"] = "fp32"
    """Precision of the stored weights; fp16 halves the file."""
    seed: int = 0
    """Decides initial weights, order of the data, dropout and augmentation."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the forward pass; auto is bf16 on GPUs that have it, else fp32."""
    gradient_dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision in which workers exchange gradients; bf16 halves the traffic, with rounding."""
    compile: bool = False
    """Compile the network with torch.compile: slow first steps, then faster ones on GPUs."""


@dataclass(frozen=True, kw_only=True)
class AugmentFlags:
    """What happens to training clips, from the seed, the epoch and the clip's name alone."""

    crop_s: tuple[float, float] | None = None
    """Shortest and longest random crop in seconds."""
    equaliser_db: float = 0.0
    """Largest gain of a random equaliser's bands."""
    noise_db: tuple[float, float] | None = None
    """Lowest and highest signal-to-noise ratio of added noise."""
    noise_share: float = 0.5
    """Share of clips that get noise, with --noise-db."""
    speed: tuple[float, ...] = ()
    """Speeds one of which every clip is played at, as 0.9 1.0 1.1."""


@dataclass(frozen=True, kw_only=True)
class TrainingFlags(AugmentFlags, LearningFlags, NetworkFlags, LabelledFlags, Ruled):
    """All flags of the training job."""

    output: Output
    """Folder or s3:// prefix for the model; rerun the command to resume there."""
    workers: int = 0
    """Training workers; 0 uses every GPU, or the CPUs when there is none. One to four
    give the same model; more draw dropout differently."""
    max_padded_s: float = 0.0
    """Padded audio seconds per forward pass; 0 chooses for the device."""
    track: Literal["none", "mlflow"] = "none"
    """Where to report besides TensorBoard files; mlflow goes to MLFLOW_TRACKING_URI."""
    checkpoint_steps: int = 0
    """Save the state every N steps too, not only after every epoch."""
    max_restarts: int = 3
    """How often workers that died are started again."""

    def rules(self) -> Iterator[Rule]:
        """In the order of the flags."""
        yield bool(self.output), "--output", "a folder or an s3:// prefix"
        yield bool(self.data or self.train), "--data", "labelled data, or --train and --dev"
        alone = not (self.data and (self.train or self.dev))
        yield alone, "--data", "either --data, or --train and --dev"
        needs_train = bool(self.train) or not self.dev
        yield needs_train, "--dev", "also --train, or --data with a split column"
        yield self.folds == 0 or self.folds >= 2, "--folds", "2 or more (0: the data's own splits)"
        yield not (self.folds and self.train), "--folds", "--data with it, not --train and --dev"
        fold = f"a number from 0 to {max(self.folds - 1, 0)} (--folds is {self.folds})"
        yield 0 <= self.fold < max(self.folds, 1), "--fold", fold
        yield 0 < self.train_fraction <= 1, "--train-fraction", "a share above 0 and up to 1"
        yield 0 <= self.max_failed <= 1, "--max-failed", "a share from 0 to 1"
        for name in _AT_LEAST_0:
            yield getattr(self, name) >= 0, f"--{name.replace('_', '-')}", "0 or more"
        yield self.max_clip_s > self.min_clip_s, "--max-clip-s", "more than --min-clip-s"
        yield 0 <= (self.head_dropout or 0) < 1, "--head-dropout", "a share from 0 to below 1"
        mel_only = self.front == "mel" or self.front_steps == 0
        yield mel_only, "--front-steps", "also --front mel"
        adapted = not self.lora or self.freeze in ("auto", "backbone")
        yield adapted, "--freeze", "auto with --lora, which keeps the backbone"
        yield 0 <= self.warmup < 1, "--warmup", "a share of the steps from 0 to below 1"
        weights = self.target_weights
        usable = min(weights) >= 0 and sum(weights) > 0
        yield usable, "--target-weights", "three weights of 0 or more, not all 0"
        alone = self.loss == "ccc" and self.batch_size == 1
        yield not alone, "--batch-size", "2 or more with --loss ccc: one clip has no correlation"
        yield self.accumulate >= 1, "--accumulate", "1 or more pieces"
        yield 0 <= self.ema < 1, "--ema", "a decay from 0 to below 1"
        waits = not self.patience or self.keep != "last"
        yield waits, "--patience", "also --keep best: without dev scores nothing can stop early"
        stepwise = self.keep != "best-step" or self.eval_steps > 0
        yield stepwise, "--keep", "also --eval-steps N with best-step"
        crop = self.crop_s
        cut = crop is None or 0 < crop[0] <= crop[1]
        yield cut, "--crop-s", "two lengths above 0, shorter first"
        noise = self.noise_db
        yield noise is None or noise[0] <= noise[1], "--noise-db", "two levels, lower first"
        yield 0 <= self.noise_share <= 1, "--noise-share", "a share from 0 to 1"
        yield all(0.5 <= s <= 2 for s in self.speed), "--speed", "speeds from 0.5 to 2"


def with_recipe(flags: FlagsT, kind: str) -> FlagsT:
    """The flags with everything left open settled by the recipe of `kind`, `categories` too."""
    recipe = RECIPES[kind] | {"schedule": "constant"}
    left_open = {n: value for n, value in recipe.items() if getattr(flags, n) in (0, "recipe")}
    if flags.categories and not flags.category_weight:
        left_open["category_weight"] = 1.0
    return replace(flags, **left_open)


_AT_LEAST_0 = (
    "limit", "min_clip_s", "layers", "lora", "front_steps", "epochs", "batch_size", "lr",
    "weight_decay", "clip_norm", "category_weight", "sex_weight", "patience", "eval_steps",
    "equaliser_db", "seed", "workers", "max_padded_s", "checkpoint_steps", "max_restarts",
)  # fmt: skip
#: Flags that `--help` shows; recipes and config files hold the others.
SHOWN = (
    "data", "train", "dev", "emotion_map", "speakers", "folds", "fold", "limit", "backbone",
    "freeze", "categories", "epochs", "batch_size", "lr", "output", "seed", "workers", "dtype",
)  # fmt: skip
#: Flags that name files or folders.
PLACES = ("data", "train", "dev", "speakers", "emotion_map")
#: Flags that do not decide the parameters; `categories` is settled by `category_weight`.
_FREE = {
    "output", "workers", "track", "checkpoint_steps", "max_restarts", "max_failed", "accumulate",
    "gradient_checkpointing", "categories",
}  # fmt: skip


def deciding(flags: TrainingFlags) -> dict[str, Any]:
    """Every flag that decides the parameters of the result, for `settings` of the run."""
    found = {f.name: getattr(flags, f.name) for f in fields(TrainingFlags)}
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in sorted(found.items())}
    return {name: value for name, value in plain.items() if name not in _FREE}
