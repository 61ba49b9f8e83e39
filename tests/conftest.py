"""Environment of every test, and the one Ray session that most cluster tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.places import REPO

settings.register_profile("tests", max_examples=25, deadline=None)
settings.load_profile("tests")

# a shell lets its background jobs ignore it, and so everything that they start
signal.signal(signal.SIGINT, signal.default_int_handler)

# before anything imports ray: no tokens on disk, no telemetry, no bars
os.environ.update(
    RAY_AUTH_MODE="disabled",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_DATA_DISABLE_PROGRESS_BARS="1",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    RAY_worker_niceness="0",  # or Ray's workers wait for every other process of the tests
    HF_HUB_OFFLINE="1",
    OMP_WAIT_POLICY="PASSIVE",  # threads that spin while they wait take the cores of other workers
    XDG_CACHE_HOME=str(REPO / ".pytest_cache" / "xdg"),  # exported graphs, not among the user's
    OMP_NUM_THREADS="1",  # groups of tests run side by side, one for each core
)
os.environ.pop("RAY_ADDRESS", None)

pytest_plugins = ["tests.s3"]


@pytest.fixture(scope="session")
def workers_environment() -> dict[str, str]:
    """What the environment of `ray_session`'s workers has besides."""
    return {}


@pytest.fixture(scope="session")
def ray_session(workers_environment: dict[str, str]) -> Iterator[None]:
    """A local cluster of 4 logical CPUs, whatever the machine has."""
    import ray

    from raysers.engine.cluster import configure_ray_data

    with pytest.MonkeyPatch.context() as here:
        for name, value in workers_environment.items():
            here.setenv(name, value)
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=200 * 2**20,
            log_to_driver=False,
            logging_level="ERROR",
        )
    configure_ray_data()
    yield
    ray.shutdown()
