"""Jobs item by item: in any order, repeated, interrupted and concurrent."""

import concurrent.futures
import dataclasses
import errno
import glob
import os
import pathlib

import pytest
import tensorflow as tf

from tests import script_helpers
from tests import training_helpers as helpers
from yt8m_distill import merge_predictions, settings
from yt8m_distill.beam import jobs
from yt8m_distill.data import index as data_index
from yt8m_distill.data import pipeline
from yt8m_distill.serving import skips
from yt8m_distill.training import manifest


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> tuple[str, ...]:
    """Three shards, the second without videos."""
    folder = tmp_path_factory.mktemp("shards")
    videos = helpers.make_videos(11, seed=5)
    cuts = (videos[:7], [], videos[7:])
    return tuple(
        helpers.write_shard(folder / f"s{number}.tfrecord", some)
        for number, some in enumerate(cuts)
    )


DATA = settings.DataSettings(
    feature_names=",".join(helpers.NAMES),
    feature_sizes=",".join(map(str, helpers.SIZES)),
    num_classes=helpers.NUM_CLASSES,
    max_frames=helpers.MAX_FRAMES,
)


def inference(run, shards, output, **changes) -> jobs.Inference:
    return jobs.Inference(
        settings.CheckpointSettings(
            train_dir=run.training.train_dir, batch_size=4, num_gpus=0
        ),
        settings.InferenceSettings(
            input_data_pattern="unused", output_file=str(output), **changes
        ),
        settings.ReadingSettings(),
        shards,
    )


def index(run, shards, folder) -> jobs.Indexing:
    folder.mkdir(exist_ok=True)
    return jobs.Indexing(shards, str(folder), DATA)


def thin(run, shards, folder) -> jobs.Thinning:
    folder.mkdir(exist_ok=True)
    return jobs.Thinning(shards, str(folder), DATA, pipeline.ViewSpec("uniform", 3))


def parts_of_csv(run, shards, folder) -> jobs.Inference:
    folder.mkdir(exist_ok=True)
    return inference(run, shards, folder / "x.csv")


def cache(run, shards, folder) -> jobs.TeacherCaching:
    changed = helpers.change(
        run,
        train_dir=str(folder / "run"),
        train_data_pattern=",".join(shards),
        teacher_checkpoint=run.training.train_dir,
        teacher_cache=str(folder / "cache"),
    )
    return jobs.plan_cache(changed)[0]


MAKERS = {"inference": parts_of_csv, "index": index, "thin": thin, "cache": cache}
each_job = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@each_job
def test_neither_order_nor_repeated_or_concurrent_attempts_change_the_result(
    make, serial_run, shards, tmp_path
):
    once = make(serial_run, shards, tmp_path / "a")
    counts = [once.do(item) for item in once.items()]
    assert sum(counts) == 11  # Each video in one item.
    again = make(serial_run, shards, tmp_path / "b")
    for _ in range(2):
        for item in reversed(again.items()):
            again.do(item)
    twice = make(serial_run, shards, tmp_path / "c")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(twice.do, [*twice.items(), *twice.items()]))
    first, second, third = (helpers.snapshot(tmp_path / name) for name in "abc")
    # The plan of a cache names the shards, not the folder of the cache.
    assert len(first) >= len(once.items())
    assert first == second == third


@each_job
def test_an_item_that_fails_before_its_rename_leaves_only_temporary_files(
    make, serial_run, shards, tmp_path, monkeypatch
):
    """An item counts from its rename on."""
    job = make(serial_run, shards, tmp_path / "a")
    before = helpers.snapshot(tmp_path / "a")

    def fail(*arguments, **options):
        raise OSError(errno.EIO, "the machine is taken away")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        patch.setattr(tf.io.gfile, "rename", fail)
        for item in job.items():
            with pytest.raises(
                (OSError, ValueError), match="the machine is taken away"
            ):
                job.do(item)
    left = helpers.snapshot(tmp_path / "a")
    assert {k: v for k, v in left.items() if ".tmp" not in k} == before


def test_the_merged_parts_are_the_csv_of_one_part(serial_run, shards, tmp_path):
    script_helpers.succeed(
        "inference",
        f"--train_dir={serial_run.training.train_dir}",
        f"--input_data_pattern={','.join(shards)}",
        f"--output_file={tmp_path}/one.csv",
        *("--batch_size=4", "--num_gpus=0"),
    )
    for count in (1, 2, 5):  # 1 means one part per file.
        output = tmp_path / f"parts{count}.csv"
        job = inference(serial_run, shards, output, num_shards=count)
        assert len(job.items()) == {1: 3, 2: 2, 5: 5}[count]
        for item in reversed(job.items()):
            job.do(item)
        merge_predictions.merge([job.path(i) for i in job.items()], str(output))
        assert output.read_bytes() == (tmp_path / "one.csv").read_bytes()


def test_an_index_that_is_up_to_date_is_left_alone(serial_run, shards, tmp_path):
    job = index(serial_run, shards, tmp_path / "index")
    assert [job.do(item) for item in job.items()] == [7, 0, 4]
    paths = [data_index.path_in(job.index_dir, s) for s in shards]
    times = [os.stat(path).st_mtime_ns for path in paths]
    assert [job.do(item) for item in job.items()] == [7, 0, 4]
    assert [os.stat(path).st_mtime_ns for path in paths] == times
    pathlib.Path(paths[0]).write_bytes(b"spoiled")
    job.do(shards[0])
    assert len(data_index.read(paths[0], shards[0], DATA).numbers) == 7


def cached_run(serial_run, folder):
    return helpers.change(
        serial_run,
        train_dir=str(folder / "run"),
        teacher_checkpoint=serial_run.training.train_dir,
        teacher_cache=str(folder / "cache"),
    )


def test_a_cache_filled_by_jobs_is_complete_for_training(serial_run, tmp_path):
    run = cached_run(serial_run, tmp_path)
    job, data = jobs.plan_cache(run)
    job.do(job.items()[1])  # Stopped here and continued.
    job, data = jobs.plan_cache(run)
    assert [job.do(item) for item in job.items()] == [18, 0]
    assert jobs.finish_cache(run, data) == 36
    assert jobs.plan_cache(run)[0].items() == []
    helpers.train(run)
    path = os.path.join(run.training.train_dir, manifest.MANIFEST)
    entry = manifest.read_json(path)["phases"]["student"]["teacher_cache"]
    assert (entry["videos"], entry["computed"]) == (36, 0)


def test_a_cache_with_parts_of_other_data_is_refused(serial_run, tmp_path):
    run = cached_run(serial_run, tmp_path)
    job, _ = jobs.plan_cache(run)
    job.do(job.items()[0])
    other = helpers.change(run, train_fraction=0.5)
    with pytest.raises(ValueError, match="holds parts of other data, or of a run of"):
        jobs.plan_cache(other)


def test_an_id_in_two_items_is_found_at_the_end(serial_run, tmp_path):
    videos = helpers.make_videos(3, seed=1)
    for name in ("a", "b"):
        helpers.write_shard(tmp_path / f"{name}.tfrecord", videos)
    run = helpers.change(
        cached_run(serial_run, tmp_path), train_data_pattern=f"{tmp_path}/*.tfrecord"
    )
    job, data = jobs.plan_cache(run)
    for item in job.items():
        job.do(item)
    with pytest.raises(ValueError, match="v000 is the id of more than one"):
        jobs.finish_cache(run, data)


def test_a_cache_needs_a_folder_and_a_teacher(serial_run, tmp_path):
    without = helpers.change(serial_run, teacher_cache="")
    with pytest.raises(ValueError, match="--teacher_cache is empty"):
        jobs.plan_cache(without)
    new = helpers.change(
        serial_run, train_dir=str(tmp_path / "new"), teacher_cache=str(tmp_path / "c")
    )
    with pytest.raises(ValueError, match="has no trained teacher yet"):
        jobs.plan_cache(new)


def test_a_cache_refuses_states_at_frames_that_change(serial_run, tmp_path):
    """Beam has no dry run: the cache itself has to ask, as it does in training."""
    run = helpers.change(
        serial_run,
        train_dir=str(tmp_path / "student"),
        teacher_checkpoint=serial_run.training.train_dir,
        teacher_cache=str(tmp_path / "cache"),
        match="both",
        frame_sampler="random",
    )
    with pytest.raises(ValueError, match="cannot hold.*change between epochs"):
        jobs.open_cache(run)


def with_bad_labels(shards, folder) -> tuple[str, ...]:
    """The shards, each with a first record whose label is out of range."""
    folder.mkdir()
    videos = helpers.make_videos(len(shards), seed=9, prefix="bad")
    bad = [(name, [helpers.NUM_CLASSES], *rest) for name, _, *rest in videos]
    paths = []
    for shard, video in zip(shards, bad, strict=True):
        path = folder / os.path.basename(shard)
        helpers.write_shard(path, [video])
        path.write_bytes(path.read_bytes() + pathlib.Path(shard).read_bytes())
        paths.append(str(path))
    return tuple(paths)


def test_inference_lists_the_skipped_records(serial_run, shards, tmp_path):
    spoiled = with_bad_labels(shards, tmp_path / "bad")
    plain = inference(serial_run, shards, tmp_path / "plain.csv")
    job = inference(serial_run, spoiled, tmp_path / "x.csv")
    skip = settings.ReadingSettings(bad_records="skip", max_bad_fraction=1.0)
    job = dataclasses.replace(job, reading=skip)
    assert [job.do(item) for item in job.items()] == [7, 0, 4]
    for item in job.items():
        plain.do(item)
        written = (pathlib.Path(w.path(item)).read_bytes() for w in (job, plain))
        assert next(written) == next(written)
        (line,) = pathlib.Path(job.path(item) + skips.SUFFIX).read_text().splitlines()
        assert line.startswith(f"{spoiled[item]}, record 0 (counted from 0), video bad")
    output = tmp_path / "merged.csv"
    merge_predictions.merge([job.path(item) for item in job.items()], str(output))
    lines = pathlib.Path(f"{output}{skips.SUFFIX}").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == list(spoiled)
    # Without bad records there is no list, and that of an earlier run is removed.
    merge_predictions.merge([plain.path(item) for item in plain.items()], str(output))
    assert not os.path.exists(f"{output}{skips.SUFFIX}")


def test_a_cache_skips_the_same_records_as_training(serial_run, tmp_path):
    """A shard whose records are all bad has no part."""
    good = sorted(glob.glob(serial_run.training.train_data_pattern))
    spoiled = list(with_bad_labels(good, tmp_path / "bad"))
    alone = tmp_path / "bad" / "train-z.tfrecord"
    alone.write_bytes(b"")
    spoiled.append(with_bad_labels([alone], tmp_path / "only")[0])
    run = helpers.change(
        cached_run(serial_run, tmp_path),
        train_data_pattern=",".join(spoiled),
        bad_records="skip",
        max_bad_fraction=0.2,
    )
    with pytest.raises(ValueError, match="3 of 39 records are bad, more than"):
        jobs.plan_cache(helpers.change(run, max_bad_fraction=0.05))
    job, data = jobs.plan_cache(run)
    assert list(job.files) == spoiled[:-1]
    assert sum(job.do(item) for item in job.items()) == 36
    assert jobs.finish_cache(run, data) == 36
