"""Makes a synthetic data set in YouTube-8M's native format.

    python tools/make_synthetic_records.py --output_dir=data --num_train=4000

A video is a sequence of shots. It opens with a title and ends with credits, which
say nothing; of the shots between, some show one of its labels and some none of
them. Classes are Zipf distributed and come in topics, so that labels co-occur.
A frame is its shot's content plus noise that lasts a little (lag-1 correlation
about .5); features have a decaying spectrum and fill the byte range as the real
ones do (mean 127, standard deviation 64). Frame counts follow YouTube-8M: 29 % of
the videos have the maximum, the mean is 77 % of it.

With --rated_segments the videos for validation and test have rated segments as those of
YouTube-8M 2019: of a label of the video, present where its shot is, or absent.

So more frames see more shots and average more noise away, evenly spread frames see
more of them than neighboring ones, and the beginning and the end show little.

With --easy_fraction=0.75 there are no shots but two kinds of videos. An easy one shows
all of its labels in every frame: one frame is enough. A hard one consists of
--hard_frames equal parts and shows each label in one of them: one frame of each part is
needed. Ids end with that number: va000012_k1, va000013_k16.

Every video depends on the seed, its split and its number alone: the same videos
come out whatever the number of shards and processes.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from yt8m_distill import flag_groups

flag_groups.load_tensorflow()

# isort: split
import numpy as np
import tensorflow as tf
import tqdm

from yt8m_distill import files, processes, settings
from yt8m_distill.data import arrays, records, rewriting, segments

SPLITS = ("train", "validate", "test")
DESCRIPTION = "dataset.json"
UNFINISHED = "dataset.unfinished"  # While the shards are written.
# The fields of a recipe that are settings of its records.
OF_DATA = ("feature_names", "feature_sizes", "num_classes", "max_frames")

_LATENT = 64  # Dimensions in which content lives.
_TOPIC = 8  # Classes per topic, on average.
_FULL_LENGTH = 0.29  # Share of videos with max_frames frames.
_TITLE, _CREDITS = 0.08, 0.12  # Shares of a video without content.
_SHOT_LENGTH = 10.0  # Mean number of frames, in videos of 300.
_EMPTY_SHOTS = 0.5  # Share of shots without a label.
_FRAME_CORRELATION = 0.7  # Of the noise in content from frame to frame.
_WHITE = 0.6  # Standard deviation of each number's own noise.


@dataclasses.dataclass(frozen=True)
class World:
    """What all videos of a data set have in common.

    Attributes:
        prototypes: [C, latent], the look of each class.
        mixing: for each feature, [latent, size]: what it makes of a look.
        popularity: [C], how often a class is the main one.
        topics: [C], the topic of each class.
    """

    prototypes: np.ndarray
    mixing: tuple[np.ndarray, ...]
    popularity: np.ndarray
    topics: np.ndarray


@dataclasses.dataclass(frozen=True)
class Recipe(settings.Settings):
    """What decides the videos; each field is a flag."""

    num_train: int = settings.setting(2000, "Training videos.", minimum=0)
    num_validate: int = settings.setting(500, "Validation videos.", minimum=0)
    num_test: int = settings.setting(200, "Test videos, with labels.", minimum=0)
    num_classes: int = settings.setting(200, "Number of classes.", minimum=2)
    max_frames: int = settings.setting(300, "Frames of the longest videos.", minimum=4)
    feature_names: str = settings.setting("rgb,audio", "Names of the features.")
    feature_sizes: str = settings.setting("1024,128", "Bytes per frame of each.")
    videos_per_shard: int = settings.setting(250, "Videos in a shard.", minimum=1)
    seed: int = settings.setting(0, "Seed of everything.", minimum=0)
    signal: float = settings.setting(
        0.55, "Strength of a label in its shots.", minimum=0
    )
    rated_segments: int = settings.setting(
        0, "Rated segments of each video of validate and test, at most.", minimum=0
    )
    easy_fraction: float = settings.setting(
        -1.0,
        "Share of easy videos; the others are hard. Negative: videos of shots.",
        minimum=-1,
        maximum=1,
    )
    hard_frames: int = settings.setting(
        16, "Frames that a hard video needs.", minimum=1
    )
    video_level: bool = settings.setting(False, "Also write <output_dir>/video_level.")

    def check(self) -> None:
        """Rules of several fields."""
        _ = self.data  # Has rules of its own.
        if self.easy_fraction >= 0 and self.rated_segments:
            raise ValueError("--easy_fraction has no shots for --rated_segments.")

    @functools.cached_property
    def data(self) -> settings.DataSettings:
        """The settings of the records."""
        return settings.DataSettings(**{name: getattr(self, name) for name in OF_DATA})


@dataclasses.dataclass(frozen=True)
class Output(settings.Settings):
    """Where the videos go, and how; each field is a flag."""

    output_dir: str = settings.setting(
        "", "Folder of the data set.", required="name the folder to write to."
    )
    jobs: int = settings.setting(2, "Number of processes.", minimum=1)
    overwrite: bool = settings.setting(False, "Replace a data set with other settings.")


def make_world(recipe: Recipe) -> World:
    """Draws the classes and features of a data set."""
    rng = np.random.default_rng([recipe.seed, 99])
    classes = recipe.num_classes
    topics = rng.integers(max(classes // _TOPIC, 1), size=classes)
    centers = rng.standard_normal((topics.max() + 1, _LATENT))
    looks = 0.5 * centers[topics] + rng.standard_normal((classes, _LATENT))
    looks /= np.linalg.norm(looks, axis=1, keepdims=True)
    spectrum = (1 + np.arange(_LATENT)) ** -0.35
    mixing = []
    for size in recipe.data.sizes:
        matrix = rng.standard_normal((_LATENT, size)) * spectrum[:, np.newaxis]
        # Latent numbers of unit variance give features of unit variance.
        mixing.append((matrix / np.sqrt((matrix**2).sum(0))).astype(np.float32))
    popularity = (1.0 + np.arange(classes)) ** -0.8
    prototypes = looks * np.sqrt(_LATENT)
    return World(prototypes, tuple(mixing), popularity / popularity.sum(), topics)


def draw_labels(rng: np.random.Generator, world: World) -> np.ndarray:
    """One main class, and others, of its topic more often than not."""
    main = rng.choice(len(world.popularity), p=world.popularity)
    labels = {int(main)}
    friends = np.flatnonzero(world.topics == world.topics[main])
    for _ in range(min(rng.poisson(2.0), 8)):
        if rng.random() < 0.6:
            labels.add(int(rng.choice(friends)))
        else:
            labels.add(int(rng.choice(len(world.popularity), p=world.popularity)))
    return np.array(sorted(labels))


def draw_num_frames(rng: np.random.Generator, max_frames: int) -> int:
    """Frames of a video: the maximum, or spread evenly over 35 % to 100 % of it."""
    if rng.random() < _FULL_LENGTH:
        return max_frames
    return max(int(max_frames * rng.uniform(0.35, 1.0)), 1)


def draw_content(rng, world: World, recipe: Recipe, labels, num_frames) -> tuple:
    """What frames show before noise, [num_frames, latent], and their labels or -1."""
    mean_shot = max(_SHOT_LENGTH * recipe.max_frames / 300, 1.0)
    content = np.zeros((num_frames, _LATENT))
    shown = np.full(num_frames, -1)
    title = int(np.ceil(_TITLE * num_frames * rng.uniform(0.5, 1.5)))
    ending = num_frames - int(np.ceil(_CREDITS * num_frames * rng.uniform(0.5, 1.5)))
    start, shots = 0, []
    while start < num_frames:
        bounds = [edge for edge in (title, ending) if edge > start]
        end = min([start + 1 + rng.poisson(mean_shot - 1), num_frames, *bounds])
        shots.append((start, end))
        start = end
    seen = list(rng.permutation(labels))  # Every label is shown once at least ...
    order = rng.permutation(len(shots))
    for number in order:
        start, end = shots[number]
        look = rng.standard_normal(_LATENT) * 0.5
        if title <= start < ending:
            if seen:
                label = seen.pop()
            elif rng.random() < _EMPTY_SHOTS:
                label = None
            else:  # ... and the first ones drawn more often.
                label = rng.choice(labels)
            if label is not None:
                look += recipe.signal * world.prototypes[label]
                shown[start:end] = label
        content[start:end] = look
    return content, shown


def draw_easy_or_hard(rng, world: World, recipe: Recipe, labels, num_frames) -> tuple:
    """What frames show before noise, [num_frames, latent], and how many are needed."""
    parts = 1 if rng.random() < recipe.easy_fraction else recipe.hard_frames
    part_of = np.arange(num_frames) * parts // num_frames  # [num_frames]
    content = rng.standard_normal((parts, _LATENT))[part_of] * 0.5
    chosen = rng.permutation(parts)
    for number, label in enumerate(labels):
        inside = part_of == chosen[number % parts]
        content[inside] += recipe.signal * world.prototypes[label]
    return content, parts


def draw_ratings(rng, recipe: Recipe, labels, shown) -> list[segments.Rating]:
    """Ratings of segments that start at multiples of their length, about half present.

    One class each: it is in most frames of the segment, or in none.
    """
    size = settings.SEGMENT_FRAMES
    parts = shown[: len(shown) // size * size].reshape(-1, size)
    found: dict[int, list] = {0: [], 1: []}
    for number, part in enumerate(parts):
        for label in labels.tolist():
            frames = int((part == label).sum())
            if frames == 0 or 2 * frames > size:
                score = int(frames > 0)
                found[score].append(segments.Rating(number * size, label, score))
    rated: dict[int, segments.Rating] = {}
    for count in range(recipe.rated_segments):
        free = [rating for rating in found[count % 2] if rating.start not in rated]
        if free:
            chosen = free[rng.integers(len(free))]
            rated[chosen.start] = chosen
    return [rated[start] for start in sorted(rated)]


def make_frames(rng, world: World, recipe: Recipe, content) -> list:
    """The quantized features of a video: [num_frames, size] uint8 each."""
    num_frames = len(content)
    noise = rng.standard_normal(content.shape)
    rho = _FRAME_CORRELATION
    for t in range(1, num_frames):
        noise[t] = rho * noise[t - 1] + np.sqrt(1 - rho**2) * noise[t]
    shown = (content + 0.7 * noise).astype(np.float32)
    frames = []
    for matrix in world.mixing:
        values = shown @ matrix
        white = rng.standard_normal(values.shape, dtype=np.float32)
        frames.append(records.quantize(values * 0.85 + _WHITE * white))
    return frames


def make_video(world: World, recipe: Recipe, split: str, number: int):
    """Video id, labels, frames and ratings of one video."""
    seed = [recipe.seed, SPLITS.index(split), number]
    rng = np.random.default_rng(seed)
    labels = draw_labels(rng, world)
    num_frames = draw_num_frames(rng, recipe.max_frames)
    video_id = f"{split[:2]}{number:06d}"
    draw, shown = (rng, world, recipe, labels, num_frames), None
    if recipe.easy_fraction < 0:
        content, shown = draw_content(*draw)
    else:
        content, needed = draw_easy_or_hard(*draw)
        video_id += f"_k{needed}"
    frames = make_frames(rng, world, recipe, content)
    ratings = []
    if split != "train" and shown is not None:
        # Of their own random numbers: the videos stay what they are.
        ratings = draw_ratings(np.random.default_rng([*seed, 1]), recipe, labels, shown)
    return video_id.encode(), labels, frames, ratings


def frame_level_record(
    recipe: Recipe, video_id: bytes, labels, frames, ratings
) -> bytes:
    """A serialized SequenceExample."""
    example = tf.train.SequenceExample()
    columns = zip(*ratings, strict=True)  # Empty without ratings.
    for (name, kind), values in zip(segments.KINDS.items(), columns, strict=False):
        feature = example.context.feature[name]
        getattr(feature, f"{kind}_list").value.extend(values)
    data = recipe.data
    features = dict(zip(data.names, frames, strict=True))
    record, _ = arrays.make_record(video_id, labels, features, data.ranges, example)
    return record


def video_level_record(
    recipe: Recipe, video_id: bytes, labels, frames, ratings
) -> bytes:
    """A serialized Example with the mean of each feature."""
    del ratings
    example = tf.train.Example()
    feature = example.features.feature
    feature["id"].bytes_list.value.append(video_id)
    feature["labels"].int64_list.value.extend(labels)
    for name, values in zip(recipe.data.names, frames, strict=True):
        mean = records.dequantize(values).mean(axis=0)
        feature[f"mean_{name}"].float_list.value.extend(mean)
    return example.SerializeToString(deterministic=True)


def write_shard(
    recipe: Recipe, folder: str, split: str, shard: int, count: int
) -> None:
    """Writes the videos of one shard, atomically."""
    world = make_world(recipe)
    makers = {folder: frame_level_record}
    if recipe.video_level:
        makers[os.path.join(folder, "video_level")] = video_level_record
    name = f"{split}{shard:04d}.tfrecord"
    first = shard * recipe.videos_per_shard
    with contextlib.ExitStack() as stack:
        writers = {
            make: stack.enter_context(rewriting.writing(os.path.join(place, name)))
            for place, make in makers.items()
        }
        for number in range(first, first + count):
            video = make_video(world, recipe, split, number)
            for make, writer in writers.items():
                writer.write(make(recipe, *video))


def plan_shards(recipe: Recipe) -> list[tuple[str, int, int]]:
    """(split, shard, videos) of every shard."""
    plan = []
    for split in SPLITS:
        total, size = getattr(recipe, f"num_{split}"), recipe.videos_per_shard
        for shard in range(-(-total // size)):
            plan.append((split, shard, min(size, total - shard * size)))
    return plan


def suggested_flags(recipe: Recipe, folder: pathlib.Path) -> str:
    """The flags of train.py that fit the data set."""
    return " ".join(
        [
            f"--train_data_pattern='{folder}/train*.tfrecord'",
            f"--validation_data_pattern='{folder}/validate*.tfrecord'",
            *(f"--{name}={getattr(recipe, name)}" for name in OF_DATA),
        ]
    )


def is_made_already(recipe: Recipe, folder: pathlib.Path, overwrite: bool) -> bool:
    """Whether the folder has this very data set.

    Raises:
        ValueError: if another one does and may not be replaced, or if there are shards
            that are not of this program.
    """
    path = folder / DESCRIPTION
    shard = next(folder.glob("*.tfrecord"), None)
    if shard and not (path.is_file() or (folder / UNFINISHED).is_file()):
        raise ValueError(
            f"--output_dir={folder} has {shard.name}, which is not of this program: "
            "name another folder."
        )
    if not path.is_file() or overwrite:
        return False
    stored = json.loads(path.read_text())["recipe"]
    wanted = dataclasses.asdict(recipe)
    different = sorted(k for k in wanted if stored.get(k) != wanted[k])
    if different:
        raise ValueError(
            f"--output_dir={folder} holds a data set with another "
            f"{', '.join(different)}. Use --overwrite or another folder."
        )
    return True


def make_dataset(recipe: Recipe, folder: pathlib.Path, jobs: int) -> None:
    """Writes all shards, then the description that marks the data set as whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / UNFINISHED).touch()
    (folder / DESCRIPTION).unlink(missing_ok=True)  # First: it says that all are there.
    for place in [folder, *([folder / "video_level"] if recipe.video_level else [])]:
        place.mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            for old in place.glob(f"{split}[0-9][0-9][0-9][0-9].tfrecord"):
                old.unlink()
    plan = plan_shards(recipe)
    bar = tqdm.tqdm(total=sum(count for *_, count in plan), unit="video")
    tasks = [(recipe, str(folder), *job) for job in plan]
    with bar:
        for (*_, count), _ in processes.call_all(write_shard, tasks, jobs):
            bar.update(count)
    description = {"recipe": dataclasses.asdict(recipe), "shards": len(plan)}
    text = json.dumps(description, indent=2) + "\n"
    files.write_text(str(folder / DESCRIPTION), text)
    (folder / UNFINISHED).unlink()


def main(recipe: Recipe, output: Output) -> None:
    """Recipe → data set."""
    folder = pathlib.Path(output.output_dir)
    if is_made_already(recipe, folder, output.overwrite):
        print(f"{folder} holds this data set already.")
    else:
        make_dataset(recipe, folder, output.jobs)
    print(f"Flags for train.py: {suggested_flags(recipe, folder)}")


run = flag_groups.script(main, (Recipe, Output))


if __name__ == "__main__":
    run()
