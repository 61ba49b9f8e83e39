"""Operations of the paper's networks, against what others counted and measured."""

from __future__ import annotations

from io import StringIO

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from transformers import Wav2Vec2Config, Wav2Vec2Model

from raysers.models.backbones import BACKBONES
from raysers.models.loading import build_network
from raysers.run import RunRecord
from raysers.studies.cost import Heard, operations_per_s, print_cost
from raysers.studies.experiments import make_grid
from raysers.studies.networks import BEGINNINGS, small_config
from raysers.studies.plan import StudyingFlags, StudyPlan
from raysers.studies.study import read_studies
from raysers.tuning.trials import Ended


@pytest.mark.parametrize("alias", ["w2v2-b", "w2v2-L-robust"])
def test_torch_counts_as_many_operations(alias):
    """In the plain network of transformers, at small size; six seconds of one clip."""
    config = small_config(alias)
    network = Wav2Vec2Model(Wav2Vec2Config(**config, attn_implementation="eager")).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 96_000))
    # frames are rounded down, and so are the kernels at the ends
    assert 6 * sum(operations_per_s(config)) == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_torch_counts_as_many_operations_of_cnn14():
    """Its convolutions; the spectrogram is not counted."""
    config = small_config("cnn14")
    network = build_network(config, "cnn14").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 96_000), torch.tensor([96_000]))
    assert 6 * sum(operations_per_s(config)) == pytest.approx(counter.get_total_flops(), rel=0.1)


@pytest.mark.parametrize(("alias", "layers", "known"), [("w2v2-b", 12, 14), ("msp-dim", 12, 21)])
def test_the_full_size_is_what_was_measured(alias, layers, known):
    """Billions a second of audio, as measured on the full networks."""
    operations = sum(operations_per_s(BACKBONES[alias].config(layers)))
    assert operations / 1e9 == pytest.approx(known, rel=0.05)


def test_small_networks_keep_what_tells_the_families_apart():
    for alias in BEGINNINGS:
        full, small = BACKBONES[alias].config(), small_config(alias)
        for key in ("model_type", "feat_extract_norm", "do_stable_layer_norm", "conv_bias"):
            assert small[key] == full[key]
        assert small["hidden_size"] < full["hidden_size"]


@pytest.mark.parametrize("workers", [1, 2])
def test_money_is_asked_for_places_and_for_what_is_left(tmp_path, ray_session, workers):
    """A place is what a cell takes, with all its workers."""
    flags = StudyingFlags(
        study=("seeds",), data=("/corpus",), output=str(tmp_path), usd_per_hour=1e6,
        workers_per_trial=workers,
    )  # fmt: skip
    grid = make_grid(read_studies(flags.study, "full"), "full")
    done, *left = (tmp_path / "runs" / name for name in grid.runs)
    Ended(name=done.name, path=str(done), status="done").save()
    earlier = RunRecord(
        run_id="0", job="study", status="done", started_at="", config={}, settings={}, versions={},
        command=[],
    )  # fmt: skip
    plan = StudyPlan(
        flags=flags, wanted=("seeds",), studies=(), grid=grid, settings={}, earlier=earlier
    )
    printed = StringIO()
    print_cost(plan, Heard(train_s=1e6, dev_s=1e5, judged_s=1e5), Console(file=printed, width=200))
    lines = printed.getvalue().splitlines()
    assert sum(" train        done before" in line for line in lines) == 1
    hours = [float(line.split()[-1]) for line in lines if " train " in line and "done" not in line]
    assert len(hours) == len(left) == 5
    (cost,) = [line.removeprefix("cost: $") for line in lines if line.startswith("cost: $")]
    assert float(cost) / 1e6 == pytest.approx(sum(hours), rel=0.01)
