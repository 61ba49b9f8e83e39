"""Where tests find real speech; absent on a user's machine, so the tests that need it skip."""

from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
SHARED_DATA = REPO.parent / "shared" / "data"

needs_shared = pytest.mark.skipif(
    not SHARED_DATA.is_dir(), reason="real speech data is not on this machine"
)
