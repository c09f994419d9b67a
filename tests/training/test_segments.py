"""Runs on rated segments: fine-tuning, a teacher of whole videos, evaluation."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf

from tests import record_helpers, script_helpers
from tests import training_helpers as helpers
from yt8m_distill import inference, settings, structures
from yt8m_distill.evaluation import evaluator, segments
from yt8m_distill.models import builder
from yt8m_distill.serving import exported, predictions
from yt8m_distill.serving import segments as segments_csv
from yt8m_distill.training import (
    checkpoints,
    initial_weights,
    manifest,
    modes,
    transfer,
)
from yt8m_distill.training import trained as trained_networks

pytestmark = pytest.mark.once

# 5 frames, and one to each side.
RATED = {"segment_labels": True, "segment_context": 1, "student_k": 7}


def write_rated(path, count: int, seed: int, prefix: str) -> None:
    """Videos with three ratings: one of a label, one of another class, one more."""
    random = np.random.default_rng(seed)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for video in helpers.make_videos(count, seed, prefix):
            example = tf.train.SequenceExample.FromString(helpers.make_example(*video))
            labels = video[1]
            others = [c for c in range(helpers.NUM_CLASSES) if c not in labels]
            ratings = [
                (0, labels[0], 1),
                (5, int(random.choice(others)), 0),
                (int(random.integers(1, 5)), labels[-1], int(random.integers(2))),
            ]
            for name, feature in record_helpers.ratings_of(ratings).items():
                example.context.feature[name].CopyFrom(feature)
            writer.write(example.SerializeToString(deterministic=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rated videos, and a teacher of whole videos trained on them."""
    folder = tmp_path_factory.mktemp("rated")
    write_rated(folder / "train-0.tfrecord", 20, 1, "t")
    write_rated(folder / "validate-0.tfrecord", 9, 2, "e")
    helpers.train(helpers.make_run(folder / "teacher", folder, num_epochs=1))
    return folder


def results_of(train_dir, phase: str) -> dict:
    phases = manifest.read_phases(str(train_dir))
    return phases[phase]["results"]["student"]["best"]


def logits_of(network, frames) -> np.ndarray:
    """Of all frames of one video or segment, [C]."""
    view = {"frames": frames[np.newaxis], "num_frames": [len(frames)]}
    view = {name: tf.constant(value) for name, value in view.items()}
    return network(view).logits[0].numpy()


def segments_by_hand(logits_of_segment) -> dict:
    """(segment, class) → score of the validation, by a function (video, segment).

    Frames of the video, and the segment's own 5 with 3 to each side.
    """
    found = {}
    for video_id, _, frames in helpers.make_videos(9, 2, "e"):
        for start in range(0, len(frames) - 4, 5):
            logits = logits_of_segment(frames, frames[max(start - 3, 0) : start + 8])
            for label, score in enumerate(1 / (1 + np.exp(-logits))):
                found[f"{video_id}:{start}", label] = score
    return found


def scores_in(path) -> dict:
    """(segment, class) → score in a part; its order is checked."""
    rows = list(predictions.read_rows(path, segments_csv.part_header(100_000)))
    assert [row.columns[0] for row in rows] == [str(c) for c in range(10)]
    found = {}
    for label, row in enumerate(rows):
        names, scores = (column.split() for column in row.columns[1:])
        assert scores == sorted(scores, key=float, reverse=True)
        for name, score in zip(names, scores, strict=True):
            found[name, label] = float(score)
    return found


def open_trained(train_dir):
    given = settings.CheckpointSettings(train_dir=str(train_dir), batch_size=8)
    return trained_networks.open_network(given, segment_context=-1)


def test_a_student_learns_segments_from_a_teacher_of_whole_videos(folder, tmp_path):
    run = helpers.make_run(
        tmp_path / "run",
        folder,
        mode="serial",
        teacher_checkpoint=str(folder / "teacher"),
        teacher_cache=str(tmp_path / "cache"),
        student_start="teacher",
        student_loss="ce + 0.1*pred + 0.05*video_ce",
        segment_negatives=0.5,
        num_epochs=1,
        **RATED,
    )
    (phase,) = modes.phases(run)
    views = {role.name: phase.views[role.view].training for role in phase.roles}
    assert views["teacher"].segment_context is None
    assert (views["student"].segment_context, views["student"].k) == (1, 7)
    helpers.train(run, replicas=2)
    # The teacher is asked once a video, and not once a segment.
    entry = manifest.read_phases(f"{tmp_path}/run")["student"]
    assert entry["teacher_cache"]["videos"] == 20
    # eval.py says the same as the validation of the best epoch, on one replica.
    done = script_helpers.succeed(
        "eval",
        f"--train_dir={tmp_path}/run",
        f"--eval_data_pattern={folder}/validate-0.tfrecord",
        "--segment_labels",
        "--run_once",
        f"--per_class_file={tmp_path}/classes.csv",
    )
    assert "MAP" in done.stdout and "Hit@1" not in done.stdout
    (line,) = helpers.read_lines(tmp_path / "run" / "eval" / "metrics.jsonl")
    best = results_of(tmp_path / "run", "student")
    for name in ("gap", "map", "loss"):
        assert line[name] == pytest.approx(best[name], rel=1e-5), name
    assert line["num_segments"] == line["num_ratings"] == 3 * 9
    assert len((tmp_path / "classes.csv").read_text().splitlines()) == 11


@pytest.fixture(scope="module")
def tuned(folder):
    """A run of segments at rate 0 that starts from the teacher: it is the teacher."""
    run = helpers.make_run(
        folder / "tuned",
        folder,
        mode="baseline",
        start_from=str(folder / "teacher"),
        num_epochs=1,
        base_learning_rate=0.0,
        **RATED,
    )
    helpers.train(run)
    return folder / "tuned"


def test_a_network_of_videos_is_fine_tuned_and_measured_on_segments(folder, tuned):
    gaps = []
    for train_dir in (tuned, folder / "teacher"):
        found = open_trained(train_dir)
        (view,) = found.views.values()
        # Those of the run, or the default.
        assert view.segment_context == (1 if train_dir == tuned else 3)
        found.views = {name: view.in_segments(1) for name in found.views}
        opened = found.open_shards(
            f"{folder}/validate-0.tfrecord", settings.ReadingSettings(), "x"
        )
        network_evaluator = evaluator.build(found.runner, found.run.data, 5)
        gaps.append(network_evaluator.evaluate(found.dataset(opened, 8)).metrics)
        pool = segments.SegmentAccumulator(helpers.NUM_CLASSES)
        for batch in found.dataset(opened, 5):
            outputs = found.networks.forward(found.role, batch[structures.VIEWS])
            scores = 1 / (1 + np.exp(-outputs.logits.numpy()))
            labels, rated = batch["labels"].numpy(), batch["label_weights"].numpy()
            weights = batch["weights"].numpy()
            pool.update(segments.RatedScores(scores, labels, rated, weights, weights))
        by_hand = pool.result()
        assert gaps[-1].gap == pytest.approx(by_hand.gap, rel=1e-9)
        assert gaps[-1].map == pytest.approx(by_hand.map, rel=1e-9)
    assert gaps[0] == gaps[1]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mode": "teacher"}, ("--segment_labels", "--mode=teacher")),
        ({"mode": "parallel"}, ("--segment_labels", "--mode=parallel")),
        ({"mode": "serial"}, ("--mode=serial", "--teacher_checkpoint")),
        (
            {"mode": "baseline", "student_k": "3,6,12"},
            ("--student_k=3,6,12", "--segment_context=1"),
        ),
        (
            {"mode": "baseline", "unlabeled_data_pattern": "x"},
            ("--unlabeled_data_pattern=x", "--segment_labels"),
        ),
        ({"mode": "baseline", "mix": "cut"}, ("--mix=cut", "--segment_labels")),
        (
            {"mode": "baseline", "segment_labels": False, "segment_negatives": 0.5},
            ("--segment_negatives=0.5", "--segment_labels"),
        ),
        *(
            (
                {"mode": "serial", "teacher_checkpoint": "{}/teacher"}
                | {"video_context": True, **changes},
                ("--video_context", named),
            )
            for changes, named in (
                ({"mode": "baseline", "teacher_checkpoint": ""}, "--mode=serial"),
                ({"segment_labels": False}, "--segment_labels"),
                ({"student_loss": "rep"}, "--student_loss=rep"),
                ({"student_k": "6,7"}, "--student_k=6,7"),
            )
        ),
    ],
    ids=str,
)
def test_a_run_that_cannot_learn_from_segments_is_refused(folder, changes, named):
    teacher = changes.get("teacher_checkpoint", "").format(folder)
    changes = {**RATED, **changes, "teacher_checkpoint": teacher}
    with pytest.raises(ValueError) as caught:
        modes.phases(helpers.make_run("unused", folder, **changes))
    assert all(part in str(caught.value) for part in named)


def test_a_network_of_segments_is_refused_for_full_videos(folder, tmp_path):
    run = helpers.make_run(tmp_path / "run", folder, mode="baseline", **RATED)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / manifest.MODEL_FLAGS).write_text(json.dumps(run.to_dict()))
    given = settings.CheckpointSettings(train_dir=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="--segment_labels"):
        trained_networks.open_network(given)
    with pytest.raises(ValueError, match="--noframe_features"):
        settings.DataSettings(segment_labels=True, frame_features=False)


def test_all_segments_are_scored_as_if_each_were_alone_and_parts_merge(
    folder, tmp_path
):
    def infer(name, *more) -> list:
        script_helpers.succeed(
            "inference",
            f"--train_dir={folder}/teacher",
            f"--input_data_pattern={folder}/*-0.tfrecord",
            f"--output_file={tmp_path}/{name}.csv",
            "--segments",
            "--batch_size=8",
            *more,
        )

    infer("one")
    for part in ("0", "1"):
        infer("two", "--num_shards=2", f"--shard_index={part}")
    script_helpers.succeed(
        "merge_predictions",
        f"--input={tmp_path}/two.csv",
        f"--output_file={tmp_path}/m",
    )
    assert (tmp_path / "m").read_bytes() == (tmp_path / "one.csv").read_bytes()
    # Each by itself; another batch, and other sums.
    network = open_trained(folder / "teacher").network
    expected = segments_by_hand(lambda _, part: logits_of(network, part))
    found = scores_in(tmp_path / "two-00001-of-00002.csv")
    assert found == pytest.approx(expected, rel=1e-5)
    # Some classes, the best three, without the first segment and the last.
    (tmp_path / "ids.csv").write_text("Index\n4\n2\n")
    infer(
        "few",
        "--segment_margins=1,1",
        "--segment_max_pred=3",
        f"--segment_label_ids_file={tmp_path}/ids.csv",
    )
    few = list(predictions.read_rows(tmp_path / "few.csv", segments_csv.HEADER))
    assert [row.columns[0] for row in few] == ["2", "4"]
    names = " ".join(row.columns[1] for row in few).split()
    assert len(names) == 6 and all(name.split(":")[1] in "5 10" for name in names)


def test_the_mean_with_a_network_of_videos_is_that_of_the_logits(
    folder, tuned, tmp_path
):
    teacher = folder / "teacher"
    mean = ("--segments", f"--mean_with={teacher}", "--mean_weight=0.25")
    done = script_helpers.succeed(
        "inference",
        f"--train_dir={teacher}",
        f"--input_data_pattern={folder}/validate-0.tfrecord",
        f"--output_file={tmp_path}/mean.csv",
        # A part has scores; the other one has no file.
        *("--num_shards=2", "--shard_index=1", "--batch_size=8", *mean),
    )
    assert mean[1] in done.stderr + done.stdout  # It is not the network's alone.
    network = open_trained(teacher).network
    expected = segments_by_hand(
        lambda video, part: (
            0.75 * logits_of(network, part) + 0.25 * logits_of(network, video)
        )
    )
    found = scores_in(tmp_path / "mean-00001-of-00002.csv")
    assert found == pytest.approx(expected, rel=1e-5)

    # The evaluation reads the same two: with one of them alone it is that one.
    def evaluate(train_dir, *more) -> dict:
        data = f"--eval_data_pattern={folder}/validate-0.tfrecord"
        flags = ("--segment_labels", "--run_once", "--segment_context=1", data)
        script_helpers.succeed("eval", f"--train_dir={train_dir}", *flags, *more)
        line = helpers.read_lines(train_dir / "eval" / "metrics.jsonl")[-1]
        assert f"--mean_weight={line['mean_weight']:g}" in more
        return {name: line[name] for name in ("gap", "map", "loss")}

    of_none = evaluate(tuned, f"--mean_with={teacher}", "--mean_weight=0")
    best = results_of(tuned, "baseline")
    assert of_none == pytest.approx({name: best[name] for name in of_none}, rel=1e-5)
    of_videos = (f"--mean_with={teacher}", "--mean_weight=1")
    mean = evaluate(tuned, *of_videos)
    assert mean == pytest.approx(evaluate(teacher, *of_videos), rel=1e-6)
    assert mean["loss"] != pytest.approx(of_none["loss"], rel=1e-3)
    refused = script_helpers.call(
        "eval", f"--train_dir={teacher}", "--eval_data_pattern=x", of_videos[0]
    )
    assert refused.returncode and f"{of_videos[0]} " in refused.stderr


@pytest.fixture(scope="module")
def aware(folder):
    """A run whose student reads its teacher's encoding of the whole video, too."""
    run = helpers.make_run(
        folder / "aware",
        folder,
        mode="serial",
        teacher_checkpoint=str(folder / "teacher"),
        teacher_cache=str(folder / "cache"),
        student_start="teacher",
        student_loss="ce",
        segment_negatives=0.5,
        video_context=True,
        ema_decay=0.9,
        **RATED,
    )
    helpers.train(run)
    return run


def test_a_student_with_context_resumes_exactly(aware, tmp_path, monkeypatch, caplog):
    run = helpers.change(aware, train_dir=str(tmp_path / "run"))
    # An epoch has 60 segments, which are 8 steps: stopped within the second one.
    caplog.set_level("INFO", logger=initial_weights.__name__)
    with helpers.stopped(monkeypatch, "student", 10):
        helpers.train(run)
    assert re.search("starts as the teacher; .*context are new", caplog.text)
    helpers.train(run)
    helpers.assert_ends_alike(aware, run, "student")


def test_a_student_reads_its_teachers_encoding_of_the_whole_video(
    folder, aware, monkeypatch
):
    read, restore = [], checkpoints.restore_network

    def note(prefix, role, network):
        read.append(role)
        restore(prefix, role, network)

    monkeypatch.setattr(checkpoints, "restore_network", note)
    found = open_trained(folder / "aware")
    # A frozen context is not read again with the next checkpoint.
    found.load(found.found)
    assert read == ["student", "teacher", "student"]
    assert np.abs(found.network.context.numpy()).max() > 1e-3
    pattern = f"{folder}/validate-0.tfrecord", settings.ReadingSettings(), "x"
    judge = evaluator.build(found.runner, found.run.data, 5)
    dataset = found.dataset(found.open_shards(*pattern), 8)
    metrics = judge.evaluate(dataset).metrics
    best = results_of(folder / "aware", "student")
    for name in ("gap", "map", "loss"):
        assert getattr(metrics, name) == pytest.approx(best[name], rel=1e-5), name
    # By hand: 5 frames and one to each side, and the teacher on all frames.
    grid = segments_csv.Grid(helpers.MAX_FRAMES, context=1)
    predict = segments_csv.SegmentPredictor(found.runner, grid).predict
    teacher = trained_networks.open_network(
        settings.CheckpointSettings(train_dir=str(folder / "teacher"))
    ).network
    frames_of = {v.encode(): f for v, _, f in helpers.make_videos(9, 2, "e")}

    def view_of(frames) -> dict:
        view = {"frames": frames[np.newaxis], "num_frames": [len(frames)]}
        return {name: tf.constant(value) for name, value in view.items()}

    (part, *_) = predict(found.dataset(found.open_shards(*pattern, True), 16))
    assert len(part.starts) > 9
    for row in zip(part.video_ids, part.starts, part.scores, strict=True):
        video_id, start, scores = row
        frames = frames_of[video_id]
        view = view_of(frames[max(start - 1, 0) : start + 6])
        view["context"] = teacher(view_of(frames)).encoding
        expected = tf.sigmoid(found.network(view).logits)[0]
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.once
def test_an_exported_network_scores_segments_as_inference_does(folder, aware, tmp_path):
    """From serialized records, here with the context of the whole video."""
    pattern = f"{folder}/validate-0.tfrecord"
    given = (
        f"--train_dir={aware.training.train_dir}",
        "--segments",
        "--segment_stride=3",
        "--segment_margins=1,1",
    )
    script_helpers.succeed(
        "inference",
        *given,
        f"--input_data_pattern={pattern}",
        f"--output_file={tmp_path}/x.csv",
        *("--num_shards=2", "--shard_index=1"),  # A part has scores.
    )
    inferred = scores_in(tmp_path / "x-00001-of-00002.csv")
    export = ("export_model", *given, f"--export_dir={tmp_path}/model")
    script_helpers.succeed(*export, f"--eval_data_pattern={pattern}", "--top_k=10")
    signatures = tf.saved_model.load(f"{tmp_path}/model").signatures
    records = [*tf.data.TFRecordDataset(pattern).as_numpy_iterator(), b"no record"]
    found = signatures["serving_default"](example_bytes=tf.constant(records))
    found = {name: value.numpy() for name, value in found.items()}
    served = {}
    starts = found["segment_starts"]
    for row, place in zip(*np.nonzero(starts >= 0), strict=True):
        name = f"{found['video_id'][row].decode()}:{starts[row, place]}"
        for label, score in zip(
            found["class_indexes"][row, place],
            found["predictions"][row, place],
            strict=True,
        ):
            served[name, label] = score
    assert served == pytest.approx(inferred, abs=1e-5)
    lengths = [len(frames) for _, _, frames in helpers.make_videos(9, 2, "e")]
    assert len(served) == 10 * sum((n - 5) // 3 + 1 - 2 for n in lengths)
    assert [bool(error) for error in found["error"]] == [False] * 9 + [True]
    # No such segment, and no such record.
    assert not found["predictions"][starts < 0].any()
    assert (starts[-1] == -1).all()
    refusals = (
        script_helpers.refuse("export_model", given[0]),
        script_helpers.refuse(
            "classify_records", f"--model={tmp_path}/model", f"--records={pattern}"
        ),
    )
    assert all("segments" in line for line in refusals)
    with pytest.raises(ValueError, match=f"--model={tmp_path}/model .*--segments"):
        exported.ExportedNetwork(f"{tmp_path}/model")


@pytest.mark.parametrize(
    ("source", "changes", "said"),
    [
        # 12 x 6 numbers of the encoder, 6 x 10 and 10 of the classifier.
        ("teacher", {}, "142 parameters are taken; .*context are new"),
        # And 6 x 6 between the encodings.
        ("aware", {}, "178 parameters are taken[.]"),
        ("aware", {"num_classes": 11}, "108 parameters are taken; the classifier"),
        (
            "aware",
            {
                "mode": "baseline",
                "video_context": False,
                "teacher_checkpoint": "",
                "teacher_cache": "",
            },
            "142 parameters are taken; .*context are left out",
        ),
    ],
)
def test_a_student_with_context_starts_from_what_fits(
    folder, aware, caplog, source, changes, said
):
    start = {"start_from": str(folder / source), "student_start": "new"}
    run = helpers.change(aware, **{**start, **changes})
    roles = modes.phases(run, resolved=False)[0].roles
    networks = builder.build_networks(roles, run.data)
    with caplog.at_level("INFO", logger=transfer.__name__):
        transfer.plan(roles[-1], networks.student, run).assign("student")
    assert re.search(said, caplog.text)
    given = settings.CheckpointSettings(train_dir=str(folder / source))
    found = trained_networks.open_network(given, segment_context=1).network
    np.testing.assert_array_equal(networks.student.kernel, found.kernel)
    if "left" not in said:
        expected = np.zeros([6, 6]) if "new" in said else found.context
        np.testing.assert_array_equal(networks.student.context, expected)


def test_two_replicas_have_the_gradients_of_one_with_context_and_negatives(folder):
    """Also where the second replica has padding rows alone: the last 4 of 60 rows."""
    run = helpers.make_run(
        "unused",
        folder,
        mode="serial",
        teacher_checkpoint="unused",
        student_loss="ce + 0.1*video_ce",
        video_context=True,
        segment_negatives=0.5,
        **RATED,
    )

    def randomize(networks) -> None:
        helpers.fill(networks.weights, 3, 0.5)

    def gradients(replicas: int) -> list:
        runner = helpers.build_phase(run, replicas, randomize)
        first, *_, last = runner._dataset(0, 0)
        return [helpers.gradients_of(runner, batch) for batch in (first, last)]

    for (one, metrics), (two, metrics_of_two) in zip(
        gradients(1), gradients(2), strict=True
    ):
        # float32 sums in another order.
        for a, b in zip(one["student"], two["student"], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        for name in ("student/ce_loss", "student/video_ce_loss"):
            assert metrics[name] == pytest.approx(metrics_of_two[name], rel=1e-5)


# 20 frames are 4 segments.
@pytest.mark.parametrize("margins", ["2,2", "0,4", "9,9"])
def test_margins_that_leave_no_segment_are_refused(folder, margins):
    found = open_trained(folder / "teacher")
    given = settings.InferenceSettings(
        input_data_pattern="x",
        output_file="x",
        segments=True,
        segment_margins=margins,
    )
    with pytest.raises(ValueError, match=f"--segment_margins={margins} .*--max_frames"):
        next(inference.predict_segments(found, [], given, None))


def test_a_student_of_fewer_frames_than_a_segment_scores_none(folder):
    found = open_trained(folder / "teacher")
    name = next(iter(found.views))
    found.views = {name: found.views[name]._replace(sampler="uniform", k=3)}
    given = settings.InferenceSettings(input_data_pattern="x", output_file="x")
    with pytest.raises(ValueError, match="reads 3 of the 11 .*--segment_context=3"):
        next(inference.predict_segments(found, [], given, None))
