"""Runs inference, indexing, thinning or teacher caching on Apache Beam.

    python tools/beam_run.py --work=inference --train_dir=run \\
        --input_data_pattern='test*.tfrecord' --output_file=predictions.csv \\
        --runner=DirectRunner --direct_running_mode=multi_processing \\
        --direct_num_workers=4

--work selects the flags: those of inference.py, index_records.py, thin_records.py
(without --jobs and --overwrite), extract_videos.py or train.py; `--work=inference
--help` lists them. All other flags are passed to Beam.

Beam retries a failed bundle, and a retry writes nothing twice. Inference writes one CSV
per file, or --num_shards of them, and merges them into the same bytes as inference.py.
All workers must see the files under the same paths and have this package installed.
"""

import contextlib
import logging
import os
import pathlib
import re
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import flags

from yt8m_distill import flag_groups, settings

GROUPS = {
    "inference": (
        settings.CheckpointSettings,
        settings.InferenceSettings,
        settings.ReadingSettings,
    ),
    "index": (settings.DataSettings, settings.ReadingSettings),
    "thin": (settings.DataSettings, settings.SamplingSettings),
    "extract": (settings.ExtractionSettings, settings.FeatureSettings),
    "teacher_cache": (flag_groups.Preset, *flag_groups.RUN_GROUPS),
}


def parse(argv: list[str]) -> tuple[flags.FlagValues, list[str]]:
    """This program's flags, and the remaining arguments for Beam.

    Raises:
        ValueError: for an invalid value.
    """
    values = flags.FlagValues()
    flags.DEFINE_enum(
        "work", "inference", list(GROUPS), "What to do.", flag_values=values
    )
    flags.DEFINE_bool("help", False, "This text.", flag_values=values)
    places = {"index": ["input_data_pattern"]}
    places["thin"] = [*places["index"], "output_dir"]
    try:
        values(argv, known_only=True)  # For --work alone.
        flag_groups.define(GROUPS[values.work], values)
        for name in places.get(values.work, ()):
            flags.DEFINE_string(name, "", "As in the tool.", flag_values=values)
        beam_arguments = values(argv, known_only=True)[1:]
    except flags.Error as error:
        raise ValueError(str(error)) from error
    if values.help:
        print(f"{__doc__}\nFlags of --work={values.work}:\n{values}")
        sys.exit(0)
    return values, beam_arguments


def main(argv: list[str]) -> None:
    """Flags → job → pipeline → merged output."""
    values, beam_arguments = parse(argv)
    # Beam warns that its BigQuery client, which nothing here uses, is not installed
    # (seen in 2.77).
    logging.getLogger().addFilter(lambda record: "apitools" not in record.getMessage())
    try:
        from yt8m_distill.beam import run
    except ImportError as error:
        raise ValueError(
            f"Apache Beam is missing: install [beam] ({error})."
        ) from error
    options = run.make_options(beam_arguments)
    check_options(beam_arguments)
    flag_groups.load_tensorflow()
    from yt8m_distill import file_patterns
    from yt8m_distill.beam import jobs
    from yt8m_distill.serving import thinning

    if values.work == "teacher_cache":
        settings_ = flag_groups.read_run(values)
        cache = jobs.open_cache(settings_).cache
        # Held until the end; a training run that uses the cache waits for the lock.
        with cache.filling():
            job, data = jobs.plan_cache(settings_)
            if job.files:
                run.run(job, options)
            videos = jobs.finish_cache(settings_, data)
        print(f"{videos} videos in {cache.folder}.")
        return
    if values.work == "extract":
        from yt8m_distill import extract_videos

        groups = (settings.ExtractionSettings, settings.FeatureSettings)
        given = [flag_groups.read(group, values) for group in groups]
        run.run(jobs.Extraction(*given), options)
        extract_videos.main(*given)  # Joins the parts.
        return
    files = tuple(file_patterns.expand(values.input_data_pattern, "input_data_pattern"))
    if values.work == "inference":
        inference(values, files, options)
        return
    data = flag_groups.read(settings.DataSettings, values)
    if values.work == "index":
        job = jobs.Indexing(files, values.index_dir, data)
        folder = values.index_dir
    else:
        data.require_frames("A thin shard")
        from yt8m_distill.data import rewriting

        folder = values.output_dir
        if not folder:
            raise ValueError("--output_dir is empty: name the directory to write to.")
        rewriting.check_places(files, folder)
        sampling = flag_groups.read(settings.SamplingSettings, values)
        view = thinning.view_to_keep(sampling, data.max_frames)
        job = jobs.Thinning(files, folder, data, view)
    if folder:
        os.makedirs(folder, exist_ok=True)
    run.run(job, options)
    print(f"{len(files)} shards are done.")


def inference(values: flags.FlagValues, files: tuple[str, ...], options) -> None:
    """Predicts all parts and merges their CSVs."""
    from yt8m_distill import merge_predictions
    from yt8m_distill.beam import jobs, run
    from yt8m_distill.serving import predictions

    inference_settings = flag_groups.read(settings.InferenceSettings, values)
    if inference_settings.shard_index:
        raise ValueError(
            f"--shard_index={inference_settings.shard_index}: all parts are predicted "
            "here."
        )
    for name in ("segments", "vocabulary"):
        value = getattr(inference_settings, name)
        if value:
            raise ValueError(f"--{name}={value}: yt8m-inference does that, not Beam.")
    output_file = inference_settings.output_file
    checkpoint = flag_groups.read(settings.CheckpointSettings, values)
    predictions.PredictionWriter(output_file)  # Checks the path now.
    reading = flag_groups.read(settings.ReadingSettings, values)
    job = jobs.Inference(checkpoint, inference_settings, reading, files)
    run.run(job, options)
    paths = [job.path(item) for item in job.items()]
    if len(paths) > 1:
        videos = merge_predictions.merge(paths, output_file)
        print(f"{videos} videos of {len(paths)} parts in {output_file}.")
    else:
        print(f"One part: {output_file}.")


def check_options(arguments: list[str]) -> None:
    """Rejects arguments that neither this program nor Beam knows.

    Checked for local runners only: other runners have options of their own.

    Raises:
        ValueError: naming the arguments.
    """
    from apache_beam.options import pipeline_options

    options = pipeline_options.PipelineOptions(arguments)
    runner = options.view_as(pipeline_options.StandardOptions).runner or "Direct"
    if "direct" not in runner.lower():
        return
    parser = pipeline_options._BeamArgumentParser(add_help=False)
    for group in pipeline_options.PipelineOptions.__subclasses__():
        with contextlib.suppress(AttributeError):
            group._add_argparse_args(parser)
    _, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise ValueError(f"Unknown to --work and to Beam: {' '.join(unknown)}")


def one_line(error: BaseException) -> str:
    """An error as one line: the last exception of a worker's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    text = (raised or lines or [type(error).__name__])[-1]
    text = re.sub(r"^(?:[\w.]*(?:Error|Exception): )+", "", text)
    return re.sub(r" \[while running .*$", "", text)


if __name__ == "__main__":
    try:
        main(sys.argv)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"beam_run.py: {one_line(error)}", file=sys.stderr, flush=True)
        # Beam's threads may still run TensorFlow code, and a normal exit then ended in
        # SIGABRT.
        sys.stdout.flush()
        os._exit(1)
