from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from raysers.errors import ConfigError
from raysers.models.backbones import BACKBONES, parse_model_name
from raysers.models.checkpoint import fetch_snapshot, identify
from raysers.models.emotion import FAMILIES
from raysers.models.loading import build_network
from tests.places import SHARED_DATA, needs_shared
from tests.unit.models.networks import PAPER

REFERENCE = SHARED_DATA.parent / "reference"


def exported(alias: str) -> dict[str, Any]:
    return json.loads((REFERENCE / "paper_models_hf_configs.json").read_text())[alias]["config"]


def network_of(config: dict[str, Any]) -> Any:
    family = FAMILIES[config["model_type"]]
    known = {k: v for k, v in config.items() if k not in ("vocab_size", "torch_dtype")}
    with torch.device("meta"):
        return getattr(transformers, f"{family.classes}Model")(
            getattr(transformers, f"{family.classes}Config")(**known)
        )


@needs_shared
@pytest.mark.parametrize("alias", PAPER)
def test_alias_agrees_with_the_authors_export(alias: str) -> None:
    ours, theirs = BACKBONES[alias].config(), exported(alias)
    # HuBERT's flag is the only one some exports leave out
    assert {k: theirs.get(k, v) for k, v in ours.items()} == ours


@needs_shared
@pytest.mark.parametrize("alias", PAPER)
def test_alias_builds_the_authors_network(alias: str) -> None:
    with torch.device("meta"):
        ours = build_network(BACKBONES[alias].config(), alias).backbone
    theirs = network_of(exported(alias))
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    # module by module: activations, kernels, strides, groups, dropouts and eps show up in the repr
    assert repr(ours).replace("Masked", "") == repr(theirs)


@needs_shared
def test_published_model_is_the_msp_dim_alias() -> None:
    theirs = json.loads((REFERENCE / "published_model" / "config.json").read_text())
    ours = BACKBONES["msp-dim"].config()
    assert {k: theirs.get(k) for k in ours} == ours


@needs_shared
@pytest.mark.parametrize("name", [*PAPER, "w2v2-L-robust-12"])
def test_parameter_counts(name: str) -> None:
    counts = json.loads((REFERENCE / "param_counts.json").read_text())
    expected = counts.get(name) or counts["w2v2-L*"]
    parsed = parse_model_name(name)
    assert parsed.alias is not None
    with torch.device("meta"):
        model = build_network(BACKBONES[parsed.alias].config(parsed.layers), name)

    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(model) == expected["total_with_head"]
    assert count(model.backbone) == expected["backbone"]
    assert count(model.classifier) == expected["head"]
    assert count(model.backbone.feature_extractor) == expected["feature_extractor"]
    assert count(model.backbone.encoder.layers[0]) == expected["per_layer"]


def test_reads_every_part_of_a_name() -> None:
    name = parse_model_name("random:w2v2-L-robust-12")
    assert (name.alias, name.layers, name.random, name.revision) == (
        "w2v2-L-robust",
        12,
        True,
        None,
    )
    name = parse_model_name("msp-dim@v1.0")
    assert (name.alias, name.revision, name.random) == ("msp-dim", "v1.0", False)
    name = parse_model_name("facebook/wav2vec2-base-960h@main")
    assert (name.hub_id, name.layers, name.revision) == (
        "facebook/wav2vec2-base-960h",
        None,
        "main",
    )


@pytest.mark.parametrize("text", ["./a/b", "../a@b-3", "/models/a-12@x", "s3://bucket/a@b/m-12"])
def test_places_are_taken_as_they_are(text: str) -> None:
    name = parse_model_name(text)
    assert name.path in (text, text.removeprefix("./"))
    assert (name.alias, name.hub_id, name.layers, name.revision) == (None, None, None, None)
    assert name.is_object_store == text.startswith("s3:")


def test_existing_folder_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "best").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    name = parse_model_name("runs/best")
    assert (name.path, name.hub_id) == ("runs/best", None)
    name = parse_model_name("other/best")
    assert (name.path, name.hub_id) == (None, "other/best")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("w2v2b", "did you mean 'w2v2-b'"),
        ("hubert-large", "aliases are"),
        ("w2v2-b-13", "12 layers"),
        ("w2v2-b-0", "12 layers"),
        ("random:tiny@main", "no revision"),
        ("msp-dim@", "nothing follows"),
        ("", "unknown model"),
        ("random:", "unknown model"),
        ("random:owner/name", "unknown model"),
        ("a/b/c", "unknown model"),
        ("owner/na me", "unknown model"),
    ],
)
def test_bad_names_say_what_to_do(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse_model_name(text)
    assert "\n" not in str(caught.value)


def test_the_flag_that_was_given_is_the_one_that_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"^--backbone 'w2v2-b@'"):
        parse_model_name("w2v2-b@", "--backbone")
    with pytest.raises(ConfigError, match=r"^--text-model owner/none is not in the local cache"):
        fetch_snapshot("owner/none", None, flag="--text-model")


@pytest.mark.parametrize("alias", BACKBONES)
def test_every_alias_is_known_without_its_network(alias: str) -> None:
    """What a job has to know before workers start agrees with the network that they build."""
    found = identify(parse_model_name(f"random:{alias}"))
    with torch.device("meta"):
        network = build_network(BACKBONES[alias].config(), alias)
    assert found.embedding_size == network.embedding_size
    assert found.revision.startswith("random-0-")


def test_checking_a_model_loads_no_network_library() -> None:
    code = (
        "import sys\n"
        "from raysers.models.backbones import parse_model_name\n"
        "from raysers.models.checkpoint import identify\n"
        "identify(parse_model_name('random:tiny'))\n"
        "heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
