"""Converts video files to records, with features from an image network.

    yt8m-extract --videos='clips/*.mp4' --labels=labels.csv --output=mine.tfrecord \\
        --image_network='keras_application(name="InceptionV3", weights="notop.h5")'

Each video becomes one native record in YouTube-8M's format, with a vector of 8-bit
numbers per second. Files that cannot be read are listed, one line each, on the screen
and in <output>.skipped.txt; all others are written. The manifest <output>.json records
how the features were made; yt8m-export stores it for yt8m-tag. After an interruption,
the same command continues with the missing videos.
"""

import collections
import contextlib
import hashlib
import json
import logging
import os
import shlex

from yt8m_distill import __version__, flag_groups, settings, vocabulary

# By name: in a script `__name__` is `__main__`, and only the package's lines are shown.
_LOG = logging.getLogger("yt8m_distill.extract_videos")

MANIFEST_SUFFIX, VOCABULARY_SUFFIX = ".json", ".vocabulary.csv"


def report(output: str, manifest: dict) -> str:
    """The closing lines, with the flags of train.py if there are labels."""
    names, sizes = zip(*manifest["extraction"]["features"].items(), strict=True)
    frames = manifest["extraction"]["settings"]["max_frames"]
    flags = [
        f"--train_data_pattern={output}",
        f"--feature_names={','.join(names)}",
        f"--feature_sizes={','.join(map(str, sizes))}",
        f"--num_classes={manifest['num_classes']}",
        f"--max_frames={frames}",
    ]
    given = settings.FeatureSettings(**manifest["extraction"]["settings"])
    both = given.feature_range, given.audio_range
    ranges = dict(zip(names, both, strict=False))
    if {*ranges.values()} != {"-2:2"}:
        flags.append(f"--feature_ranges={','.join(ranges.values())}")
    if "audio" in names:
        flags.append("--missing_feature=zeros")
    if os.path.exists(output + VOCABULARY_SUFFIX):
        flags.append(f"--vocabulary={output}{VOCABULARY_SUFFIX}")
    lines = [
        f"{settings.counted(manifest['videos'], 'video')}, "
        f"{settings.counted(manifest['frames'], 'frame')} in {output}, "
        f"{manifest['skipped']} skipped."
    ]
    for name, numbers in manifest.get("numbers", {}).items():
        lowest, highest, at_low, at_high = numbers
        lines.append(
            f"{name}: numbers from {lowest:.3g} to {highest:.3g} in the range "
            f"{ranges[name]}; {at_low:.1%} at its low end, {at_high:.1%} at its high "
            "end."
        )
    if not manifest.get("labeled", True):  # Earlier manifests do not say it.
        flags = [
            "No video has labels, so there are no flags for train.py. Give --labels, "
            "and --overwrite, which keeps the features; or use the records in addition "
            "to labeled ones, with --unlabeled_data_pattern."
        ]
    else:
        flags = [f"Flags for train.py: {shlex.join(flags)}"]
    return "\n".join([*lines, *flags])


def main(
    given: settings.ExtractionSettings, features: settings.FeatureSettings
) -> None:
    """Writes records, manifest and vocabulary, and prints the report.

    Raises:
        ValueError: if no video can be read, or the output exists and differs.
    """
    flag_groups.load_tensorflow()  # Only once the flags are right.
    import tqdm

    from yt8m_distill import files
    from yt8m_distill.data import labels as label_files
    from yt8m_distill.serving import skips
    from yt8m_distill.training import manifest as json_files
    from yt8m_distill.video import extraction

    output = given.output
    labels = label_files.read(given.labels, vocabulary.read(given.vocabulary))
    work = extraction.plan(given, features)
    videos = list(work.videos)
    files.check_target(output, f"--output={output}", videos)
    classes = labels.find_each(videos)
    made_of = json.dumps([sorted(work.parts()), classes, labels.names])
    made_of = hashlib.sha256(made_of.encode()).hexdigest()
    old = {}
    with contextlib.suppress(ValueError, *files.ERRORS):  # Perhaps there is none.
        old = json_files.read_json(output + MANIFEST_SUFFIX, dict)
    if os.path.exists(output) and not given.overwrite:
        if old.get("made_of") == made_of:
            print(report(output, old))
            return
        raise ValueError(
            f"--output={output} already exists, made from other videos, labels or "
            "settings. Use --overwrite, which keeps the features of unchanged videos, "
            "or another --output."
        )
    with files.one_line_errors(work.folder):
        os.makedirs(work.folder, exist_ok=True)
    if os.path.exists(output):
        work.reuse(output, old.get("parts", {}))
    bar = tqdm.tqdm(total=len(videos), unit="video", disable=None)
    try:
        with bar:
            problems = work.make_parts(given.jobs, bar.update)
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(work.folder)  # If it is empty; else the next run continues.
    for line in problems.values():
        _LOG.warning("%s", line)
    if len(problems) == len(videos):
        raise ValueError(f"--videos={given.videos}: none of the videos can be read.")
    frames, numbers = work.join(output, {p: c for p, c in classes.items() if c})
    unlabeled = [path for path in videos if not classes[path] and path not in problems]
    if given.labels and unlabeled:
        _LOG.warning(
            "Without labels in %s: %d; the first: %s.",
            *(given.labels, len(unlabeled), unlabeled[0]),
        )
    counts = collections.Counter(c for of in classes.values() for c in of or ())
    manifest = {
        "program": f"yt8m-extract {__version__}",
        "made_of": made_of,
        "videos": len(videos) - len(problems),
        "frames": frames,
        "skipped": len(problems),
        "labeled": sum(bool(c) for path, c in classes.items() if path not in problems),
        "num_classes": max([0, *counts, *labels.names]) + 1,
        "numbers": numbers,
        "extraction": work.extractor.description,
        "parts": {
            work.videos[path]: os.path.basename(work.part(path))
            for path in videos
            if path not in problems
        },
    }
    if labels.names:
        text = vocabulary.to_text(labels.names)
        files.write_text(output + VOCABULARY_SUFFIX, text)
    skips.write_lines(output, problems.values())
    json_files.write_json(output + MANIFEST_SUFFIX, manifest)
    files.remove(work.folder)
    print(report(output, manifest))


run = flag_groups.script(
    main,
    (settings.ExtractionSettings, settings.FeatureSettings),
    after_a_stop="The same command continues with the missing videos.",
)


if __name__ == "__main__":
    run()
