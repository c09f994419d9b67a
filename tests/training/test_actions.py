"""Each action alone: what it makes of the steps and of the results of an epoch."""

import json
import types

import pytest

from tests import training_helpers as helpers
from yt8m_distill.models import builder
from yt8m_distill.training import actions, checkpoints, loop, modes

pytestmark = pytest.mark.once


def place(step=0, epoch=0, batch=0, **more):
    """What an action sees of a loop of 5 epochs of 10 batches."""
    stops = []
    return types.SimpleNamespace(
        name="phase",
        step=step,
        epoch=epoch,
        batch=batch,
        epochs=5,
        batches=10,
        total_steps=50,
        seconds_left=90.0,
        stop=lambda: stops.append(True),
        stops=stops,
        **{"results": {}, **more},
    )


def chunk(loss: float, count=1, taken=None, bad_step=-1, seconds=1.0) -> loop.Chunk:
    names = ["label_loss", "reg_loss", "loss", "Hit@1", "PERR", "GAP"]
    means = {f"net/{name}": loss for name in names}
    return loop.Chunk(
        count, count if taken is None else taken, means, bad_step, seconds
    )


def test_means_cover_the_steps_that_were_not_skipped(tmp_path):
    log = actions.MetricsLog(str(tmp_path))
    log.check_writable()
    state = types.SimpleNamespace(unlogged=[])
    action = actions.LogTraining(state, log, 4, 8, rate=lambda: 0.5)
    assert action.steps_until_next(6) == 2
    action.after_steps(place(2), chunk(1.0, count=2, taken=2))
    state.unlogged = json.loads(json.dumps(state.unlogged))  # A stop, and on again.
    action.after_steps(place(4), chunk(4.0, count=2, taken=1))
    # At the end of an epoch too; none of its steps was taken.
    action.after_steps(place(5, batch=10), chunk(9.0, taken=0))
    (line,) = helpers.read_lines(log._lines_path)
    assert line["step"] == 4 and line["learning_rate"] == 0.5
    assert line["net/loss"] == pytest.approx((2 * 1 + 1 * 4) / 3, rel=1e-5)
    assert line["global_step/Examples/Second"] == 4 * 8 / 2


def test_the_speed_counts_no_padding(tmp_path):
    log = actions.MetricsLog(str(tmp_path))
    log.check_writable()
    state = types.SimpleNamespace(unlogged=[])
    action = actions.LogTraining(state, log, 2, 8, lambda: 0.5, padding=5)
    for step, count in ((2, 2), (3, 1)):
        action.after_steps(place(step, batch=7 + step), chunk(1.0, count=count))
    speeds = [
        line["global_step/Examples/Second"]
        for line in helpers.read_lines(log._lines_path)
    ]
    assert speeds == [2 * 8, 8 - 5]


def test_a_line_has_the_gap_of_each_k_next_to_their_mean():
    numbers = {"gap": 0.5, "gap_k2": 0.25, "map_k2": 0.125, "gap_k6": 0.75}
    parts = actions.evaluation_line("epoch 1", numbers).split(" | ")
    assert parts == ["epoch 1", "GAP: 0.500", "GAP_K2: 0.250", "GAP_K6: 0.750"]


@pytest.fixture
def kept(tmp_path):
    """The objects and the state of a student, and the action that keeps its best."""
    run = helpers.make_run(tmp_path, "data", mode="baseline")
    (phase,) = modes.phases(run)
    networks = builder.build_networks(phase.roles, run.data)
    objects = {"student": networks.student}
    state = checkpoints.State(str(tmp_path), objects, 1)
    folder = str(tmp_path / "best")
    keep = actions.KeepBest(phase.trained, networks, lambda role: folder, state)
    return objects, state, keep


def test_what_follows_a_save_at_the_last_step_is_saved_too(kept, tmp_path):
    """--max_steps ends the phase within an epoch, so no counter moves after it."""
    objects, state, keep = kept
    save = actions.Save(state, minutes=0)
    state.step.assign(7)
    results = {"validation": {"student": {"gap": 0.5}}}
    here = place(7, 0, 7, results=results)
    save.after_steps(here, chunk(1.0))
    keep.after_epoch(here)
    save.next_epoch(here)
    keep.next_epoch(here)
    resumed = checkpoints.State(str(tmp_path), objects, 1)
    resumed.restore()
    best = resumed.read_notes()["student"]["best"]
    assert best == {"epoch": 1, "step": 7, "gap": 0.5}


def test_an_epoch_whose_end_is_repeated_counts_once(kept):
    """As after a stop in an action that follows."""
    _, state, keep = kept
    for epoch, gap in enumerate([0.3, 0.5]):
        results = {"validation": {"student": {"gap": gap}}}
        for _ in range(2):
            keep.after_epoch(place(10 * (epoch + 1), epoch, 10, results=results))
    epochs = state.read_notes()["student"]["epochs"]
    assert [entry["gap"] for entry in epochs] == [0.3, 0.5]


def test_patience_begins_anew_after_the_loss_of_the_best_network(kept, tmp_path):
    """Damaged after epoch 1 of 5, at a later step: the next epoch makes another."""
    _, state, keep = kept
    patience = actions.StopEarly(state, epochs=2)
    results = {"validation": {"student": {"gap": 0.5}}}
    keep.after_epoch(place(10, 0, 10, results=results))
    keep.next_epoch(place(10, 1))
    (tmp_path / "best" / "best.json").write_text("{")
    resumed = place(30, 3)
    keep.start(resumed)
    patience.start(resumed)
    assert not resumed.stops


@pytest.mark.parametrize("best", ["kept", "of a later epoch", "lost"])
def test_all_workers_agree_on_the_best_network_of_a_resumed_run(kept, tmp_path, best):
    """Else the chief goes on alone where the others stop early."""
    objects, state, keep = kept
    for epoch in (1, 2):
        noted = state.read_notes()
        results = {"validation": {"student": {"gap": epoch}}}
        keep.after_epoch(place(10 * epoch, epoch - 1, 10, results=results))
        keep.next_epoch(place(10 * epoch, epoch))
    if best != "of a later epoch":  # Where the newest state is damaged.
        noted = state.read_notes()
    if best == "lost":
        (tmp_path / "best" / "best.json").write_text("{")
    other_state = checkpoints.State(str(tmp_path), objects, 1, writes=False)
    other = actions.KeepBest(keep.roles, keep.networks, keep.folder_of, other_state)
    said = []
    keep.largest = lambda number: said.append(number) or number
    other.largest = lambda number: max(number, *said)
    for one in (keep, other):
        one.state.write_notes(noted)
        one.start(place(30, 3))
    assert said == [best == "lost"]
    assert other_state.read_notes() == state.read_notes()
    known = state.read_notes()["student"]["best"]
    assert known is None if best == "lost" else known["epoch"] == 2
    if best == "lost":  # The end of a run cannot be repeated, by anyone.
        for one in (keep, other):
            one.state.write_notes(noted)
            with pytest.raises(ValueError, match="best is damaged"):
                one.start(place(50, 5))


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


def test_a_line_that_was_cut_short_does_not_take_the_next_with_it(tmp_path):
    log = actions.MetricsLog(str(tmp_path))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    log.check_writable()
    log.line("evaluation", 2, {})
    assert [x["step"] for x in helpers.read_lines(log._lines_path)] == [1, 2]


def test_a_folder_that_cannot_be_written_is_seen_before_any_work(tmp_path):
    (tmp_path / "run").write_text("")
    log = actions.MetricsLog(str(tmp_path / "run" / "eval"))
    with pytest.raises(ValueError) as error:
        log.check_writable()
    assert str(error.value) == (
        f"{tmp_path}/run/eval/metrics.jsonl cannot be written: {tmp_path}/run is not "
        "a directory."
    )
