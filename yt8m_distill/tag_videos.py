"""Prints the classes of video files, with an exported network.

    yt8m-tag --model=run/export/student holiday.mp4

Only the frames that the network reads, and those they depend on, are decoded. The
exported folder (yt8m-export --extraction_manifest) says how frames become features, and
has the class names. For a file that cannot be read one line is printed, and the exit
code is 1.
"""

import dataclasses
import json
import sys

from yt8m_distill import flag_groups, settings, vocabulary


def to_dict(path: str, tagged, names: dict, num_classes: int) -> dict:
    """Plain values of a tagging.Tagged, for --json."""
    best = zip(tagged.classes[:num_classes], tagged.scores, strict=False)
    return {
        "video": path,
        "tags": [
            {"class": int(c), "name": names.get(int(c), ""), "score": float(score)}
            for c, score in best
        ],
        "frames": {
            "used": tagged.frames,
            "of": tagged.num_frames,
            "decoded": tagged.num_decoded,
            "in_file": tagged.num_in_file,
        },
        "seconds": tagged.seconds,
    }


def line_of(found: dict) -> str:
    """The same as text."""
    tags = [f"{t['name'] or t['class']} {t['score']:.3f}" for t in found["tags"]]
    frames, seconds = found["frames"], found["seconds"]
    parts = ", ".join(f"{part} {took:.3f} s" for part, took in seconds.items())
    return (
        f"{found['video']}: {', '.join(tags)}\n"
        f"  {len(frames['used'])} of {frames['of']} frames; {frames['decoded']} of "
        f"{frames['in_file']} in the file decoded; {parts}"
    )


@dataclasses.dataclass(frozen=True)
class Request(settings.Settings):
    """The program itself."""

    model: str = settings.setting(
        "",
        "Folder of the exported network.",
        required="name the folder of the exported network.",
        path="file",
    )
    videos: str = settings.setting(
        "",
        "Globs of the files, comma separated.",
        required="name the files.",
        path="pattern",
    )
    classes: int = settings.setting(5, "How many classes of each.", minimum=1)
    image_network: str = settings.setting(
        "",
        "The image network, where its files are no longer at the paths in the model's "
        "description; it must have the same SHA-256.",
    )
    audio_network: str = settings.setting("", "The same of the network for sound.")
    student_k: int = settings.setting(
        0, "Frames to read, at most those of the export. 0: all of those.", minimum=0
    )
    vocabulary: str = settings.setting(
        "", "CSV of names. Empty: the model's own.", path="file"
    )
    json: bool = settings.setting(False, "Print one JSON object per video.")


def main(request: Request) -> None:
    """Settings → what is in each video."""
    names = vocabulary.read(request.vocabulary)
    flag_groups.load_tensorflow()  # Only once the flags are right.
    from yt8m_distill import file_patterns
    from yt8m_distill.serving import exported, tagging

    videos = file_patterns.expand(request.videos, "videos")
    names = names or exported.read_names(request.model)
    networks = request.image_network, request.audio_network
    tagger = tagging.Tagger(request.model, request.student_k, *networks)
    problems = []
    for path in videos:
        try:
            tagged = tagger.tag(path)
        except ValueError as error:
            problems.append(path)
            print(" ".join(str(error).split()), file=sys.stderr, flush=True)
            continue
        found = to_dict(path, tagged, names, request.classes)
        print(json.dumps(found) if request.json else line_of(found), flush=True)
    if problems:
        total = settings.counted(len(videos), "video")
        raise ValueError(f"{len(problems)} of {total} cannot be read.")


run = flag_groups.script(main, (Request,))


if __name__ == "__main__":
    run()
