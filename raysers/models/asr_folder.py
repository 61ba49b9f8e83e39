"""The folder of a recogniser: fetched from the hub when need be, and what tells its versions apart.

Only data is fetched and read: JSON, vocabularies, tensors. Code that lies beside them never is.
"""

from __future__ import annotations

from pathlib import Path

from raysers.errors import ConfigError
from raysers.models import checkpoint
from raysers.models.backbones import ModelName
from raysers.models.checkpoint import CONFIG_FILE, PREPROCESSOR_FILE, fetch_snapshot

#: What says how numbers become words. Missing ones are left out.
TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "normalizer.json",
    "generation_config.json",
)


def fetch_asr_folder(name: ModelName) -> tuple[Path, str]:
    """Local folder of a recogniser, and its revision: the hub's commit, or a content hash.

    Raises:
        ConfigError: it cannot be fetched; an object store's folder has to be fetched before.
        CheckpointError: the folder has no weights.
    """
    if name.is_object_store:
        raise ConfigError(f"{name.text}: fetch the folder first and load the local copy")
    if name.hub_id is not None:
        snapshot = fetch_snapshot(
            name.hub_id, name.revision, None, also=TOKENIZER_FILES, flag="--asr"
        )
        return snapshot, snapshot.name
    folder = Path(str(name.path))
    checkpoint.check_folder(folder)
    wanted = (CONFIG_FILE, PREPROCESSOR_FILE, *TOKENIZER_FILES)
    files = [folder / file for file in wanted if (folder / file).is_file()]
    return folder, checkpoint.content_hash([*files, *checkpoint.weight_paths(folder)])
