"""The model card, read back by the hub's own parser, a Markdown renderer, and Python; the curve."""

import copy
import io
import math
import re
import subprocess
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from matplotlib import image

from raysers.display import one_line
from raysers.evaluation.rows import Row
from raysers.models.loading import build_network, load_emotion_model, save_emotion_model
from raysers.models.scorer import Scorer
from raysers.training.config import TrainingFlags, deciding
from raysers.training.model_card import learning_curve, model_card
from raysers.types import DIMENSIONS

HOSTILE = (
    "a|b", "<script>alert(1)</script>", "[click](http://evil.example)", "![x](x.png)", "**bold**",
    "line\nbreak\r\n# heading", "`code` ``more``", "&lt;", "back\\|slash", "half \udcff byte",
    "\u202edesrever", "---", "{{ 7 * 7 }}{% set x %}", "_it_ $x$", "x\u2028y",
)  # fmt: skip
RENDERER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
BACKBONE = "facebook/wav2vec2-base"


def row(dimension="arousal", value=0.5, **fields):
    given = {"model": "m", "dataset": "emodb", "split": "dev", "metric": "ccc", "n": 110}
    return Row(**(given | {"dimension": dimension, "value": value} | fields))


METRICS = [
    row("arousal", 0.8621, ci_low=0.83, ci_high=0.89),
    row("dominance", 0.731, ci_low=0.70, ci_high=0.76),
    row("valence", 0.483),
    row("arousal", 0.0123, model="random-gaussian"),
    row("arousal", 0.9, group="sex", group_value="female", n=60),
    row("arousal", 0.11, metric="mae"),
    row("arousal", 0.2, model="random-gaussian", group="sex", group_value="female", n=60),
    row("valence", math.nan, split="test"),
    row("emotion", 0.6512, metric="uar", ci_low=0.6, ci_high=0.7),
]
SPLITS = [
    {"corpus": "emodb", "split": "train", "clips": 425, "hours": 0.31, "speakers": 8},
    {"corpus": "own", "split": "dev", "clips": 110, "hours": 0.1, "speakers": None},
]
TRAINING = {
    "command": ["jobs/train.py", "--data", "my  data"],
    "settings": deciding(TrainingFlags(output="o", data=("d",), backbone=BACKBONE)),
    "versions": {"torch": "2.13.0", "ray": "2.60.0"},
    "seed": 3,
    "network": {
        "model_type": "wav2vec2", "parameters": 697_123, "trained": 690_000, "embedding_size": 9,
        "min_samples": 400, "hub_id": BACKBONE, "licence": None,
    },
    "data": {
        "fingerprint": "0123abcd", "splits": SPLITS, "languages": ["German", "de"],
        "trained": list(DIMENSIONS), "categories": ["anger", "a|b"], "mapping": {}, "leakage": [],
        "notes": [],
    },
    "metric_notes": [],
    "placement": {"workers": 2, "device": "cpu"},
    "outcome": {
        "epochs": 5, "kept_epoch": 4, "failed_clips": 0, "audio_hours": 1.6, "training_s": 95.0,
    },
}  # fmt: skip


def changed(**values):
    """TRAINING with other values, by their path: `data__notes`."""
    found = copy.deepcopy(TRAINING)
    for path, value in values.items():
        *parts, last = path.split("__")
        place = found
        for part in parts:
            place = place[part]
        place[last] = value
    return found


def card_of(name="tiny-model", metrics=METRICS, **values):
    return model_card(name, changed(**values), metrics)


def tokens(card):
    """All tokens of the rendered card, those within a line too."""
    found = RENDERER.parse(card.split("\n---\n", 1)[1])
    return [*found, *(child for token in found for child in token.children or ())]


def cells(card):
    """The text of every table cell as a reader sees it."""
    parsed = RENDERER.parse(card.split("\n---\n", 1)[1])
    return [
        "".join(child.content for child in parsed[i + 1].children)
        for i, token in enumerate(parsed)
        if token.type in ("th_open", "td_open")
    ]


def test_the_hub_reads_the_front_matter_and_its_results():
    assert "Versions: torch 2.13.0, ray 2.60.0." in card_of()
    data = ModelCard(card_of()).data
    assert (data.license, data.language, data.base_model) == ("unknown", ["de"], BACKBONE)
    # what the hub would show as code to load it puts a random head on the backbone
    assert (data.pipeline_tag, data.library_name) == (None, "raysers")
    assert {"arousal", "dominance", "valence", "wav2vec2"} <= set(data.tags)
    results = {(r.dataset_name, r.dataset_split, r.metric_name): r for r in data.eval_results}
    assert {key: (r.metric_type, r.metric_value) for key, r in results.items()} == {
        ("emodb", "dev", "CCC arousal"): ("ccc", 0.8621),
        ("emodb", "dev", "CCC dominance"): ("ccc", 0.731),
        ("emodb", "dev", "CCC valence"): ("ccc", 0.483),
        ("emodb", "dev", "UAR emotion"): ("recall", 0.6512),
    }


def test_the_table_shows_intervals_baseline_groups_and_gaps():
    shown = cells(card_of())
    assert shown.count("CCC, random baseline") == 1  # not in groups
    # the speakers of a corpus that does not tell are unknown
    assert {"0.862 [0.830, 0.890]", "sex female", "MAE", "–", "unknown"} <= set(shown)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"data__leakage": ["train and dev share 3."]}, "leak.** train and dev share 3."),
        ({"settings__shuffle_labels": True}, "shuffled"),
        ({"data__splits": SPLITS[:1]}, "No clip was held out to judge by"),
        ({"metrics": []}, "measured nothing"),
        ({"data__notes": ["39 clips had no label."]}, "39 clips had no label."),
        ({"data__mapping": {"anger": (0.7954, 0.6, 0.2)}}, "| anger | 0.795 | 0.600 | 0.200 |"),
        ({"outcome__failed_clips": 7}, "7 clips could not be read"),
        ({"settings__category_weight": 1.0}, "with a regression head and a softmax head"),
        (
            {"data__trained": [], "settings__category_weight": 1.0},
            "by UAR on the dev split",
        ),
        ({"network__licence": "mit"}, "| mit |"),
        ({"settings__backbone": "random:tiny"}, "none, random weights"),
        ({"settings__ema": 0.5}, "| ema | 0.5 |"),
    ],
)
def test_what_spoils_or_limits_a_run_is_said_only_when_it_is_so(values, sentence):
    assert sentence in card_of(**values).replace("\\_", "_")
    assert sentence not in card_of()


def test_licences_are_those_known_and_else_unknown():
    found = dict(pairwise(cells(card_of())))
    terms = {f"start: {BACKBONE}": "apache-2.0", "data: emodb": "cc0-1.0", "data: own": "unknown"}
    assert {name: found[name] for name in terms} == terms


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_names_from_strangers_stay_text(name):
    card = card_of(
        name=name,
        metrics=[row(dataset=name), row(dataset=name, group="speaker", group_value=name)],
        command=["train", name],
        settings__backbone=name,
        settings__emotion_map=name,
        versions={name: name},
        placement__device=name,
        data__leakage=[name],
        data__splits=[{"corpus": name, "split": name, "clips": 1, "hours": 1.0, "speakers": 1}],
        data__languages=[name],
        data__fingerprint=name,
        data__notes=[name],
        data__mapping={name: (0.1, 0.2, 0.3)},
    )
    card.encode("utf-8")
    assert ModelCard(card).data.eval_results[0].dataset_name == one_line(name)
    kinds = [token.type for token in tokens(card)]
    assert not {"html_block", "html_inline", "link_open", "s_open"} & set(kinds)
    assert kinds.count("image") == 1  # the learning curve
    assert kinds.count("table_open") == 5
    assert kinds.count("fence") == 3
    assert cells(card).count(one_line(name)) >= 3
    headings = [t.content for t in tokens(card) if t.type == "inline" and t.level == 1]
    assert "Not for" in headings


def test_commands_cannot_leave_their_block_and_are_one_word_per_argument():
    card = card_of(name="it's; $(touch x)", command=["jobs/train.py", "```", "a  b", "\n# x"])
    blocks = [token.content for token in tokens(card) if token.type == "fence"]
    assert "python jobs/train.py '```' 'a  b' ' # x'\n" in blocks
    (annotate,) = (block for block in blocks if block.startswith("raysers annotate"))
    words = subprocess.run(
        ["bash", "-c", f'printf "%s\\n" {annotate}'], capture_output=True, text=True, check=True
    )
    assert words.stdout.splitlines()[-2:] == ["--model", "./it's; $(touch x)"]


TINY = {
    "conv_dim": [8] * 3, "conv_kernel": [10, 3, 3], "conv_stride": [5, 4, 4], "hidden_size": 16,
    "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "group",
}  # fmt: skip


@pytest.mark.parametrize("family", ["hubert", "data2vec-audio"])
def test_the_shown_class_scores_as_we_do_with_torch_and_transformers_alone(
    family, tmp_path, monkeypatch
):
    extra = {"conv_pos_kernel_size": 3, "num_conv_pos_embeddings": 2} if "data" in family else {}
    model = build_network({"model_type": family, **TINY, **extra}, "test")
    save_emotion_model(model, tmp_path / "it's a model")
    card = card_of(name="it's a model", network__model_type=family)
    (code,) = re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE)
    assert "raysers" not in code
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(compile(code, "card", "exec"), scope)
    signal = np.random.default_rng(5).normal(size=9_000).astype(np.float32)
    loaded = load_emotion_model(str(tmp_path / "it's a model"))
    (ours,) = Scorer(loaded, dtype="fp32", device="cpu", threads=1).score([signal]).scores
    assert scope["score"](signal) == pytest.approx(ours.tolist(), abs=1e-5)
    assert len(set(np.round(ours, 6).tolist())) == 3


def epoch(number, ccc=(0.8, 0.7, 0.5), kept=False, loss=0.5, **more):
    dev = None if ccc is None else dict(zip(DIMENSIONS, ccc, strict=True))
    return {"epoch": number, "train_loss": loss, "dev_ccc": dev, "kept": kept, **more}


NAN = math.nan


@pytest.mark.parametrize(
    ("history", "words"),
    [
        (
            [
                epoch(1, (0.21, 0.11, -0.07), True, 1.04, dev_uar=0.25),
                epoch(2, (0.83, 0.64, 0.46), True, 0.44, dev_uar=0.75),
                epoch(3, (0.81, 0.66, 0.32), False, 0.38, dev_uar=0.7),
            ],
            {"arousal 0.83", "dominance 0.64", "valence 0.46", "UAR 0.75", "kept: epoch 2"}
            | {"CCC and UAR on the dev set", "Training loss"},
        ),
        ([epoch(1, None, True, dev_uar=0.5)], {"UAR 0.50", "UAR on the dev set"}),
        ([epoch(1, None), epoch(2, None, kept=True)], {"Training loss", "kept: epoch 2"}),
        ([epoch(1, None), epoch(2), epoch(3, (NAN,) * 3, loss=NAN)], {"CCC on the dev set"}),
        ([epoch(1, (-0.4, -0.9, 0.0), loss=NAN)], {"valence 0.00"}),
        ([epoch(e, (1.0, 1.0, 1.0), loss=0.0) for e in range(1, 99)], {"valence 1.00"}),
    ],
    ids=["all", "one epoch", "no dev set", "gaps", "below zero", "three lines at one height"],
)
def test_any_history_becomes_a_picture_that_names_its_lines(history, words):
    drawn = learning_curve(history)
    assert image.imread(io.BytesIO(drawn["png"]), format="png").shape[1] == pytest.approx(1152)
    assert ElementTree.fromstring(drawn["svg"]).tag.endswith("svg")
    # matplotlib names every drawn text in a comment
    assert words <= set(re.findall(r"<!-- (.*?) -->", drawn["svg"].decode()))
