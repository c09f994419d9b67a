"""Writes a network's predictions as a Kaggle CSV.

    python yt8m_distill/inference.py --train_dir=run \\
        --input_data_pattern='test*.tfrecord' --output_file=predictions.csv

With --num_shards=N --shard_index=I it predicts part I of N of the files; yt8m-merge
joins the CSVs of all parts to the CSV that a single process writes.

With --segments it scores the segments of the videos and writes the best of each class:
Class,Segments.
"""

import logging
from collections.abc import Iterator

from yt8m_distill import flag_groups, settings, vocabulary

# By name: in a script `__name__` is `__main__`, and only the package's lines are shown.
_LOG = logging.getLogger("yt8m_distill.inference")


def predict_videos(trained, dataset, checkpoint, writer) -> Iterator:
    """Writes the top classes of all videos; yields the ids of each batch."""
    from yt8m_distill.serving import predictor

    predict = predictor.Predictor(trained.runner, checkpoint.top_k).predict
    for found in predict(dataset):
        writer.write(*found)
        yield found.video_ids


def predict_segments(trained, dataset, inference, writer) -> Iterator:
    """Writes the top segments of all classes; yields the ids of each batch."""
    from yt8m_distill.serving import segments

    data, path = trained.run.data, inference.segment_label_ids_file
    classes = vocabulary.read_classes(path, data.num_classes)
    top = segments.TopSegments(classes, inference.segment_max_pred)
    views = trained.views.values()
    grid = segments.make_grid(inference, trained.role, views, data.max_frames)
    asked = classes if path else None
    predict = segments.SegmentPredictor(trained.runner, grid, asked).predict
    for found in predict(dataset):
        top.update(found)
        yield found.batch_ids
    top.write(writer)


def main(
    checkpoint: settings.CheckpointSettings,
    inference: settings.InferenceSettings,
    reading: settings.ReadingSettings,
    stated: dict,
) -> None:
    """Settings → network → CSV."""
    if inference.segments and checkpoint.top_k != settings.CheckpointSettings.top_k:
        raise ValueError(
            f"--top_k={checkpoint.top_k} does not go with --segments: their number per "
            "class is --segment_max_pred."
        )
    vocabulary.read(inference.vocabulary)
    flag_groups.load_tensorflow()  # Only once the flags are right.
    import tqdm

    from yt8m_distill import file_patterns
    from yt8m_distill.evaluation import evaluator
    from yt8m_distill.serving import parts, predictions, segments, skips
    from yt8m_distill.training import trained as trained_networks

    part = (inference.shard_index, inference.num_shards)
    output_file = parts.part_path(inference.output_file, *part)
    pattern = inference.input_data_pattern
    found_files = file_patterns.expand(pattern, "input_data_pattern")
    files = parts.files_of_part(found_files, *part)
    header = predictions.HEADER
    if inference.segments:
        header = segments.HEADER
        if part[1] > 1:
            header = segments.part_header(inference.segment_max_pred)
    # Checks the path now, before the network is loaded.
    predictions_file = predictions.PredictionWriter(output_file, header, found_files)
    if not files:
        with predictions_file:
            pass
        skips.write_lines(output_file, ())  # Removes that of an earlier run.
        _LOG.info(
            "Shard %d of %d has none of the %d input files: %s has only a header.",
            *part,
            len(found_files),
            output_file,
        )
        return
    context = inference.segment_context if inference.segments else None
    trained = trained_networks.open_network(
        checkpoint, stated=stated, segment_context=context
    )
    if inference.mean_with:
        trained.mean_with(checkpoint, inference.mean_with, inference.mean_weight)
    names = {} if inference.segments else trained.class_names(inference.vocabulary)
    flag = "input_data_pattern"
    # A part of the files may hold none.
    shards = trained.open_shards(
        files, reading, flag, inference.segments, may_be_empty=part[1] > 1
    )
    skipped, total = shards.skipped(), shards.num_known_videos
    dataset = trained.dataset(shards, checkpoint.batch_size)
    hashes = []
    bar = tqdm.tqdm(total=total, unit="video", disable=None)
    with predictions_file as writer, bar:
        if inference.segments:
            predicted = predict_segments(trained, dataset, inference, writer)
        else:
            predicted = predict_videos(trained, dataset, checkpoint, writer)
        for video_ids in predicted:
            hashes.append(evaluator.hashes_of(video_ids))
            bar.update(len(video_ids))
    skips.write_list(output_file, skipped)
    if names:
        predictions.write_names(output_file, names)
    _report(output_file, skipped, hashes)
    mean_with = inference.mean_with and f", and --mean_with={inference.mean_with}"
    _LOG.info(
        "%s in %s, by the %s of %s%s.",
        settings.counted(sum(map(len, hashes)), "video"),
        output_file,
        trained.role,
        trained.found.prefix,
        mean_with,
    )


def _report(output_file: str, skipped, hashes: list) -> None:
    """Warns of videos that the CSV lacks, or has more than once."""
    from yt8m_distill.evaluation import evaluator
    from yt8m_distill.serving import skips

    for reason in skipped.lines():
        _LOG.warning("%s", reason)
    if skipped.bad:
        path = output_file + skips.SUFFIX
        count = settings.counted(len(skipped.bad), "video")
        _LOG.warning("Not in the CSV: %s; listed in %s.", count, path)
    repeated = evaluator.count_repeated(hashes)
    if repeated:
        _LOG.warning(
            "Ids of an earlier video, which the CSV repeats: %s.",
            settings.counted(repeated, "video"),
        )


run = flag_groups.script(
    main,
    (settings.CheckpointSettings, settings.InferenceSettings, settings.ReadingSettings),
    of_a_run=True,
)


if __name__ == "__main__":
    run()
