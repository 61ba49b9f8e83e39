"""Which models a trained fusion asks for, and what becomes of clips nobody knows the words of."""

from __future__ import annotations

import pytest

from raysers.models.fusion import FusionConfig
from raysers.words import fusion_parts

CONFIG = {
    "acoustic_revision": "a1", "text_revision": "b2", "asr_revision": "c3", "text_pooling": "mean",
    "recognise_all": False, "sound_size": 4, "words_size": 2, "dropout": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # the commit of the training, whatever the hub's newest is by now
        (
            ("owner/voice", "bert-base-uncased", "owner/words"),
            ("owner/voice@a1", "bert-base-uncased@b2", "owner/words@c3"),
        ),
        (
            ("owner/voice@main", "owner/bert@main", "owner/words@main"),
            ("owner/voice@a1", "owner/bert@b2", "owner/words@c3"),
        ),
        # what has no commits
        (("raysers-base", "minilm", "moonshine"), ("raysers-base", "minilm", "moonshine")),
        (("random:w2v2-b", "/m/bert", "manifest"), ("random:w2v2-b", "/m/bert", "manifest")),
        (("s3://b/v", "s3://b/t", "s3://b/a"), ("s3://b/v", "s3://b/t", "s3://b/a")),
    ],
)
def test_hub_models_are_asked_for_by_the_commit_of_the_training(names, expected):
    sound, words, asr = names
    config = FusionConfig(acoustic_model=sound, text_model=words, asr=asr, **CONFIG)
    asked = (
        fusion_parts.pinned_sound(config),
        fusion_parts.pinned_words(config),
        fusion_parts.pinned_recogniser(config),
    )
    assert asked == expected
