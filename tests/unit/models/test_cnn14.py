"""CNN14: the published shape, scores of a clip by itself, and statistics that add up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import stft
from torch import Tensor, nn
from torch.nn import functional

from raysers.errors import CheckpointError, ConfigError
from raysers.models.backbones import BACKBONES
from raysers.models.cnn14 import Cnn14, Cnn14Config
from raysers.models.loading import build_network, load_emotion_model, save_emotion_model
from raysers.models.logmel import MelSettings, log_mel
from raysers.models.scorer import Scorer
from tests.unit.models.networks import loaded, padded_batch, speechlike

NARROW = Cnn14Config(widths=(4, 6, 8, 10, 12, 16))
#: Even and odd numbers of frames at every halving; the shortest there can be.
LENGTHS = (16_000, 4_960, 7_361, 10_079, 12_640, 5_280)


def narrow(config: Cnn14Config = NARROW) -> Cnn14:
    torch.manual_seed(4)
    model = Cnn14(config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # a trained network's norms: nothing is 0 or 1
        for name, tensor in model.state_dict().items():
            if "bn" in name:
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(noise.abs() + 0.5 if name.endswith("var") else tensor + 0.3 * noise)
        nn.init.xavier_uniform_(model.out.weight, generator=generator)  # nor is the output
        model.bn0.running_mean.fill_(-50.0)
        model.bn0.running_var.fill_(200.0)
    return model.eval()


def slaney_hz(mel: np.ndarray) -> np.ndarray:
    """Slaney's Auditory Toolbox: linear to 1 kHz (15 mel), then 27 steps to a factor of 6.4."""
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))


def slaney_mel(hz: float) -> float:
    return hz * 3 / 200 if hz < 1000 else 15 + 27 * np.log(hz / 1000) / np.log(6.4)


def mel_by_scipy(signal: np.ndarray) -> np.ndarray:
    """[frames, 64] in dB: scipy's transform and triangles drawn by interpolation."""
    _, _, spectrum = stft(
        np.pad(signal.astype(np.float64), 256, mode="reflect"),
        fs=16_000, window="hann", nperseg=512, noverlap=352, boundary=None, padded=False,
        scaling="spectrum",
    )  # fmt: skip
    power = np.abs(spectrum * 256) ** 2  # scipy divides by the window's sum
    edges = slaney_hz(np.linspace(slaney_mel(50), slaney_mel(8000), 66))
    bins = np.arange(257) * 16_000 / 512
    bank = np.stack(
        [
            np.interp(bins, [lo, mid, hi], [0, 1, 0], left=0, right=0) * 2 / (hi - lo)
            for lo, mid, hi in zip(edges, edges[1:], edges[2:], strict=False)
        ]
    )
    return 10 * np.log10(np.maximum(bank @ power, 1e-10)).T


def test_log_mel_equals_scipys_clip_by_clip() -> None:
    signals = [speechlike(n, n) for n in LENGTHS]
    padded, lengths = padded_batch(signals)
    frames = MelSettings().frames(lengths).tolist()
    assert frames[:2] == [101, 32]  # a second, and the least for six blocks
    mel = log_mel(padded, lengths, MelSettings()).numpy()
    for signal, rows, count in zip(signals, mel, frames, strict=True):
        expected = mel_by_scipy(signal)
        assert len(expected) == count
        np.testing.assert_allclose(rows[:count], expected, rtol=0, atol=5e-3)


def test_log_mel_of_silence_is_the_floor() -> None:
    mel = log_mel(torch.zeros(1, 8_000), torch.tensor([8_000]), MelSettings())
    assert torch.equal(mel, torch.full_like(mel, -100.0))


class Plain(nn.Module):
    """The published network in plain torch, one clip at a time, on scipy's spectrogram."""

    def __init__(self, model: Cnn14) -> None:
        super().__init__()
        self.state = model.state_dict()

    def norm(self, name: str, hidden: Tensor) -> Tensor:
        s = self.state
        return functional.batch_norm(
            hidden, s[f"{name}.running_mean"], s[f"{name}.running_var"],
            s[f"{name}.weight"], s[f"{name}.bias"], eps=1e-5,
        )  # fmt: skip

    def forward(self, signal: np.ndarray) -> tuple[Tensor, Tensor]:
        hidden = torch.from_numpy(mel_by_scipy(signal)).float()[None, None]
        hidden = self.norm("bn0", hidden.transpose(1, 3)).transpose(1, 3)
        for block in range(1, 7):
            for half in (1, 2):
                hidden = functional.conv2d(
                    hidden, self.state[f"conv_block{block}.conv{half}.weight"], padding=1
                )
                hidden = torch.relu(self.norm(f"conv_block{block}.bn{half}", hidden))
            if block < 6:
                hidden = functional.avg_pool2d(hidden, 2)
        over_mel = hidden.mean(3)
        pooled = over_mel.amax(2) + over_mel.mean(2)
        s = self.state
        fc = torch.relu(functional.linear(pooled, s["fc1.weight"], s["fc1.bias"]))
        return functional.linear(fc, s["out.weight"], s["out.bias"])[0], over_mel.mean(2)[0]


def test_parameter_count_is_the_published_one() -> None:
    with torch.device("meta"):
        model = build_network(BACKBONES["cnn14"].config(), "cnn14")
    assert sum(p.numel() for p in model.parameters()) == 79_679_939
    assert (model.embedding_size, model.min_samples) == (2048, 4_960)


def test_batch_equals_the_plain_network_clip_by_clip() -> None:
    model = narrow()
    plain = Plain(model)
    signals = [speechlike(n, n) for n in LENGTHS]
    with torch.no_grad():
        scores, embeddings = model(*padded_batch(signals))
    for signal, ours, embedding in zip(signals, scores, embeddings, strict=True):
        expected_scores, expected_embedding = plain(signal)
        torch.testing.assert_close(ours, expected_scores, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(embedding, expected_embedding, rtol=1e-4, atol=1e-4)
    assert embeddings.std(0).max() > 0.02


def test_batch_equals_single_to_the_last_digits() -> None:
    model = narrow()
    signals = [speechlike(n, n) for n in LENGTHS]
    with torch.no_grad():
        batch = model(*padded_batch(signals))
        single = [model(*padded_batch([signal])) for signal in signals]
    for position in (0, 1):
        alone = torch.cat([s[position] for s in single])
        torch.testing.assert_close(batch[position], alone, rtol=0, atol=1e-5)


def test_shortest_clip_and_one_less() -> None:
    model = narrow()
    padded, lengths = padded_batch([speechlike(4_960, 0), speechlike(9_000, 1)])
    assert model(padded, lengths)[0].isfinite().all()
    assert MelSettings().frames(torch.tensor(4_959)) == 31


def test_padding_is_in_no_statistic_of_training() -> None:
    """Ragged training batch: the norm of the frames of all clips laid end to end."""
    model = narrow(Cnn14Config(widths=(4,), mel_bands=8, dropout=0.0)).train()
    signals = [speechlike(n, n) for n in (1_600, 8_000, 3_333)]
    batch = padded_batch(signals)
    frames = MelSettings().frames(batch[1])
    mel = log_mel(*batch, model.config.mel())
    mask = torch.arange(mel.shape[1]) < frames[:, None]
    own = mel[mask]
    sums = model.bn0(mel.transpose(1, 2)[..., None], mask)
    expected = (own - own.mean(0)) / (own.var(0, correction=0) + 1e-5).sqrt()
    expected = expected * model.bn0.weight + model.bn0.bias
    torch.testing.assert_close(sums[0][..., 0].transpose(1, 2)[mask], expected, rtol=0, atol=1e-4)
    assert sums[0][..., 0].transpose(1, 2)[~mask].abs().max() == 0


def stock_running(rows: list[Tensor], norm: nn.Module) -> nn.BatchNorm1d:
    """torch's own norm after one step on all rows together, from `norm`'s running statistics."""
    stock = nn.BatchNorm1d(rows[0].shape[1])
    stock.running_mean.copy_(norm.running_mean)
    stock.running_var.copy_(norm.running_var)
    stock(torch.cat(rows))
    return stock


def test_statistics_of_micro_batches_add_up_to_those_of_the_batch() -> None:
    whole = narrow().train()
    signals = [speechlike(n, n) for n in LENGTHS]
    rows = [torch.from_numpy(mel_by_scipy(s)).float() for s in signals]
    stock = stock_running(rows, whole.bn0)
    workers = [narrow().train(), narrow().train()]
    before = workers[0].bn0.running_mean.clone()
    for worker, part in ((0, signals[:1]), (0, signals[1:3]), (1, signals[3:])):
        workers[worker](*padded_batch(part))
    assert torch.equal(workers[0].bn0.running_mean, before)  # not in forward
    total = workers[0].collected_statistics() + workers[1].collected_statistics()
    for worker in workers:
        worker.apply_statistics(total)
        torch.testing.assert_close(worker.bn0.running_mean, stock.running_mean, rtol=0, atol=1e-3)
        torch.testing.assert_close(worker.bn0.running_var, stock.running_var, rtol=1e-4, atol=0)
    for ours, theirs in zip(workers[0].buffers(), workers[1].buffers(), strict=True):
        assert torch.equal(ours, theirs)
    assert workers[0].collected_statistics().abs().max() == 0  # begun anew
    deeper = workers[0].conv_block3.bn1.running_mean
    assert not torch.equal(deeper, narrow().conv_block3.bn1.running_mean)


def test_passes_without_gradient_and_in_evaluation_count_nothing() -> None:
    model = narrow().train()
    batch = padded_batch([speechlike(8_000, 0), speechlike(6_000, 1)])
    with torch.no_grad():
        model(*batch)
    assert model.collected_statistics().abs().max() == 0
    model.eval()(*batch)
    assert model.collected_statistics().abs().max() == 0
    model.train()(*batch)
    assert model.collected_statistics().abs().max() > 0
    assert model.collected_statistics().shape == model.collected_statistics().flatten().shape


def test_no_statistics_change_nothing() -> None:
    model, untouched = narrow(), narrow()
    model.apply_statistics(model.collected_statistics())
    for ours, theirs in zip(model.buffers(), untouched.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_checkpointing_changes_neither_gradients_nor_statistics() -> None:
    found = []
    for on in (False, True):
        model = narrow().train()
        model.gradient_checkpointing(on)
        torch.manual_seed(1)
        model(*padded_batch([speechlike(n, n) for n in LENGTHS]))[0].square().sum().backward()
        found.append([model.collected_statistics(), *(p.grad for p in model.parameters())])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_autocast_trains_with_exact_scores_and_statistics() -> None:
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model = narrow().train()
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            scores, embeddings = model(*padded_batch([speechlike(n, n) for n in LENGTHS]))
        assert {scores.dtype, embeddings.dtype} == {torch.float32}
        scores.square().sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        found.append(model.collected_statistics())
    assert found[1].dtype == torch.float64
    difference = (found[1] - found[0]).abs().max() / found[0].abs().max()
    assert difference < 0.02


def test_dropout_is_the_seeds_and_of_training_only() -> None:
    model = narrow().train()
    batch = padded_batch([speechlike(n, n) for n in LENGTHS])
    draws = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        draws.append(model(*batch)[0].detach())
    assert torch.equal(draws[0], draws[2])
    assert not torch.allclose(draws[0], draws[1], atol=1e-4)
    model.eval()
    assert torch.equal(model(*batch)[0], model(*batch)[0])


def test_saved_and_scored_as_any_other(tmp_path: Path) -> None:
    model = narrow()
    save_emotion_model(model, tmp_path, do_normalize=False)
    found = load_emotion_model(str(tmp_path))
    assert (found.hidden_size, found.min_samples, found.do_normalize) == (16, 4_960, False)
    scorer = Scorer(found, dtype="fp32", device="cpu", threads=1)
    signals = [speechlike(n, n) for n in LENGTHS]
    with torch.no_grad():
        expected, embeddings = model(*padded_batch(signals))
    batch = scorer.score(signals)
    np.testing.assert_allclose(batch.scores, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(batch.embeddings, embeddings, rtol=0, atol=1e-5)


def test_bf16_is_close() -> None:
    exact = Scorer(loaded(narrow(), do_normalize=False), dtype="fp32", device="cpu", threads=1)
    rounded = Scorer(loaded(narrow(), do_normalize=False), dtype="bf16", device="cpu", threads=1)
    signals = [speechlike(n, n) for n in LENGTHS]
    spread = np.abs(exact.score(signals).scores).max()
    difference = np.abs(exact.score(signals).scores - rounded.score(signals).scores).max()
    assert 0 < difference < 0.03 * spread


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("widths", [4, 6, "x"]),
        ("widths", []),
        ("hop_samples", 0),
        ("mel_bands", 1 << 40),
        ("mel_bands", 32),
        ("mel_high_hz", 9_000.0),
        ("mel_low_hz", "deep"),
        ("dropout", 2.0),
        ("window_samples", 3),
    ],
)
def test_impossible_configurations_are_refused(tmp_path: Path, key: str, value: object) -> None:
    save_emotion_model(narrow(), tmp_path, do_normalize=False)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(CheckpointError) as caught:
        load_emotion_model(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_it_has_no_trained_weights_no_layers_and_no_frozen_part() -> None:
    with pytest.raises(ConfigError, match="random:cnn14"):
        load_emotion_model("cnn14")
    with pytest.raises(ConfigError, match="no transformer layers"):
        load_emotion_model("random:cnn14-3")
    with pytest.raises(ConfigError, match="--freeze none"):
        narrow().freeze("cnn")


def test_it_learns() -> None:
    """Loud and soft clips apart: a few steps, running statistics included, then evaluation mode."""
    model = narrow().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    signals = [speechlike(8_000, n) * (0.05 if n % 2 else 1.0) for n in range(8)]
    batch = padded_batch(signals)
    truth = torch.tensor([[0.2 if n % 2 else 0.8] * 3 for n in range(8)])
    torch.manual_seed(0)
    for _ in range(80):
        optimizer.zero_grad()
        functional.mse_loss(model(*batch)[0], truth).backward()
        optimizer.step()
        model.apply_statistics(model.collected_statistics())
    with torch.no_grad():
        scores = model.eval()(*batch)[0]
    assert (scores - truth).abs().max() < 0.2
