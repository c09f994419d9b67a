"""The lines of a run's log: once each, also after a stop."""

import pytest

from tests import training_helpers as helpers
from yt8m_distill.training import actions


def test_a_resumed_run_repeats_no_line(tmp_path):
    log = actions.MetricsLog(str(tmp_path))
    for step in (2, 4):
        log.line("training", step, {})
    log.line("validation", 4, {"epoch": 1})
    log.line("training", 6, {})
    log.line("validation", 6, {"epoch": 2})
    log.line("validation", 6, {"epoch": 1})
    # Saved at step 6, before the second epoch was validated.
    log.go_back_to(6, epoch=1)
    kept = [(x["step"], x.get("epoch")) for x in helpers.read_lines(log._lines_path)]
    assert kept == [(2, None), (4, None), (4, 1), (6, None), (6, 1)]
    log.go_back_to(3, epoch=0)
    assert [x["step"] for x in helpers.read_lines(log._lines_path)] == [2]


def test_a_folder_that_cannot_be_written_is_seen_before_any_work(tmp_path):
    (tmp_path / "run").write_text("")
    log = actions.MetricsLog(str(tmp_path / "run" / "eval"))
    with pytest.raises(ValueError) as error:
        log.check_writable()
    assert str(error.value) == (
        f"{tmp_path}/run/eval/metrics.jsonl cannot be written: {tmp_path}/run is not "
        "a directory."
    )
