"""The CSV of segments: the best of each class, in flat memory, merged exactly."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from tests import script_helpers
from tests import training_helpers as helpers
from yt8m_distill import settings, structures, vocabulary
from yt8m_distill.data import pipeline
from yt8m_distill.models import builder, replicas
from yt8m_distill.serving import export, parts, predictions, predictor, segments, served
from yt8m_distill.training import modes

pytestmark = pytest.mark.once


def test_the_grid_has_whole_segments_without_the_margins():
    lengths = np.array([0, 4, 5, 14, 23, 300])
    whole = segments.Grid(300).scored(lengths)
    assert whole.sum(axis=1).tolist() == [0, 0, 1, 2, 4, 60]
    assert segments.Grid(300).starts().tolist() == list(range(0, 300, 5))
    # YouTube-8M's: 60 - 6 - 2 of a full video, and none of a short one.
    grid = segments.Grid(300, margins=(6, 2))
    assert grid.scored(lengths).sum(axis=1).tolist() == [0, 0, 0, 0, 0, 52]
    starts = grid.starts()[grid.scored(lengths)[-1]]
    assert (starts[0], starts[-1]) == (30, 285)
    bounds = segments.Grid(300).bounds()
    assert bounds[[0, 1, -1]].tolist() == [[0, 8], [2, 13], [292, 300]]
    # Windows at a stride of one, of a video as long as they are.
    assert segments.Grid(7, stride=1, context=0).bounds().tolist() == [
        [0, 5],
        [1, 6],
        [2, 7],
    ]


@pytest.mark.parametrize("name", ["litert", "onnx"])
@pytest.mark.parametrize(
    "student",
    [
        "DbofModel(cluster_size=4, hidden_size=4, add_batch_norm=False)",
        "HierarchicalLSTM(cells=2, block_len=3)",
    ],
)
def test_one_file_scores_all_segments_of_videos_that_may_have_none(
    tmp_path, name, student
):
    """With the context of the whole video; the export compares it with the network."""
    pytest.importorskip("ai_edge_litert" if name == "litert" else "tf2onnx")
    run = helpers.make_run(
        "unused",
        "unused",
        mode="serial",
        teacher_checkpoint="unused",
        student_loss="ce",
        student=student,
        segment_labels=True,
        video_context=True,
        max_frames=12,
    )
    (phase,) = modes.phases(run, resolved=False)
    networks = builder.build_networks(phase.roles, run.data)
    networks.student.context.assign(tf.ones_like(networks.student.context))
    grid = segments.Grid(12, stride=3, margins=(1, 0))
    network = segments.SegmentNetwork(networks, "student", grid)
    data = dataclasses.replace(run.data, segment_labels=False)
    given = served.Served(network, data, pipeline.ViewSpec("all", 12), 5)
    # Of 1, 2, 4, 5, 7, 8, 10 and 12 frames; those of less than 8 have no segment.
    result = export.export(given, f"{tmp_path}/model", name)
    assert (result.videos, result.difference < 1e-5) == (8, True)
    found = json.loads((tmp_path / "model" / served.DESCRIPTION).read_text())
    assert found["segment_starts"] == [3, 6]


def make_scores(seed: int, videos: int, classes: int = 3):
    """Segments of some videos: few distinct scores, so that some are equal."""
    random = np.random.default_rng(seed)
    ids = [b"%02d,%d" % (seed, v) for v in range(videos)]
    counts = random.integers(1, 5, videos)
    names = np.repeat(np.array(ids, object), counts)
    starts = np.concatenate([5 * np.arange(n) for n in counts])
    scores = (random.integers(0, 20, [len(names), classes]) / 32).astype(np.float32)
    return segments.Scores(names, starts, scores, np.array(ids, object))


def write(path, batches, header, k=6):
    top = segments.TopSegments([7, 2, 9], k)
    with predictions.PredictionWriter(path, header) as writer:
        for batch in batches:
            top.update(batch)
        top.write(writer)
    return top


def test_the_csv_has_the_best_of_each_class_best_first(tmp_path):
    batches = [make_scores(seed, 9) for seed in range(4)]
    write(tmp_path / "x.csv", batches, segments.HEADER)
    found = list(predictions.read_rows(tmp_path / "x.csv", segments.HEADER))
    assert [row.columns[0] for row in found] == ["7", "2", "9"]
    every = [
        (f"{v.decode()}:{s}", row)
        for batch in batches
        for v, s, row in zip(batch.video_ids, batch.starts, batch.scores, strict=True)
    ]
    for c, row in enumerate(found):
        # sorted is stable: of equal scores the first.
        best = sorted(every, key=lambda entry: -entry[1][c])[:6]
        assert row.columns[1].split() == [name for name, _ in best]


@pytest.mark.parametrize("count", [1, 3])
def test_merged_parts_are_the_csv_of_a_single_process(tmp_path, count):
    batches = [make_scores(seed, 9) for seed in range(5)]
    write(tmp_path / "one.csv", batches, segments.HEADER)
    paths = [parts.part_path(f"{tmp_path}/x.csv", i, count + 1) for i in range(count)]
    for n, path in enumerate(paths):
        chosen = parts.files_of_part(batches, n, count)
        write(path, chosen, segments.part_header(6))
    # And one that had no files.
    paths.insert(1, f"{tmp_path}/empty.csv")
    write(paths[1], [], segments.part_header(6))
    assert segments.merge(paths, f"{tmp_path}/merged.csv") == 3
    merged = (tmp_path / "merged.csv").read_bytes()
    assert merged == (tmp_path / "one.csv").read_bytes()
    assert merged.startswith(b'Class,Segments\n7,"')


def test_parts_that_do_not_fit_are_refused(tmp_path):
    def merge(*texts, k=6) -> str:
        paths = [f"{tmp_path}/{n}.csv" for n in range(len(texts))]
        for path, text in zip(paths, texts, strict=True):
            with open(path, "w") as file:
                file.write("Class,Segments,Scores@6\n" + text)
        with pytest.raises(ValueError) as caught:
            segments.merge(paths, f"{tmp_path}/merged.csv", k)
        assert not (tmp_path / "merged.csv").exists()
        return str(caught.value)

    one = "7,a:0 b:0,0.5 0.25\n"
    assert "a:0" not in merge(one, "7,a:0,0.5\n") and "7" in merge(one, "7,a:0,0.5\n")
    assert "classes 7 and 8" in merge(one, "8,c:0,0.5\n")
    assert "1.csv" in merge(one + one, one.replace("a", "c").replace("b", "d"))
    assert "2 segments and 1 scores" in merge("7,a:0 b:0,0.5\n")
    assert "line 2" in merge("7,a:0,0.5")
    # A part that was cut at six may lack the seventh of all.
    refused = merge(one, k=7)
    assert "0.csv" in refused and "6" in refused and "--segment_max_pred=7" in refused


def test_parts_cut_at_different_numbers_are_merged_up_to_the_smallest(tmp_path):
    batches, paths = [make_scores(seed, 9) for seed in range(2)], []
    for batch, k in zip(batches, (4, 6), strict=True):
        paths.append(f"{tmp_path}/{k}.csv")
        write(paths[-1], [batch], segments.part_header(k), k)
    with pytest.raises(ValueError, match=rf"{paths[0]} .*--segment_max_pred=6"):
        segments.merge(paths, f"{tmp_path}/merged.csv")
    segments.merge(paths, f"{tmp_path}/merged.csv", 4)
    write(tmp_path / "one.csv", batches, segments.HEADER, 4)
    merged = (tmp_path / "merged.csv").read_bytes()
    assert merged == (tmp_path / "one.csv").read_bytes()


def test_memory_does_not_grow_with_the_videos(monkeypatch):
    monkeypatch.setattr(segments, "_SPARE_IDS", 8)
    top = segments.TopSegments([7, 2, 9], 6)
    for seed in range(60):
        top.update(make_scores(seed % 90, 9))
        # 3 classes hold 1.25 * 6 segments at most, each of a video of its own, and a
        # batch on top; ids up to twice that, 8 more, and a batch.
        assert len(top._ids) <= 2 * 3 * (8 + 36) + 8 + 9
    assert len(top._ids) < 60 * 9 / 2


def test_an_id_that_the_csv_cannot_hold_is_named():
    found = make_scores(0, 1)._replace(video_ids=np.array([b"a b"], object))
    with pytest.raises(ValueError, match="'a b'"):
        segments.TopSegments([7, 2, 9], 6).update(
            found._replace(starts=found.starts[:1], scores=found.scores[:1])
        )


class Broken:
    """Networks whose logits of the second video have a NaN."""

    def forward(self, role, views):
        return structures.Outputs(tf.constant([[0.0, 1.0], [0.0, np.nan]]), None)

    def parts_logits(self, role, views, bounds):
        return self.forward(role, views).logits[:, tf.newaxis]


def test_a_score_that_is_nan_names_the_video_or_the_segment():
    view = {"all": {"num_frames": tf.constant([5, 5])}}
    ids = tf.constant([b"a", b"b"])
    batch = {"video_id": ids, "weights": tf.ones([2]), "views": view}
    runner = replicas.Runner(Broken(), "student", tf.distribute.get_strategy())
    of_segments = segments.SegmentPredictor(runner, segments.Grid(5))
    for made, name in ((predictor.Predictor(runner), "b"), (of_segments, "b:0")):
        with pytest.raises(ValueError, match=f" {name} "):
            list(made.predict([batch]))


def test_flags_of_segments_are_checked(tmp_path):
    given = {"input_data_pattern": "x", "output_file": "y", "segments": True}
    for value in ("6", "6,x", "1,2,3", "-1,2"):
        with pytest.raises(ValueError, match=f"--segment_margins={value}"):
            settings.InferenceSettings(**given, segment_margins=value)
    assert settings.InferenceSettings(**given, segment_margins="6,2").margins == (6, 2)
    with pytest.raises(ValueError, match="--vocabulary"):
        settings.InferenceSettings(**given, vocabulary="v")
    flags = "--train_dir=x", *(f"--{name}={value}" for name, value in given.items())
    line = script_helpers.refuse("inference", *flags, "--top_k=5")
    assert "--top_k=5" in line and "--segment_max_pred" in line
    path = tmp_path / "ids.csv"
    path.write_text("Index\n12\n3\n")
    assert vocabulary.read_classes(str(path), 20) == [3, 12]
    assert vocabulary.read_classes("", 3) == [0, 1, 2]
    with pytest.raises(ValueError, match=f"--segment_label_ids_file={path} .*12"):
        vocabulary.read_classes(str(path), 12)
