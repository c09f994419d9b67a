"""The loop alone: which steps it does, and when it calls its actions."""

import types

import pytest
import tensorflow as tf

from yt8m_distill.training import actions, loop

pytestmark = pytest.mark.once


def make_loop(
    acts, epochs=2, batches=5, total_steps=10, steps_per_loop=2, at=(0, 0, 0)
):
    """A loop whose steps only count; `at`: step, epoch and batch at the start."""
    step, epoch, batch = (tf.Variable(n, dtype=tf.int64) for n in at)
    counters = types.SimpleNamespace(step=step, epoch=epoch, batch=batch)

    def run_steps(iterator, count):
        seen = [next(iterator) for _ in range(int(count))]
        step.assign_add(len(seen))
        mean = sum(seen) / len(seen)
        return tf.constant([mean]), tf.constant(-1), tf.constant(float(len(seen)))

    return loop.Loop(
        "phase",
        run_steps,
        ["loss"],
        counters,
        lambda epoch, skip: [10.0 * epoch + n for n in range(skip, batches)],
        acts,
        epochs=epochs,
        batches=batches,
        total_steps=total_steps,
        steps_per_loop=steps_per_loop,
    )


class Recorder(loop.Action):
    """Notes every call with the counters that it saw."""

    def __init__(self, every: int | None = None):
        self.calls = []
        self.every = every

    def steps_until_next(self, step):
        return self.every and self.every - step % self.every

    def _note(self, name, loop):
        self.calls.append((name, loop.step, loop.epoch, loop.batch))

    def start(self, loop):
        self._note("start", loop)

    def after_steps(self, loop, chunk):
        self._note(chunk.count, loop)

    def after_epoch(self, loop):
        self._note("after_epoch", loop)

    def next_epoch(self, loop):
        self._note("next_epoch", loop)

    def end(self, loop):
        self._note("end", loop)


def test_actions_see_every_step_and_epoch():
    recorder = Recorder(every=4)
    make_loop([recorder], epochs=1, steps_per_loop=3).run()
    assert recorder.calls == [
        ("start", 0, 0, 0),
        (3, 3, 0, 3),
        (1, 4, 0, 4),  # Asked for a call after 4 steps.
        (1, 5, 0, 5),
        ("after_epoch", 5, 0, 5),
        ("next_epoch", 5, 1, 0),
        ("end", 5, 1, 0),
    ]


@pytest.mark.parametrize("at", [(3, 0, 3), (5, 0, 5), (7, 1, 2), (10, 1, 5)])
def test_it_continues_from_any_counters(at):
    recorder = Recorder()
    make_loop([recorder], at=at).run()
    assert recorder.calls[0] == ("start", *at)
    assert recorder.calls[-1] == ("end", 10, 2, 0)
    counts = [name for name, *_ in recorder.calls if isinstance(name, int)]
    assert sum(counts) == 10 - at[0]
    # The epoch that was left is validated in any case.
    assert [n for n, *_ in recorder.calls].count("after_epoch") == 2 - at[1]


def test_an_action_more_in_the_list_stops_or_evaluates():
    """What a user adds: a second set evaluated, an export, a rule to stop."""

    class StopAfter(loop.Action):
        def next_epoch(self, loop):
            assert loop.results["second"] == {"student": {"gap": loop.epoch / 10}}
            if loop.results["second"]["student"]["gap"] >= 0.3:
                loop.stop()

    class Log:
        def __getattr__(self, name):
            return lambda *arguments, **more: None

    zeros = dict.fromkeys(["hit_at_one", "perr", "map", "map_all_classes", "loss"], 0)
    role = types.SimpleNamespace(name="student")
    second = actions.Validate(
        [role], lambda role, watched: {"gap": 0.0, **zeros}, Log(), name="second"
    )

    class Second(loop.Action):
        def after_epoch(self, loop):
            second.after_epoch(loop)
            assert loop.results["second"]["student"].keys() > zeros.keys()
            loop.results["second"] = {"student": {"gap": (loop.epoch + 1) / 10}}

    recorder = Recorder()
    made = make_loop([Second(), StopAfter(), recorder], epochs=9, total_steps=45)
    made.run()
    assert made.epoch == 3 and recorder.calls[-1] == ("end", 15, 3, 0)


def test_the_time_left_is_that_of_the_steps_left(monkeypatch):
    seen, now = [], [0.0]

    class Clock(loop.Action):
        def after_steps(self, loop, chunk):
            seen.append(loop.seconds_left)
            now[0] += 2.0 * chunk.count

    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    make_loop([Clock()], epochs=1, batches=6, total_steps=6).run()
    # Two seconds per step, two steps left; nothing is known at the first look.
    assert seen == [None, 2.0 * 2, 0]
