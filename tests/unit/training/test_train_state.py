"""A saved and restored training goes on bit for bit; other trainings' states are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from raysers.errors import CheckpointError
from raysers.training.context import Alone
from raysers.training.learner import Learner
from raysers.training.state import dump, restore
from tests.unit.models.train_runs import Run, batch_of, batches_of, data_of, new_trainee

FULL = Run(kind="w2v2-L", dropout=True, steps=4).but(
    ema=0.9, lr=1e-3, schedule="cosine", warmup_share=0.25
)

PIECES_OF_SEVERAL = FULL.but(pieces=2, max_padded_s=100.0)


def advance(learner: Learner, run: Run, first: int, last: int) -> None:
    for rows in batches_of(run)[first:last]:
        learner.step(batch_of(run, rows, Alone()))


@pytest.mark.parametrize(
    "run",
    [
        FULL,
        FULL.but(optimiser="adamw", weight_decay=0.1, ema=0.0),
        FULL.but(kind="cnn14", optimiser="sgd", lr=0.01),
    ],
)
def test_a_restored_training_goes_on_bit_for_bit(run: Run) -> None:
    through = new_trainee(run)
    advance(through, run, 0, 2)
    state = dump(through)
    advance(through, run, 2, 4)
    resumed = new_trainee(run, model_seed=99)
    advance(resumed, run, 3, 4)  # whatever was there is replaced
    restore(resumed, state.weights, state.optimiser, json.loads(json.dumps(state.scalars)))
    assert resumed.steps == 2
    advance(resumed, run, 2, 4)
    ends = [dump(learner) for learner in (through, resumed)]
    for name in ("weights", "optimiser"):
        first, second = (load(getattr(end, name)) for end in ends)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert ends[0].scalars == ends[1].scalars
    signals = data_of(run.clips)[0][:4]
    assert np.array_equal(through.predict(signals), resumed.predict(signals))


def test_a_restored_training_needs_no_more_memory_than_before() -> None:
    run = PIECES_OF_SEVERAL
    through, resumed = new_trainee(run), new_trainee(run)
    through.halvings = 1
    through.checkpoint_gradients()
    advance(through, run, 0, 1)
    state = dump(through)
    restore(resumed, state.weights, state.optimiser, json.loads(json.dumps(state.scalars)))
    assert (resumed.halvings, resumed.checkpointing) == (1, True)
    for learner in (through, resumed):
        advance(learner, run, 1, 2)
    assert dump(through).weights == dump(resumed).weights


def test_a_state_from_before_the_first_step() -> None:
    first, second = new_trainee(FULL), new_trainee(FULL, model_seed=9)
    state = dump(first)
    restore(second, state.weights, state.optimiser, state.scalars)
    for learner in (first, second):
        advance(learner, FULL, 0, 1)
    assert dump(first).weights == dump(second).weights


def test_states_that_do_not_fit_are_refused() -> None:
    learner = new_trainee(FULL)
    advance(learner, FULL, 0, 1)
    state = dump(learner)
    others = {
        "network": new_trainee(FULL.but(kind="w2v2-b")),
        "category": new_trainee(FULL.but(category_weight=0.0)),
        "average": new_trainee(FULL.but(ema=0.0)),
    }
    for other in others.values():
        with pytest.raises(CheckpointError, match="does not fit"):
            restore(other, state.weights, state.optimiser, state.scalars)
    with pytest.raises(CheckpointError, match="damaged"):
        restore(learner, state.weights[:-9], state.optimiser, state.scalars)
    moments = load(state.optimiser)
    del moments[next(key for key in moments if key.startswith("exp_avg:"))]
    with pytest.raises(CheckpointError, match="moments are missing"):
        restore(learner, state.weights, save(moments), state.scalars)
