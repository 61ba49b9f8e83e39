"""Recipes fill in what the command leaves open; the shipped ones are what they are named after."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from raysers.cli import parse
from raysers.commands.training import train as main
from raysers.errors import ConfigError
from raysers.models.backbones import ASSETS
from raysers.training.config import SHOWN, TrainingFlags, deciding, with_recipe

RECIPES = ASSETS / "recipes"


def flags_of(*args: str) -> TrainingFlags:
    return parse(
        TrainingFlags,
        [*args, "--data", "d", "-o", "o"],
        description="",
        recipes=RECIPES,
        shown=SHOWN,
    )


@pytest.mark.parametrize("name", [path.stem for path in RECIPES.glob("*.yaml")])
def test_a_shipped_recipe_is_a_valid_configuration(name: str) -> None:
    flags = flags_of("--recipe", name)
    flags.check()
    assert type(flags) is TrainingFlags
    assert flags == flags_of("--recipe", str(RECIPES / f"{name}.yaml"))


@pytest.mark.parametrize(
    ("name", "kind", "command"),
    [("paper", "transformer", ("--freeze", "cnn")), ("cnn14", "cnn14", ("--backbone", "cnn14"))],
)
def test_the_papers_recipes_are_what_a_bare_command_does(
    name: str, kind: str, command: tuple[str, ...]
) -> None:
    recipe, bare = (with_recipe(flags_of(*a), kind) for a in (("--recipe", name), command))
    assert deciding(recipe) == deciding(bare)


def test_the_command_line_wins_over_a_config_file_and_that_over_a_recipe(tmp_path: Path) -> None:
    recipe, config = tmp_path / "mine.yaml", tmp_path / "config.yaml"
    recipe.write_text("lr: 0.5\nepochs: 7\nema: 0.9\n")
    config.write_text("lr: 0.25\nepochs: 8\n")
    flags = flags_of("--recipe", str(recipe), "--config", str(config), "--lr", "0.125")
    assert (flags.ema, flags.epochs, flags.lr) == (0.9, 8, 0.125)
    recipe.write_text("learning-rate: 1\n")
    for name, words in (
        (str(recipe), "unknown key 'learning-rate'"),
        ("papr", "--recipe papr: give one of cnn14, from-scratch, "),
        ("../paper.yaml", r"--recipe \.\./paper.yaml"),
    ):
        with pytest.raises(ConfigError, match=words):
            flags_of("--recipe", name)


def test_help_shows_the_flags_that_most_need_and_takes_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = {}
    for flag in ("--help", "--help-all"):
        assert main([flag]) == 0
        flags = re.findall(r"^  (?:-., )?--([a-z-]+)", capsys.readouterr().out, re.MULTILINE)
        shown[flag] = {name.replace("-", "_") for name in flags}
    assert shown["--help"] == set(SHOWN)
    assert shown["--help-all"] == {
        *TrainingFlags.__dataclass_fields__,
        *("config", "recipe", "requester_pays", "help", "help_all"),
    }
    assert flags_of("--ema", "0.5", "--speed", "0.9", "1.1").speed == (0.9, 1.1)


def test_words_belong_to_the_flag_before_them_and_to_the_data_otherwise() -> None:
    pairs = ["--noise-db", "10", "30", "--crop-s", "1", "2", "--target-weights", "1", "0", "1"]
    for data in (["--data", "d"], []):
        words = [] if data else ["d"]
        args = [*words, *pairs, *data, "-o", "o"]
        flags = parse(TrainingFlags, args, description="", positional="data")
        assert (flags.data, flags.noise_db, flags.crop_s) == (("d",), (10.0, 30.0), (1.0, 2.0))
