"""What the attempts ledger concludes from the marks that dead processes left."""

from __future__ import annotations

from raysers.io import marks


def test_a_clip_is_given_up_after_two_deaths_alone_and_its_neighbours_never(tmp_path):
    def attempt(run_id: str = "run") -> marks.Attempt:
        return marks.begin(str(tmp_path), "part-000007.parquet", run_id)

    attempt()  # dies in the middle of something: nobody in particular is to blame
    careful = attempt()
    assert careful.suspicious
    assert not careful.alone
    careful.enter(["one", "two"])
    careful.enter(["three", "poison"])  # dies in this micro-batch
    alone = attempt()
    assert alone.alone == ["poison", "three"]
    alone.enter(["three"])
    alone.enter(["poison"])  # dies alone, once
    again = attempt()
    assert not again.given_up("poison")
    again.enter(["poison"])  # dies alone, twice
    last = attempt()
    assert last.given_up("poison")
    assert not any(last.given_up(name) for name in ("one", "two", "three"))


def test_the_end_of_a_driver_counts_against_no_clip(tmp_path):
    for run_id in ("first", "second", "third", "fourth"):
        attempt = marks.begin(str(tmp_path), "part-000000.parquet", run_id)
        assert not attempt.given_up("long")
        attempt.enter(["long"])
    assert marks.begin(str(tmp_path), "part-000000.parquet", "fifth").alone == ["long"]


def test_an_error_without_a_death_leaves_no_suspicion_and_takes_none_away(tmp_path):
    def attempt() -> marks.Attempt:
        return marks.begin(str(tmp_path), "part-000003.parquet", "run")

    attempt().abandon()
    assert not marks.has_attempts(str(tmp_path))
    attempt()  # dies
    second = attempt()
    assert second.suspicious
    second.abandon()
    assert attempt().deaths == 2


def test_nothing_is_left_of_the_ledger_when_all_is_done(tmp_path):
    for part in ("part-000000.parquet", "part-000001.parquet"):
        marks.begin(str(tmp_path), part, "run")
    # a process that died between making the file of its mark and giving it its name
    (tmp_path / "_attempts" / ".part-0123456789abcdef").write_bytes(b'{"run_id"')
    marks.tidy(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    marks.tidy(str(tmp_path))
