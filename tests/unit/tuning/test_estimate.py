"""What a sweep says of itself before it starts."""

from __future__ import annotations

import pytest

from raysers.training.dataset import Indexed
from raysers.tuning.estimate import print_plan
from raysers.tuning.flags import TuningFlags, training_flags
from raysers.tuning.points import Searched, Space
from raysers.tuning.resources import choose_seats
from raysers.tuning.search import RandomSearch
from raysers.tuning.tuner import Start, Sweep


def sweep(**changes) -> Sweep:
    flags = TuningFlags(
        space="space.yaml", output="/nowhere", data=("/data",), backbone="tiny", **changes
    )
    space = Space(flags=(Searched(name="lr", written=[1, 2], values=(1.0, 2.0), when={}),))
    return Sweep(
        flags=flags,
        base=training_flags(flags, "/nowhere"),
        space=space,
        search=RandomSearch(space=space, seed=0),
        trials=4,
        starts={"tiny": Start(backbone="tiny", kind="transformer")},
        indexed=Indexed(manifest="/nowhere/manifest", notes=()),
        settings={},
        earlier=None,
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"epochs": 5}, "ASHA, 3 to 1"),
        ({"epochs": 1}, "no early stopping (too few epochs for ASHA)"),
        ({"epochs": 5, "asha_grace": 5}, "no early stopping (too few epochs for ASHA)"),
        ({"epochs": 5, "asha": "off"}, "no early stopping"),
    ],
)
def test_the_plan_tells_how_trials_are_really_stopped(changes, told, capsys):
    print_plan(sweep(**changes), choose_seats(4, 1, 0, [{"CPU": 4.0}]))
    (line,) = [one for one in capsys.readouterr().out.splitlines() if "stopping" in one]
    assert line.split("stopping", 1)[1].strip() == told
