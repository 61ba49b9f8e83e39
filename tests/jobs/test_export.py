"""A model as an ONNX file: read with onnxruntime and yaml alone, scores as annotate's."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import soundfile as sf
import yaml

from raysers.commands.models import export as main
from tests.jobs.conftest import record_of
from tests.places import needs_shared
from tests.published import score_files

pytestmark = needs_shared


@pytest.mark.parametrize(("dtype", "atol"), [("fp32", 1e-5), ("int8", 0.02)])
def test_an_exported_model_scores_raw_audio(checkpoint, emodb_files, tmp_path, dtype, atol) -> None:
    args = ["--model", checkpoint[0], "--output", str(tmp_path / "out"), "--dtype", dtype]
    assert main(args) == 0
    first, *rest = (tmp_path / "out" / "model.yaml").read_text().splitlines()
    assert first.startswith("$audonnx.core.model.Model==")  # what audonnx.load looks for
    about = yaml.safe_load("\n".join(rest))
    assert about["labels"] == {"logits": ["arousal", "dominance", "valence"]}
    session = onnxruntime.InferenceSession(tmp_path / "out" / about["path"])
    (given,) = session.get_inputs()
    assert (given.name, given.shape[0], given.type) == ("signal", 1, "tensor(float)")
    known = session.get_modelmeta().custom_metadata_map
    assert (known["dtype"], known["sampling_rate"]) == (dtype, "16000")
    assert known["revision"] == record_of(tmp_path / "out")["settings"]["model_revision"]
    expected = score_files(checkpoint[1], emodb_files[:2])
    for file in emodb_files[:2]:
        signal = sf.read(file, dtype="float32")[0]
        logits, hidden = session.run(["logits", "hidden_states"], {"signal": signal[None]})
        found = np.concatenate((logits[0], hidden[0]))
        np.testing.assert_allclose(found, expected[file], rtol=0, atol=atol)


def test_another_model_into_the_same_folder_is_refused(checkpoint, tmp_path, capsys) -> None:
    args = ["--model", checkpoint[0], "--output", str(tmp_path / "out")]
    assert main(args) == 0
    assert main([*args, "--dtype", "int8"]) == 2
    assert "dtype was 'fp32', now 'int8'" in capsys.readouterr().err
    assert main(args) == 0
