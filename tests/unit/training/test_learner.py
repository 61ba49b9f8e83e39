"""A step's result depends on nothing but the global batch, and equals a plain training loop's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from raysers.errors import TrainingDiverged
from raysers.models.initialize import start_model
from raysers.models.loading import load_emotion_model, save_emotion_model
from raysers.models.scorer import Scorer
from raysers.training import checkpoint, optim
from raysers.training.checkpoint import TrainProgress
from raysers.training.dataloader import Batch, MicroBatch
from raysers.training.learner import Learner
from tests.unit.models.networks import speechlike
from tests.unit.models.train_runs import (
    Run,
    batch_of,
    batches_of,
    data_of,
    in_processes,
    learning,
    new_learner,
    parameters_of,
    sexes_of,
    train,
)

Arrays = dict[str, np.ndarray]

PLAIN = Run()
RUNS = {
    "plain": PLAIN,
    "absent": PLAIN.but(kind="w2v2-L", absent=(3, 7), clip_norm=0.5, ema=0.9, sex_weight=0.4),
    "dropout": PLAIN.but(dropout=True),
    # running statistics and augmentation of the paper's other network
    "cnn14": PLAIN.but(kind="cnn14", optimiser="sgd", lr=0.01),
    # fewer micro-batches than workers
    "few clips": PLAIN.but(batch_size=3, pieces=2),
}
#: Which runs are spread over how many processes.
SPREAD = [("plain", 2), ("absent", 4), ("dropout", 2), ("cnn14", 4), ("few clips", 4)]


def finished(run: Run) -> tuple[Arrays, list[float]]:
    learner, results = train(run)
    return parameters_of(learner), [result.loss for result in results]


#: The same runs are compared with again and again.
alone_after = functools.cache(finished)


def first_step(run: Run, learner: Learner | None = None) -> tuple[str, bool]:
    """The error of a step, and whether the parameters stayed as they were."""
    learner = learner or new_learner(run)
    before, message = parameters_of(learner), ""
    try:
        learner.step(batch_of(run, batches_of(run)[0]))
    except (TrainingDiverged, MemoryError) as error:
        message = str(error)
    after = parameters_of(learner)
    return message, all(np.array_equal(before[name], after[name]) for name in before)


def short_of_memory() -> tuple[Arrays, list[float]]:
    """The second process alone has room for two clips at a time."""
    learner = new_learner(PLAIN)
    if optim.rank() == 1:
        failing(learner, MEASURES["micro-batches are halved"])
    losses = [learner.step(batch_of(PLAIN, rows)).loss for rows in batches_of(PLAIN)]
    return parameters_of(learner), losses


def different_starts() -> Arrays:
    return parameters_of(new_learner(PLAIN, model_seed=10 + optim.rank()))


def asked_to_stop() -> list[bool]:
    """The second process asks all to stop after the second step."""
    learner, batches = new_learner(PLAIN), batches_of(PLAIN)
    return [
        learner.step(batch_of(PLAIN, rows), stop=(optim.rank(), n) == (1, 1)).stop
        for n, rows in enumerate(batches)
    ]


NAN = PLAIN.but(nan_clip=int(batches_of(PLAIN)[0][5]))
BF16 = PLAIN.but(gradient_dtype="bf16")


def resumed(state: str) -> Arrays:
    """The steps after those of one process, by as many as there are here."""
    learner = new_learner(PLAIN, model_seed=99)
    saved = checkpoint.latest(state)
    assert saved is not None
    saved.restore(learner)
    for rows in batches_of(PLAIN)[learner.steps :]:
        learner.step(batch_of(PLAIN, rows))
    return parameters_of(learner)


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], list[Any]]:
    """Runs by 2 or 4 processes: what each process ended with."""
    state, learner = str(tmp_path_factory.mktemp("state")), new_learner(PLAIN)
    learner.step(batch_of(PLAIN, batches_of(PLAIN)[0]))
    checkpoint.save(state, TrainProgress(step=1), learner)
    jobs: dict[tuple[str, int], tuple[Callable[[], Any], int]] = {
        (name, size): (partial(finished, RUNS[name]), size) for name, size in SPREAD
    }
    jobs["nan", 4] = (partial(first_step, NAN), 4)
    jobs["bf16", 2] = (partial(finished, BF16), 2)
    jobs["resumed", 2] = (partial(resumed, state), 2)
    for job in (short_of_memory, different_starts, asked_to_stop):
        jobs[job.__name__, 2] = (job, 2)
    found = {}
    for size in (2, 4):
        mine = {key: job for key, (job, of) in jobs.items() if of == size}
        found |= zip(mine, in_processes(list(mine.values()), size), strict=True)
    return found


def assert_close(found: Arrays, wanted: Arrays, atol: float = 1e-5) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=atol, err_msg=name)


def assert_same(found: Arrays, wanted: Arrays) -> None:
    assert all(np.array_equal(value, found[name]) for name, value in wanted.items())


@pytest.mark.parametrize(("name", "size"), SPREAD)
def test_any_number_of_workers_learns_the_same(name: str, size: int, spread: Any) -> None:
    alone, losses = alone_after(RUNS[name])
    for parameters, seen in spread[name, size]:
        assert_close(parameters, alone)
        assert seen == pytest.approx(losses, abs=1e-5)
        assert_same(parameters, spread[name, size][0][0])  # replicas must never drift apart


def test_a_training_goes_on_with_another_number_of_workers(spread: Any) -> None:
    for parameters in spread["resumed", 2]:
        assert_close(parameters, alone_after(PLAIN)[0])


def test_gradients_exchanged_in_bf16_teach_about_the_same(spread: Any) -> None:
    alone, losses = alone_after(PLAIN)
    (first, seen), (second, _) = spread["bf16", 2]
    assert_same(second, first)
    assert seen == pytest.approx(losses, abs=2e-3)
    assert_close(first, alone, atol=PLAIN.flags.lr * PLAIN.steps * 2)
    assert any(not np.array_equal(first[name], alone[name]) for name in alone)


def test_nan_is_refused_in_every_process_before_any_parameter_moves(spread: Any) -> None:
    for message, unchanged in [first_step(NAN), *spread["nan", 4]]:
        assert "step 0: loss nan" in message
        assert "--lr" in message
        assert unchanged


def test_processes_start_with_the_weights_of_the_first(spread: Any) -> None:
    for parameters in spread["different_starts", 2]:
        assert_same(parameters, parameters_of(new_learner(PLAIN, model_seed=10)))


def test_processes_agree_on_less_memory(spread: Any) -> None:
    alone, losses = alone_after(PLAIN)
    (first, seen), (second, _) = spread["short_of_memory", 2]
    assert seen == pytest.approx(losses, abs=1e-5)
    assert_close(first, alone)
    assert_same(second, first)


def test_all_processes_learn_that_one_asks_to_stop(spread: Any) -> None:
    assert spread["asked_to_stop", 2] == [[False, True, False]] * 2


@pytest.mark.parametrize("name", ["plain", "absent"])
def test_the_cut_into_micro_batches_does_not_matter(name: str) -> None:
    for changes in ({"max_padded_s": 1.0}, {"max_padded_s": 1e3, "pieces": 1}):
        assert_close(finished(RUNS[name].but(**changes))[0], alone_after(RUNS[name])[0])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("dropout", {"accumulate": 2}),
        ("dropout", {"graph_bytes": 0.0}),
        ("cnn14", {"accumulate": 99}),
    ],
)
def test_graphs_computed_twice_give_the_same_bits(name: str, changes: dict[str, Any]) -> None:
    alone, losses = alone_after(RUNS[name])
    found, seen = finished(RUNS[name].but(**changes))
    assert seen == losses
    assert_same(found, alone)


def most_live_graphs(run: Run) -> int:
    """Graphs of micro-batches that exist at the same time in a step."""
    learner, alive, counts = new_learner(run), set[int](), [0]

    def count(_model: nn.Module, _inputs: Any, outputs: tuple[Tensor, Tensor]) -> None:
        graph = outputs[0].grad_fn
        if graph is not None:
            alive.add(id(graph))
            graph.register_hook(lambda *_: alive.discard(id(graph)))  # its gradients are there
            counts.append(len(alive))

    learner.model.register_forward_hook(count)
    learner.step(batch_of(run, batches_of(run)[0]))
    assert not alive
    return max(counts)


def test_memory_does_not_grow_with_the_micro_batches_of_a_step() -> None:
    run = PLAIN.but(pieces=11, max_padded_s=100.0)
    assert most_live_graphs(run) == 11
    assert most_live_graphs(run.but(graph_bytes=0.0)) == 1
    assert most_live_graphs(run.but(graph_bytes=1.0)) == 1  # the first is there in any case


def failing(learner: Learner, fits: Callable[[Learner, Tensor], bool]) -> list[int]:
    """Let training passes for which `fits` is false run out of memory; returns their clips."""
    failed: list[int] = []

    def check(_model: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
        if torch.is_grad_enabled() and not fits(learner, inputs[0]):
            failed.append(len(inputs[0]))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    learner.model.register_forward_pre_hook(check)
    return failed


MEASURES: dict[str, Callable[[Learner, Tensor], bool]] = {
    "no graphs are kept": lambda learner, _: not learner.graph_bytes,
    "micro-batches are halved": lambda _, padded: len(padded) <= 2,
    "computed twice": lambda learner, _: learner.checkpointing,
}


@pytest.mark.parametrize("measure", MEASURES)
def test_a_step_out_of_memory_is_made_again_with_less(
    measure: str,
) -> None:
    run = PLAIN.but(pieces=2, max_padded_s=100.0)
    learner = new_learner(run)
    failed = failing(learner, MEASURES[measure])
    losses = [learner.step(batch_of(run, rows)).loss for rows in batches_of(run)]
    alone, expected = alone_after(run)
    assert_close(parameters_of(learner), alone)
    assert losses == pytest.approx(expected, abs=1e-5)
    assert failed
    assert measure in learner.warnings[-1]
    assert all(text.startswith("step 0: out of memory (CUDA") for text in learner.warnings)


def test_statistics_of_a_step_that_did_not_fit_are_dropped() -> None:
    run = RUNS["cnn14"].but(accumulate=99)  # the first part has been counted when another fails
    learner = new_learner(run)
    calls = iter([True, True, False])
    failing(learner, lambda _learner, _padded: next(calls, True))
    for rows in batches_of(run):
        learner.step(batch_of(run, rows))
    assert_same(parameters_of(learner), alone_after(RUNS["cnn14"])[0])


def test_a_clip_that_never_fits_ends_the_step_before_any_parameter_moves() -> None:
    learner = new_learner(PLAIN)
    failing(learner, lambda _learner, _padded: False)
    message, unchanged = first_step(PLAIN, learner)
    assert "Tried to allocate" in message
    assert unchanged


def test_dropout_follows_the_seed_and_leaves_other_random_numbers_alone() -> None:
    run = RUNS["dropout"].but(lr=1e-30)  # without moving
    state, batch = torch.get_rng_state(), batch_of(run, batches_of(run)[0])
    learners = [new_learner(run.but(seed=seed)) for seed in (5, 5, 6)]
    (first, again), same, (other, _) = (
        [one.step(batch).loss for _ in range(2)] for one in learners
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert same == [first, again]
    assert len({first, again, other}) == 3  # every step draws anew


class PlainLoop:
    """The same training as one would write it: stock network, one clip at a time, one optimiser."""

    def __init__(self, run: Run) -> None:
        learner = new_learner(run)
        model: Any = learner.model
        self.backbone = transformers.Wav2Vec2Model(type(model.config)(**model.config.to_dict()))
        self.backbone.load_state_dict(model.backbone.state_dict())
        size = model.config.hidden_size
        self.dense, self.out_proj = nn.Linear(size, size), nn.Linear(size, 3)
        self.dense.load_state_dict(model.classifier.dense.state_dict())
        self.out_proj.load_state_dict(model.classifier.out_proj.state_dict())
        self.heads = {}
        for name in ("categories", "sex_head")[: 1 + bool(run.flags.sex_weight)]:
            theirs = model.get_submodule(name)
            self.heads[name] = nn.Linear(size, theirs.out_features)
            self.heads[name].load_state_dict(theirs.state_dict())
        frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
        self.trained = {n: p for n, p in self.named() if n not in frozen}
        self.normalise = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)

    def named(self) -> Iterator[tuple[str, Tensor]]:
        for prefix, module in (
            ("wav2vec2.", self.backbone),
            ("classifier.dense.", self.dense),
            ("classifier.out_proj.", self.out_proj),
            *((f"{name}.", head) for name, head in self.heads.items()),
        ):
            yield from ((prefix + name, p) for name, p in module.named_parameters())

    def outputs(self, signal: np.ndarray) -> tuple[Tensor, ...]:
        values = self.normalise(signal, sampling_rate=16_000)["input_values"][0]
        pooled = self.backbone(torch.as_tensor(values)[None])[0].mean(1)[0]
        scores = self.out_proj(torch.tanh(self.dense(pooled)))
        return scores, *(head(pooled) for head in self.heads.values())

    def loss(self, run: Run, rows: np.ndarray) -> Tensor:
        signals, labels, classes = data_of(run.clips)
        rows = np.array([r for r in rows if r not in run.absent])
        scores, *logits = zip(*(self.outputs(signals[r]) for r in rows), strict=True)
        terms, weights = [], []
        for target, weight in enumerate(run.flags.target_weights):
            known = ~np.isnan(labels[rows, target])
            x = torch.stack(scores)[torch.from_numpy(known), target]
            y = torch.from_numpy(labels[rows, target][known])
            covariance = ((x - x.mean()) * (y - y.mean())).mean()
            spread = x.var(correction=0) + y.var(correction=0) + (x.mean() - y.mean()) ** 2
            terms.append(weight * (1 - 2 * covariance / spread))
            weights.append(weight)
        loss = sum(terms) / sum(weights)
        factors = (run.flags.category_weight, run.flags.sex_weight)
        for factor, of, found in zip(
            factors, logits, (classes[rows], sexes_of(rows)), strict=False
        ):
            known = torch.from_numpy(found >= 0)
            truth = torch.from_numpy(found)[known]
            loss = loss + factor * nn.functional.cross_entropy(torch.stack(of)[known], truth)
        return loss

    def train(self, run: Run, optimiser: torch.optim.Optimizer) -> list[float]:
        losses = []
        for rows in batches_of(run):
            optimiser.zero_grad()
            loss = self.loss(run, rows)
            loss.backward()
            if run.flags.clip_norm:
                nn.utils.clip_grad_norm_(list(self.trained.values()), run.flags.clip_norm)
            optimiser.step()
            losses.append(loss.item())
        return losses


def _adam(trained: dict[str, Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(trained.values(), lr=1e-4)


def _sgd(trained: dict[str, Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        trained.values(), lr=1e-2, momentum=0.9, nesterov=True, weight_decay=1e-3
    )


def _adamw(trained: dict[str, Tensor]) -> torch.optim.Optimizer:
    def plain(name: str) -> bool:  # norms, biases, and the gain of the weight norm
        return "norm" in name or name.endswith(("bias", "original0", "spec_embed"))

    groups = [
        {"params": [p for n, p in trained.items() if not plain(n)], "weight_decay": 0.1},
        {"params": [p for n, p in trained.items() if plain(n)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1e-3)


@pytest.mark.parametrize(
    ("changes", "optimiser"),
    [
        ({"absent": (3, 7), "target_weights": (1.0, 0.5, 2.0), "sex_weight": 0.3}, _adam),
        ({"optimiser": "sgd", "lr": 1e-2, "weight_decay": 1e-3, "clip_norm": 0.3}, _sgd),
        ({"kind": "w2v2-L", "optimiser": "adamw", "lr": 1e-3, "weight_decay": 0.1}, _adamw),
    ],
)
def test_equals_a_plain_loop_of_torch_and_transformers(
    changes: dict[str, Any], optimiser: Callable[[dict[str, Tensor]], torch.optim.Optimizer]
) -> None:
    run = PLAIN.but(**changes)
    plain = PlainLoop(run)
    losses = plain.train(run, optimiser(plain.trained))
    parameters, seen = alone_after(run)
    assert seen == pytest.approx(losses, abs=1e-5)
    moved = 0.0
    start = parameters_of(new_learner(run))
    for name, value in plain.trained.items():
        if name.endswith("spec_embed"):  # in no graph here: no decay there
            continue
        found, expected = parameters[name], value.detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5, err_msg=name)
        moved = max(moved, float(np.abs(expected - start[name]).max()))
    assert moved > 2e-4


def test_a_batch_without_any_clip_changes_nothing() -> None:
    run = PLAIN.but(ema=0.9)
    learner = new_learner(run)
    learner.step(batch_of(run, batches_of(run)[0]))
    before = parameters_of(learner)
    unknown = torch.full((4,), -1)
    result = learner.step(Batch(labels=torch.rand(4, 3), categories=unknown, pieces=[]))
    assert result.loss == 0
    assert_same(parameters_of(learner), before)
    assert learner.steps == 2


def test_clips_too_short_for_the_network_are_absent() -> None:
    labels, unknown = torch.rand(4, 3), torch.full((4,), -1)
    long = [speechlike(8_000 + i, i) for i in range(3)]
    short = speechlike(399, 9)
    with_short, without = new_learner(PLAIN), new_learner(PLAIN)
    piece = MicroBatch.of(0, range(4), [long[0], short, long[1], long[2]])
    result = with_short.step(Batch(labels=labels, categories=unknown, pieces=[piece]))
    piece = MicroBatch.of(0, range(3), long)
    kept = Batch(labels=labels[[0, 2, 3]], categories=unknown[:3], pieces=[piece])
    assert without.step(kept).loss == pytest.approx(result.loss)
    assert_close(parameters_of(with_short), parameters_of(without), atol=1e-6)
    scores = with_short.predict([short, long[0]])
    assert np.isnan(scores[0]).all()
    assert np.isfinite(scores[1]).all()


def test_predictions_are_those_of_the_stored_model(tmp_path: Any) -> None:
    run = RUNS["dropout"].but(ema=0.9, lr=1e-3)
    learner, _ = train(run)
    signals = data_of(run.clips)[0][:5]
    before = parameters_of(learner)
    found = learner.predict(signals)
    with learner.averaged() as model:
        save_emotion_model(model, tmp_path, do_normalize=learner.do_normalize)
    scorer = Scorer(load_emotion_model(str(tmp_path)), dtype="fp32", device="cpu")
    scored = scorer.score(signals)
    np.testing.assert_allclose(found, np.hstack([scored.scores, scored.extras]), atol=2e-6)
    # not the weights of the last step, which are still there
    assert learner.average is not None
    learner.average = None
    assert np.abs(learner.predict(signals) - found).max() > 1e-5
    assert_same(parameters_of(learner), {n: v for n, v in before.items() if "average" not in n})


def test_frozen_parameters_stay_and_are_not_sent() -> None:
    start = start_model("random:tiny", seed=0, freeze="backbone")
    before = {n: p.detach().clone() for n, p in start.model.named_parameters()}
    learner = Learner(start, (), learning(lr=1e-2), 5, "cpu")
    sent = sum(p.numel() for n, p in before.items() if n.startswith("classifier."))
    assert learner.gradients.num_bytes == 4 * sent
    learner.step(batch_of(PLAIN, batches_of(PLAIN)[0]))
    for name, parameter in learner.model.named_parameters():
        assert torch.equal(parameter, before[name]) != name.startswith("classifier."), name
