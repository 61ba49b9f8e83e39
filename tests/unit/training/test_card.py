"""The model card, read back by the hub's own parser, a Markdown renderer, and Python."""

import math
import re
import subprocess
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from raysers.evaluation.rows import Row
from raysers.models.loading import build_network, load_emotion_model, save_emotion_model
from raysers.models.scorer import Scorer
from raysers.text import one_line, plain, table
from raysers.training.model_card import CardFacts, SplitFacts, model_card

HOSTILE = (
    "a|b", "<script>alert(1)</script>", "[click](http://evil.example)", "![x](x.png)", "**bold**",
    "line\nbreak\r\n# heading", "`code` ``more``", "&lt;", "back\\|slash", "half \udcff byte",
    "\u202edesrever", "---", "{{ 7 * 7 }}{% set x %}", "_it_ $x$", "x\u2028y",
)  # fmt: skip
RENDERER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


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
]

FACTS = CardFacts(
    name="tiny-model",
    backbone="facebook/wav2vec2-base",
    base_hub_id="facebook/wav2vec2-base",
    parameters=697_123,
    trained_parameters=690_000,
    min_samples=400,
    splits=[
        SplitFacts(corpus="emodb", split="train", clips=425, hours=0.31, speakers=8),
        SplitFacts(corpus="own", split="dev", clips=110, hours=0.1, speakers=None),
    ],
    recipe={"lr": 1e-4, "batch_size": 32},
    metrics=METRICS,
    command="python jobs/train.py --data 'my  data' --output tiny-model",
    versions={"torch": "2.13.0"},
    seed=3,
    epochs=5,
    best_epoch=4,
    audio_hours=1.6,
    seconds=95.0,
    workers=2,
    device="cpu",
    data_fingerprint="0123abcd",
    languages=["de", "German", "de"],
)


def body(card):
    return card.split("\n---\n", 1)[1]


def tokens(card):
    """All tokens of the rendered card, those within a line too."""
    found = RENDERER.parse(body(card))
    return [*found, *(child for token in found for child in token.children or ())]


def cells(card):
    """The text of every table cell as a reader sees it."""
    parsed = RENDERER.parse(body(card))
    return [
        "".join(child.content for child in parsed[i + 1].children)
        for i, token in enumerate(parsed)
        if token.type in ("th_open", "td_open")
    ]


def test_the_hub_reads_the_front_matter_and_its_results():
    uar = row("emotion", 0.6512, metric="uar", ci_low=0.6, ci_high=0.7)
    facts = replace(FACTS, metrics=[*METRICS, uar], categories=["anger", "a|b"])
    data = ModelCard(model_card(facts)).data
    assert (data.license, data.language) == ("unknown", ["de"])
    assert data.base_model == "facebook/wav2vec2-base"
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
    shown = cells(model_card(FACTS))
    assert shown.count("CCC, random baseline") == 1  # not in groups
    # the speakers of a corpus that does not tell are unknown
    assert {"0.862 [0.830, 0.890]", "sex female", "MAE", "–", "unknown"} <= set(shown)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"leakage": "train and dev share 3 speakers."}, "train and dev share 3 speakers."),
        ({"shuffled_labels": True}, "shuffled"),
        ({"splits": FACTS.splits[:1]}, "No clip was held out to judge by"),
        ({"metrics": []}, "measured nothing"),
        ({"notes": ["39 clips had no label."]}, "39 clips had no label."),
        ({"mapping": {"anger": (0.795, 0.625, 0.245)}}, "| anger | 0.795 | 0.625 | 0.245 |"),
        ({"failed_clips": 7}, "7 clips could not be read"),
        ({"categories": ["anger", "a|b"]}, "with a regression head and a softmax head"),
        ({"trained": (), "categories": ["anger"]}, "by UAR on the dev split"),
    ],
)
def test_what_spoils_or_limits_a_run_is_said_only_when_it_is_so(change, sentence):
    assert sentence in model_card(replace(FACTS, **change))
    assert sentence not in model_card(FACTS)


@pytest.mark.parametrize(
    ("change", "terms"),
    [
        ({}, {"this model": "unknown", "start: facebook/wav2vec2-base": "apache-2.0"}),
        ({}, {"data: emodb": "cc0-1.0", "data: own": "unknown"}),
        ({"base_licence": "mit"}, {"start: facebook/wav2vec2-base": "mit"}),
        ({"backbone": "owner/x", "base_hub_id": "owner/x"}, {"start: owner/x": "unknown"}),
        ({"backbone": "random:tiny"}, {"start: random:tiny": "none, random weights"}),
    ],
)
def test_licences_are_those_stated_or_known_and_else_unknown(change, terms):
    found = dict(pairwise(cells(model_card(replace(FACTS, **change)))))
    assert {name: found[name] for name in terms} == terms


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_names_from_strangers_stay_text(name):
    card = model_card(
        replace(
            FACTS,
            name=name,
            backbone=name,
            leakage=name,
            command=f"python jobs/train.py --data '{name}'",
            splits=[SplitFacts(corpus=name, split=name, clips=1, hours=1.0, speakers=1)],
            metrics=[row(dataset=name), row(dataset=name, group="speaker", group_value=name)],
            recipe={"data": name},
            versions={name: name},
            device=name,
            languages=[name],
            data_fingerprint=name,
            notes=[name],
            mapping={name: (0.1, 0.2, 0.3)},
        )
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
    command = "jobs/train.py '```' 'a  b'\n# x"
    card = model_card(replace(FACTS, command=command, name="it's; $(touch x)"))
    blocks = [token.content for token in tokens(card) if token.type == "fence"]
    assert "python jobs/train.py '```' 'a  b' # x\n" in blocks
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


@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm", "data2vec-audio"])
def test_the_shown_class_scores_as_we_do_with_torch_and_transformers_alone(
    family, tmp_path, monkeypatch
):
    extra = {"conv_pos_kernel_size": 3, "num_conv_pos_embeddings": 2} if "data" in family else {}
    model = build_network({"model_type": family, **TINY, **extra}, "test")
    save_emotion_model(model, tmp_path / "it's a model")
    card = model_card(replace(FACTS, name="it's a model", model_type=family))
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


@given(st.text(max_size=60))
def test_any_text_reads_as_itself_in_a_cell_and_in_a_heading(text):
    seen = [t for t in RENDERER.parse(table(("h",), [[text]])) if t.type == "inline"][1]
    assert "".join(child.content for child in seen.children) == one_line(text)
    heading = RENDERER.parse(f"# x{plain(text)}x")
    assert [token.type for token in heading] == ["heading_open", "inline", "heading_close"]
    assert "".join(child.content for child in heading[1].children) == f"x{one_line(text)}x"
