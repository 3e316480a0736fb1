"""``twin stats``: what is drawn."""

from __future__ import annotations

from twin.cli.commands import stats

MONTHS = {"2023-11": 3, "2023-12": 0, "2024-01": 9, "2024-02": 5}


def test_wrong_dates_take_no_room_in_the_plot_and_are_counted() -> None:
    wrong = {"0001-01": 1, "1601-01": 0, "1970-01": 4, "2027-01": 2, "9999-12": 1}
    assert stats._by_month(MONTHS | wrong, 2026) == [
        *stats._by_month(MONTHS, 2026), "Not drawn, dated before 1971 or after 2026: 8",
    ]  # fmt: skip


def test_months_of_the_bounds_are_drawn() -> None:
    lines = stats._by_month({"1971-01": 1, "2026-12": 2}, 2026)
    assert "1971-01" in lines[-1]
    assert not [line for line in lines if line.startswith("Not drawn")]


def test_nothing_but_wrong_dates() -> None:
    assert stats._by_month({"0001-01": 7}, 2026) == [
        "Own messages a month", "Not drawn, dated before 1971 or after 2026: 7",
    ]  # fmt: skip
