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
from raysers.models.whisper import MelSettings, log_mel
from tests.unit.models.networks import padded_batch, speechlike

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
