"""Progress is a bar on a terminal and whole lines in a log, each with the time left."""

from __future__ import annotations

import pytest

from agents import progress
from agents.progress import shown, silent


def test_a_log_has_whole_lines_that_begin_and_end(capsys: pytest.CaptureFixture):
    with shown("fitting", 3) as bar:
        for _ in range(3):
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "fitting: begins" and lines[-1].startswith("fitting: 100 %, 00:0") and len(lines) == 2


def test_a_line_from_time_to_time_says_what_is_left(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)
    with shown("fitting", 4) as bar:
        for _ in range(4):
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "fitting: begins",
        "fitting: 25 %",
        "fitting: 50 %",
        "fitting: 75 %",
        "fitting: 100 %",
    ]
    assert all(line.endswith(" left") for line in lines[1:-1])


def test_work_that_stops_early_ends_with_what_was_done(capsys: pytest.CaptureFixture):
    with pytest.raises(KeyboardInterrupt), shown("fitting", 4) as bar:
        bar.update(2)
        raise KeyboardInterrupt
    assert "\r" not in capsys.readouterr().err


def test_by_default_nothing_is_shown(capsys: pytest.CaptureFixture):
    with silent("fitting", 4) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""
