"""What the attempts ledger concludes from the marks that dead processes left."""

from __future__ import annotations

from raysers.distributed import ledger


def test_a_shard_is_suspicious_only_after_a_death(tmp_path):
    first = ledger.begin(str(tmp_path), "part-000000.parquet")
    assert not first.suspicious
    first.close()
    assert not ledger.begin(str(tmp_path), "part-000000.parquet").suspicious
    # the second mark was never closed: its process died
    assert ledger.begin(str(tmp_path), "part-000000.parquet").suspicious
    assert not ledger.begin(str(tmp_path), "part-000001.parquet").suspicious


def test_a_clip_is_given_up_after_two_deaths_alone_and_its_neighbours_never(tmp_path):
    def attempt() -> ledger.Attempt:
        return ledger.begin(str(tmp_path), "part-000007.parquet")

    attempt()  # dies in the middle of something: nobody in particular is to blame
    careful = attempt()
    assert careful.suspicious
    assert not careful.apart
    careful.enter(["one", "two"])
    careful.enter(["three", "poison"])  # dies in this micro-batch
    apart = attempt()
    assert apart.apart == ["poison", "three"]
    apart.enter(["three"])
    apart.enter(["poison"])  # dies alone, once
    again = attempt()
    assert not again.given_up("poison")
    again.enter(["poison"])  # dies alone, twice
    last = attempt()
    assert last.given_up("poison")
    assert not any(last.given_up(name) for name in ("one", "two", "three"))
