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


def test_a_clip_is_given_up_after_it_alone_was_worked_on_at_two_deaths(tmp_path):
    def attempt() -> ledger.Attempt:
        return ledger.begin(str(tmp_path), "part-000007.parquet")

    attempt()  # dies in a batch: nobody in particular is to blame
    one = attempt()
    one.enter("good")
    one.enter("poison")  # dies alone, once
    two = attempt()
    assert not two.given_up("poison")
    two.enter("good")
    two.enter("poison")  # dies alone, twice
    three = attempt()
    assert three.given_up("poison")
    assert not three.given_up("good")
