"""Inference, indices, thin shards or a teacher cache, on a runner of Apache Beam.

    python tools/beam_run.py --work=inference --train_dir=run \\
        --input_data_pattern='test*.tfrecord' --output_file=predictions.csv \\
        --runner=DirectRunner --direct_running_mode=multi_processing \\
        --direct_num_workers=4

--work decides which flags there are: those of inference.py, of index_records.py, of
thin_records.py (without --jobs and --overwrite), or of train.py. All other flags are
Beam's. `--work=inference --help` shows the first.

A failed bundle is tried again by Beam and writes nothing twice. The CSVs of inference,
one for each file or --num_shards of them, are merged at the end: the result is the one
of inference.py, byte for byte. Files have to be where every worker finds them under
the same name, and workers need this package installed.
"""

import contextlib
import os
import pathlib
import re
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import flags

from yt8m_distill import flag_groups, settings

WORKS = ("inference", "index", "thin", "teacher_cache")
GROUPS = {
    "inference": (
        settings.CheckpointSettings,
        settings.InferenceSettings,
        settings.ReadingSettings,
    ),
    "index": (settings.DataSettings, settings.ReadingSettings),
    "thin": (settings.DataSettings, settings.SamplingSettings),
    "teacher_cache": flag_groups.RUN_GROUPS,
}


def parse(argv: list[str]) -> tuple[flags.FlagValues, list[str]]:
    """This program's flags, and the words that are left for Beam.

    Raises:
        ValueError: for a wrong value.
    """
    try:
        first = _with_work()
        first(argv, known_only=True)
        values = _with_work()
        flag_groups.define(GROUPS[first.work], values)
        if first.work == "teacher_cache":
            flag_groups.define_preset(values)
        if first.work in ("index", "thin"):
            names = ["input_data_pattern"]
            names += ["output_dir"] if first.work == "thin" else []
            for text in names:
                flags.DEFINE_string(text, "", "As in the tool.", flag_values=values)
        left = values(argv, known_only=True)[1:]
    except flags.Error as error:
        raise ValueError(str(error)) from error
    if values.help:
        print(f"{__doc__}\nFlags of --work={values.work}:\n{values}")
        sys.exit(0)
    return values, left


def _with_work() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_enum(
        "work", "inference", list(WORKS), "What to do.", flag_values=values
    )
    flags.DEFINE_bool("help", False, "This text.", flag_values=values)
    return values


def main(argv: list[str]) -> None:
    """Flags → work → pipeline → merged output."""
    values, left = parse(argv)
    try:
        from yt8m_distill.beam import run
    except ImportError as error:
        raise ValueError(
            f"Apache Beam is missing: install [beam] ({error})."
        ) from error
    options = run.make_options(left)
    check_options(left)
    flag_groups.load_tensorflow()
    from yt8m_distill.beam import works
    from yt8m_distill.data import records
    from yt8m_distill.serving import thinning

    if values.work == "teacher_cache":
        settings_ = flag_groups.read_run(values)
        cache, *_ = works.open_cache(settings_)
        # Held until the end: a training run that wants the cache waits for it.
        with cache.filling():
            work, data = works.plan_cache(settings_)
            if work.files:
                run.run(work, options)
            videos = works.finish_cache(settings_, data)
        print(f"{videos} videos in {cache.folder}.")
        return
    files = tuple(
        records.expand_patterns(values.input_data_pattern, "input_data_pattern")
    )
    if values.work == "inference":
        inference(values, files, options)
        return
    data = flag_groups.read(settings.DataSettings, values)
    if values.work == "index":
        work = works.Indexing(files, values.index_dir, data)
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
        work = works.Thinning(files, folder, data, view)
    if folder:
        os.makedirs(folder, exist_ok=True)
    run.run(work, options)
    print(f"{len(files)} shards are done.")


def inference(values: flags.FlagValues, files: tuple[str, ...], options) -> None:
    """All parts, and the CSV of them together."""
    from yt8m_distill import merge_predictions
    from yt8m_distill.beam import run, works
    from yt8m_distill.serving import predictions

    given = flag_groups.read(settings.InferenceSettings, values)
    if given.shard_index:
        raise ValueError(
            f"--shard_index={given.shard_index}: all parts are predicted here."
        )
    checkpoint = flag_groups.read(settings.CheckpointSettings, values)
    predictions.PredictionWriter(given.output_file)  # Checks the path now.
    reading = flag_groups.read(settings.ReadingSettings, values)
    work = works.Inference(checkpoint, given, reading, files)
    run.run(work, options)
    paths = [work.path(item) for item in work.items()]
    if len(paths) > 1:
        videos = merge_predictions.merge(paths, given.output_file)
        print(f"{videos} videos of {len(paths)} parts in {given.output_file}.")
    else:
        print(f"One part: {given.output_file}.")


def check_options(words: list[str]) -> None:
    """Refuses words that neither this program nor Beam knows.

    Other runners than the local ones have options that only they know.

    Raises:
        ValueError: naming the words.
    """
    from apache_beam.options import pipeline_options

    options = pipeline_options.PipelineOptions(words)
    runner = options.view_as(pipeline_options.StandardOptions).runner or "Direct"
    if "direct" not in runner.lower():
        return
    parser = pipeline_options._BeamArgumentParser(add_help=False)
    for group in pipeline_options.PipelineOptions.__subclasses__():
        with contextlib.suppress(AttributeError):
            group._add_argparse_args(parser)
    _, unknown = parser.parse_known_args(words)
    if unknown:
        raise ValueError(f"Neither a flag of this work nor Beam's: {' '.join(unknown)}")


def one_line(error: BaseException) -> str:
    """An error as one line: of a worker's traceback the last, without Beam's frame."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    text = (told or lines or [type(error).__name__])[-1]
    text = re.sub(r"^(?:[\w.]*(?:Error|Exception): )+", "", text)
    return re.sub(r" \[while running .*$", "", text)


if __name__ == "__main__":
    try:
        main(sys.argv)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"beam_run.py: {one_line(error)}", file=sys.stderr, flush=True)
        # Threads of Beam may still be in TensorFlow's code; an orderly exit then ended
        # in SIGABRT.
        sys.stdout.flush()
        os._exit(1)
