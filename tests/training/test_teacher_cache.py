"""A cached teacher gives the same training as a live one, or an error."""

import os
import pathlib
import re
import shutil
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import training_helpers as helpers
from yt8m_distill import structures
from yt8m_distill.models import teacher_student
from yt8m_distill.training import manifest, modes, phase_runner, teacher_cache

once = pytest.mark.once

KEY = {"top_k": 0, "dtype_policy": "float32", "teacher": "t"}


def student_run(serial_run, folder, **changes):
    """A student of the finished run's teacher, with a cache, and not validated."""
    return helpers.change(
        serial_run,
        **{
            "validation_data_pattern": "",
            "train_dir": str(folder / "run"),
            "teacher_checkpoint": serial_run.training.train_dir,
            "teacher_cache": str(folder / "cache"),
            **changes,
        },
    )


def cache_entry(run) -> dict:
    path = os.path.join(run.training.train_dir, manifest.MANIFEST)
    return manifest.read_json(path)["phases"]["student"]["teacher_cache"]


def fill(run, monkeypatch) -> dict:
    """Fills the cache of a run, which ends before its first step; as `cache_entry`."""
    helpers.initialized(run, "student", monkeypatch)
    return cache_entry(run)


def weights(run) -> dict:
    prefix = helpers.latest(run.training.train_dir, "student")
    return helpers.of(helpers.read_variables(prefix), "student/")


def largest_change(some: dict, others: dict) -> float:
    return max(np.abs(some[name] - others[name]).max() for name in some)


@pytest.fixture(scope="module")
def cached_run(serial_run, tmp_path_factory):
    """A student whose teacher is that of `serial_run`, cached."""
    run = student_run(serial_run, tmp_path_factory.mktemp("cached"))
    helpers.train(run)
    return run


@pytest.fixture
def copied_run(cached_run, tmp_path):
    """`cached_run` with a cache of its own, and a folder in which nothing began."""
    cache = shutil.copytree(cached_run.distillation.teacher_cache, tmp_path / "cache")
    train_dir = str(tmp_path / "run")
    return helpers.change(cached_run, teacher_cache=str(cache), train_dir=train_dir)


def test_a_cached_teacher_gives_the_same_training_as_a_live_one(
    serial_run, cached_run, tmp_path
):
    without = {"teacher_cache": "", "student_loss": "ce"}
    blank = student_run(serial_run, tmp_path, **without)
    helpers.train(blank)
    # The student of `serial_run` had its teacher at hand.
    helpers.assert_close(weights(cached_run), weights(serial_run), atol=2e-3)
    # Without the teacher's outputs they would be far away from that.
    assert largest_change(weights(blank), weights(serial_run)) > 2e-2
    entry = cache_entry(cached_run)
    assert entry["videos"] == entry["computed"] == 36


def test_replicas_fill_and_read_a_cache_like_one(serial_run, cached_run, tmp_path):
    run = student_run(serial_run, tmp_path)
    helpers.train(run, 2)
    helpers.assert_close(weights(run), weights(cached_run), atol=2e-3)
    assert cache_entry(run)["computed"] == 36


@once
def test_neither_the_teacher_nor_its_frames_are_read_again(
    cached_run, tmp_path, monkeypatch
):
    fills, views = [], []
    monkeypatch.setattr(
        teacher_cache.Builder, "fill", lambda *arguments: fills.append(arguments)
    )
    original = phase_runner.pipeline.build_dataset

    def build(shards, wanted, **arguments):
        if arguments["training"]:
            views.append(set(wanted))
        return original(shards, wanted, **arguments)

    monkeypatch.setattr(phase_runner.pipeline, "build_dataset", build)
    again = helpers.change(cached_run, train_dir=str(tmp_path / "again"))
    helpers.train(again)
    assert not fills and cache_entry(again)["computed"] == 0
    assert views == [{structures.SAMPLED}] * 2  # epochs
    helpers.assert_identical(weights(again), weights(cached_run))


def test_states_are_kept_for_the_intermediate_loss(serial_run, tmp_path):
    changes = {"match": "both", "student_loss": "ce + 0.5*rep"}
    cached = student_run(serial_run, tmp_path, **changes)
    helpers.train(cached)
    present = helpers.change(
        cached, train_dir=str(tmp_path / "present"), teacher_cache=""
    )
    helpers.train(present)
    helpers.assert_close(weights(cached), weights(present), atol=5e-3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_frame_sampler": "uniform_jitter"}, "frame_sampler=uniform_jitter"),
        # Fixed, but other frames than the cache is made of.
        ({"train_frame_sampler": "uniform_center"}, "frame_sampler=uniform_center"),
        ({"frame_sampler": "random"}, "change between epochs"),
    ],
)
@once
def test_states_at_other_frames_than_those_of_the_cache_are_refused(
    serial_run, tmp_path, changes, said
):
    """Before a teacher of the same run is trained."""
    run = student_run(serial_run, tmp_path, match="both", **changes)
    run = helpers.change(run, teacher_checkpoint="")
    assert re.search(f"--teacher_cache cannot hold.*{said}", helpers.refusal(run))


@once
def test_the_same_frames_may_be_spelt_otherwise(serial_run, tmp_path):
    run = student_run(
        serial_run, tmp_path, match="both", train_frame_sampler=" uniform( ) "
    )
    phase = modes.phases(run)[-1]
    teacher_cache.check_same_frames(phase.views["sampled"], run.data.max_frames)


@once
def test_an_interrupted_fill_continues_after_its_last_part(
    serial_run, cached_run, tmp_path, monkeypatch
):
    monkeypatch.setattr(teacher_cache, "PART_VIDEOS", 8)
    run = student_run(serial_run, tmp_path)
    original, added = teacher_cache.TeacherCache.add, []

    def add(self, ids, arrays):
        if len(added) == 2:
            raise helpers.Stop
        added.append(list(ids))
        original(self, ids, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(teacher_cache.TeacherCache, "add", add)
        with pytest.raises(helpers.Stop):
            helpers.train(run)
    helpers.train(run)
    assert cache_entry(run)["computed"] == 36 - 16
    helpers.assert_identical(weights(run), weights(cached_run))


@once
def test_one_run_fills_and_the_others_wait_for_it(tmp_path):
    random = np.random.default_rng(0)
    mine, other = (teacher_cache.TeacherCache(str(tmp_path), KEY) for _ in range(2))
    seen = []

    def fill_too():
        with other.filling():
            seen.append(len(other))

    with mine.filling():
        thread = threading.Thread(target=fill_too)
        thread.start()
        mine.add([b"a", b"b"], arrays(random, 2))
        thread.join(timeout=0.3)
        assert thread.is_alive() and not seen
    thread.join(timeout=30)
    # It got the lock after the first one had written its part.
    assert seen == [2] and b"b" in other


@once
def test_data_covered_by_another_run_can_be_read(tmp_path):
    mine, other = (teacher_cache.TeacherCache(str(tmp_path), KEY) for _ in range(2))
    data = {"files": 1}
    other.add([b"a"], arrays(np.random.default_rng(0), 1))
    assert not mine.covers(data)
    other.note_covered(data)
    assert mine.covers(data)
    np.testing.assert_array_equal(
        mine.rows([b"a"])["logits"], other.rows([b"a"])["logits"]
    )


@once
def test_more_data_with_the_same_teacher_adds_its_videos(
    serial_run, tmp_path, monkeypatch
):
    pattern = serial_run.training.train_data_pattern
    first = pattern.replace("train-*", "train-0")
    half = student_run(serial_run, tmp_path, train_data_pattern=first)
    assert fill(half, monkeypatch)["computed"] == 18
    again = {"train_data_pattern": pattern, "train_dir": str(tmp_path / "both")}
    assert fill(helpers.change(half, **again), monkeypatch)["computed"] == 18


@once
def test_a_rewritten_shard_is_detected_by_its_frames(serial_run, tmp_path, monkeypatch):
    videos = helpers.make_videos(20, seed=5)
    shard = helpers.write_shard(tmp_path / "train.tfrecord", videos)
    written = os.stat(shard).st_mtime_ns
    run = student_run(serial_run, tmp_path, train_data_pattern=shard)
    fill(run, monkeypatch)
    # The same ids; one frame of the last video has another number in it.
    video_id, labels, frames = videos[-1]
    changed = frames.copy()
    changed[0, 0] ^= 1
    helpers.write_shard(shard, [*videos[:-1], (video_id, labels, changed)])
    soon = written // 10**9 * 10**9 + (written + 1) % 10**9  # In the same second.
    os.utime(shard, ns=(soon, soon))
    again = helpers.change(run, train_dir=str(tmp_path / "again"))
    with pytest.raises(ValueError, match=f"other frames of video {video_id}. If its"):
        helpers.train(again)
    # Rewritten with the same content, it is read again and nothing is computed.
    helpers.write_shard(shard, videos)
    assert fill(again, monkeypatch)["computed"] == 0


def test_the_cache_is_filled_under_the_policy_of_its_key(
    serial_run, tmp_path, monkeypatch, use_policy
):
    """In every replica, whose threads have policies of their own."""
    policies = []
    forward = teacher_student.TeacherStudent.forward

    def watched(self, role, *arguments, **named):
        policies.append((role, keras.mixed_precision.global_policy().name))
        return forward(self, role, *arguments, **named)

    monkeypatch.setattr(teacher_student.TeacherStudent, "forward", watched)
    use_policy("mixed_bfloat16")
    changes = {"dtype_policy": "mixed_bfloat16", "max_steps": 1}
    helpers.train(student_run(serial_run, tmp_path, **changes), replicas=2)
    assert set(policies) == {
        (role, "mixed_bfloat16") for role in ("teacher", "student")
    }


@once
def test_wrong_contents_are_found_before_training(copied_run):
    (path,) = pathlib.Path(copied_run.distillation.teacher_cache).rglob("*.logits.npy")
    np.save(path, np.load(path) + np.float16(0.5))
    with pytest.raises(ValueError, match="logits differ by up to 0.5") as caught:
        helpers.train(copied_run)
    assert str(path.parent) in str(caught.value)


@once
def test_a_damaged_part_is_named(copied_run):
    cache = pathlib.Path(copied_run.distillation.teacher_cache)
    (path,) = cache.rglob("00000.encoding.npy")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="00000.encoding.npy is damaged"):
        helpers.train(copied_run)


@once
def test_two_videos_of_one_id_are_refused(serial_run, tmp_path):
    videos = helpers.make_videos(3, seed=5)
    shard = helpers.write_shard(tmp_path / "twice.tfrecord", [*videos, videos[1]])
    run = student_run(serial_run, tmp_path, train_data_pattern=shard)
    with pytest.raises(ValueError, match="v001 is the id of more than one"):
        helpers.train(run)


def arrays(random, count: int, classes: int = 6) -> teacher_cache.Arrays:
    """Outputs of some videos."""
    values = {"encoding": random.normal(size=(count, 3)).astype(np.float16)}
    values["logits"] = random.normal(size=(count, classes)).astype(np.float16)
    return values


@once
def test_rows_are_those_of_the_ids_in_every_order(tmp_path):
    random = np.random.default_rng(0)
    cache = teacher_cache.TeacherCache(str(tmp_path), KEY)
    parts = [arrays(random, 3), arrays(random, 2)]
    cache.add([b"a", b"b", b"c"], parts[0])
    cache.add([b"d", b"\xff\x00"], parts[1])
    again = teacher_cache.TeacherCache(str(tmp_path), KEY)
    found = again.rows([b"\xff\x00", b"b", b"", b"b"])
    for name in ("encoding", "logits"):
        first, second = (part[name] for part in parts)
        expected = [second[1], first[1], np.zeros_like(first[1]), first[1]]
        np.testing.assert_array_equal(found[name], expected)
    with pytest.raises(KeyError, match="no outputs for video x"):
        again.rows([b"x"])


@once
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts in /proc")
def test_open_files_do_not_grow_with_the_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache, "MAX_OPEN", 3)
    random = np.random.default_rng(0)
    parts = {f"{i}".encode(): arrays(random, 1) for i in range(8)}
    before = len(os.listdir("/proc/self/fd"))
    cache = teacher_cache.TeacherCache(str(tmp_path), KEY)
    for video_id, part in parts.items():
        cache.add([video_id], part)
    again = teacher_cache.TeacherCache(str(tmp_path), KEY)
    found = again.rows(list(parts)[::-1])
    assert len(os.listdir("/proc/self/fd")) <= before + 2 * 3  # two caches
    expected = [part["encoding"][0] for part in parts.values()][::-1]
    np.testing.assert_array_equal(found["encoding"], expected)


@once
def test_a_part_without_its_ids_does_not_count(tmp_path):
    cache = teacher_cache.TeacherCache(str(tmp_path), KEY)
    cache.add([b"a"], arrays(np.random.default_rng(0), 1))
    os.remove(os.path.join(cache.folder, "00000.ids.npz"))
    assert len(teacher_cache.TeacherCache(str(tmp_path), KEY)) == 0


@pytest.mark.parametrize("room", [100, 20_000])
@once
def test_a_full_disk_leaves_no_part_and_is_one_line(tmp_path, room):
    random = np.random.default_rng(0)
    cache = teacher_cache.TeacherCache(str(tmp_path), KEY)
    cache.add([b"a"], arrays(random, 1))
    before = helpers.snapshot(tmp_path)
    ids = [f"{i:05d}".encode() for i in range(3000)]
    # An encoding has 3000 * 3 * 2 bytes and a head of 128; the logits have more.
    with helpers.full_disk(room), pytest.raises(ValueError) as error:
        cache.add(ids, arrays(random, 3000, classes=10))
    assert str(error.value) == (
        f"--teacher_cache: {cache.folder} cannot be written: File too large."
    )
    after = helpers.snapshot(tmp_path)
    whole = {k: v for k, v in after.items() if "00001.encoding.npy" not in k}
    assert whole == before
    assert (len(after) > len(before)) == (room > 18_128)
    assert len(teacher_cache.TeacherCache(str(tmp_path), KEY)) == 1


def test_top_k_keeps_the_best_logits_and_the_mass_of_the_rest():
    random = np.random.default_rng(3)
    logits = random.normal(size=(4, 50)).astype(np.float32) * 3 - 4
    outputs = structures.Outputs(tf.constant(logits), tf.zeros([4, 2]))
    guide = teacher_cache._stored(outputs, 5)
    back = teacher_cache.restored(guide, 50).logits.numpy()
    best = np.argsort(-logits, axis=1)[:, :5]
    np.testing.assert_allclose(
        np.take_along_axis(back, best, 1),
        np.take_along_axis(logits, best, 1),
        rtol=1e-3,
    )
    mass = [(1 / (1 + np.exp(-x))).sum(axis=1) for x in (back, logits)]
    np.testing.assert_allclose(*mass, rtol=5e-3)
    others = np.ones_like(logits, bool)
    np.put_along_axis(others, best, False, 1)
    assert all(
        len(np.unique(row[keep])) == 1 for row, keep in zip(back, others, strict=True)
    )


@once
def test_top_k_of_all_classes_is_exact_to_float16():
    logits = np.random.default_rng(1).normal(size=(3, 7)).astype(np.float32)
    outputs = structures.Outputs(tf.constant(logits), tf.zeros([3, 2]))
    for top_k in (0, 7, 9):
        back = teacher_cache.restored(teacher_cache._stored(outputs, top_k), 7)
        np.testing.assert_array_equal(back.logits, logits.astype(np.float16))


def test_top_k_trains(serial_run, tmp_path):
    run = student_run(serial_run, tmp_path, teacher_cache_top_k=4)
    helpers.train(run)
    folder = pathlib.Path(cache_entry(run)["folder"])
    assert np.load(folder / "00000.logits.npy").shape == (36, 4)
