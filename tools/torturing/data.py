"""Bad data: one line that names it, or left out and counted; odd data is read.

Every kind of bad record or shard is laid beside good shards. By default a script has to
stop with a line that names shard, record, video and rule. Under `--bad_records=skip` it
has to do what it does with the same shards without what is bad, bit for bit.
"""

import collections
import functools
import pathlib
import random
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import tensorflow as tf
import tqdm

from tools.torturing import results, runs
from yt8m_distill.data import records
from yt8m_distill.serving import predictions, skips
from yt8m_distill.training import manifest

SCRIPTS = ("train", "eval", "inference")
SKIP_ALL = ("--bad_records=skip", "--max_bad_fraction=1")
SHARED = "train0001.tfrecord"  # Its videos are dealt out to the bad shards.
SPOILT_VALIDATION = "validate0000.tfrecord"


class Hurt(NamedTuple):
    """What became of the records of a shard.

    Attributes:
        bad: number of each bad record, counted from 0 → its video's id, which is empty
            where it cannot be told.
        good: the others that can be read.
        lost_bytes: of the file, that nobody can read behind damaged framing.
    """

    bad: dict[int, str]
    good: list[bytes]
    lost_bytes: int = 0


class Harm(NamedTuple):
    """A kind of bad shard.

    Attributes:
        reason: under which `--bad_records=skip` counts it.
        rule: what the line about it has to say.
        write: (path, records, the same videos at the other level, random numbers) →
            writes the shard and says what is bad of it.
    """

    reason: str
    rule: str
    write: Callable[[pathlib.Path, list[bytes], list[bytes], random.Random], Hurt]


# ------------------------------------------------------------------ one bad record


def parse(record: bytes) -> tf.train.SequenceExample:
    """A record of either level: a video-level one is all context."""
    return tf.train.SequenceExample.FromString(record)


def id_of(record: bytes) -> bytes:
    """The id of a record's video; empty where there is none."""
    features = parse(record).context.feature
    return features["id"].bytes_list.value[0] if "id" in features else b""


def changed(record: bytes, change: Callable) -> bytes:
    """The record after a function has changed its message."""
    example = parse(record)
    change(example)
    return example.SerializeToString(deterministic=True)


def _frames(example, name: str = "rgb"):
    return example.feature_lists.feature_list[name].feature


def _widen(example, frame: int = 1) -> None:
    _frames(example)[frame].bytes_list.value[0] += b"\0"


def _shift_a_byte(example) -> None:
    _widen(example)
    narrower = _frames(example)[2].bytes_list
    narrower.value[0] = narrower.value[0][:-1]


def _lose_feature(example) -> None:
    del example.feature_lists.feature_list["audio"]


def _lose_frames(example) -> None:
    del _frames(example)[:]


def _split_frame(example) -> None:
    _frames(example)[1].bytes_list.value.append(bytes(16))


def _lose_id(example) -> None:
    del example.context.feature["id"]


def _mislabel(example) -> None:
    example.context.feature["labels"].int64_list.value.append(10)


def _write_labels_as_text(example) -> None:
    example.context.feature["labels"].bytes_list.value.append(b"cat")


def _lengthen_vector(example) -> None:
    example.context.feature["mean_rgb"].float_list.value.append(0.5)


def _lose_vector(example) -> None:
    del example.context.feature["mean_audio"]


def _replaced(path, kept, others, rng, make: Callable, parsed: bool) -> Hurt:
    del others
    at = _somewhere(kept, rng)
    before, bad, behind = kept[:at], make(kept[at]), kept[at + 1 :]
    runs.write_shard(path, [*before, bad, *behind])
    return Hurt({at: id_of(bad).decode() if parsed else ""}, before + behind)


def _somewhere(kept, rng: random.Random) -> int:
    """Neither the first nor the last: a reader has to find the ones around it."""
    return rng.randrange(1, len(kept) - 1)


def bad_record(reason: str, rule: str, make: Callable, parsed: bool = True) -> Harm:
    """One record gives way to what is made of it, and its checksum fits.

    Args:
        reason, rule: see Harm.
        make: record → what stands there instead.
        parsed: whether TensorFlow's parser takes that, so that its id is known.
    """
    write = functools.partial(_replaced, make=make, parsed=parsed)
    return Harm(reason, rule, write)


def bad_message(reason: str, rule: str, change: Callable, parsed: bool = True) -> Harm:
    """As bad_record, of a record that is changed as a message."""
    make = functools.partial(changed, change=change)
    return bad_record(reason, rule, make, parsed)


def _all_of_another_level(path, kept, others, rng) -> Hurt:
    del kept, rng
    runs.write_shard(path, others)
    return Hurt({n: id_of(record).decode() for n, record in enumerate(others)}, [])


# ------------------------------------------------------------------ damaged files


def _truncate(content: bytearray, begin: int, end: int, rng: random.Random) -> None:
    del content[rng.randrange(begin + 1, end) :]


def _truncate_in_length(content, begin, end, rng) -> None:
    del end
    del content[rng.randrange(begin + 1, begin + records.HEADER) :]


def _flip(content: bytearray, begin: int, end: int, rng: random.Random) -> None:
    content[rng.randrange(begin, end)] ^= 1 << rng.randrange(8)


def _flip_in_record(content, begin, end, rng) -> None:
    _flip(content, begin + records.HEADER, end, rng)


def _flip_in_length(content, begin, end, rng) -> None:
    del end
    _flip(content, begin, begin + records.HEADER, rng)


def _damaged(path, kept, others, rng, damage: Callable, goes_on: bool) -> Hurt:
    del others
    runs.write_shard(path, kept)
    at = _somewhere(kept, rng)
    begin = sum(len(record) + records.FRAMING for record in kept[:at])
    content = bytearray(path.read_bytes())
    damage(content, begin, begin + len(kept[at]) + records.FRAMING, rng)
    path.write_bytes(content)
    if goes_on:
        return Hurt({at: ""}, kept[:at] + kept[at + 1 :])
    return Hurt({at: ""}, kept[:at], len(content) - begin)


def damaged_file(rule: str, damage: Callable, goes_on: bool = False) -> Harm:
    """A file is damaged at one record; `goes_on`: those behind it can be read."""
    reason = "wrong checksum" if goes_on else "rest of the shard unreadable"
    write = functools.partial(_damaged, damage=damage, goes_on=goes_on)
    return Harm(reason, rule, write)


def _write_a_csv(path, kept, others, rng) -> Hurt:
    del kept, others, rng
    path.write_bytes(predictions.HEADER_LINE + b"tr000000,1 0.5\n" * 20)
    return Hurt({0: ""}, [], path.stat().st_size)


DAMAGE = {
    "truncated shard": damaged_file("truncated", _truncate),
    "shard that ends in a length": damaged_file("truncated", _truncate_in_length),
    "flipped bit in a record": damaged_file(
        "its checksum does not fit", _flip_in_record, goes_on=True
    ),
    "flipped bit in a length": damaged_file("its length is not known", _flip_in_length),
    "not a TFRecord file": Harm(
        "rest of the shard unreadable", "not a TFRecord file", _write_a_csv
    ),
}
CONTEXT_HARMS = {
    "label out of range": bad_message(
        "label out of range", "label 10 is not in 0..9", _mislabel
    ),
    "labels that are texts": bad_message(
        "feature of another type",
        "labels is not of type int64",
        _write_labels_as_text,
        parsed=False,
    ),
    "no id": bad_message("no id", "there is no id", _lose_id),
    "no example": bad_record(
        "not an example",
        "this is not an example",
        lambda record: b"\xff\xfe, not even text",
        parsed=False,
    ),
}
WIDTH = "a frame of feature rgb is 17 bytes wide, not the 16 of --feature_sizes"
FRAME_HARMS = {
    "wrong frame width": bad_message("wrong width", WIDTH, _widen),
    "wrong widths that cancel out": bad_message("wrong width", WIDTH, _shift_a_byte),
    "missing feature": bad_message(
        "no frames", "feature audio has no frames", _lose_feature
    ),
    "zero frames": bad_message("no frames", "feature rgb has no frames", _lose_frames),
    "frame of two byte strings": bad_message(
        "not one byte string a frame", "is 2 byte strings, not 1", _split_frame
    ),
    **CONTEXT_HARMS,
    "video-level given as frame-level": Harm(
        "no frames", "is this frame-level data?", _all_of_another_level
    ),
    **DAMAGE,
}
VIDEO_HARMS = {
    "wrong width": bad_message(
        "wrong width", "mean_rgb has 17 numbers, not the 16", _lengthen_vector
    ),
    "missing feature": bad_message(
        "wrong width", "mean_audio has 0 numbers, not the 8", _lose_vector
    ),
    **CONTEXT_HARMS,
    "frame-level given as video-level": Harm(
        "wrong width", "is this video-level data?", _all_of_another_level
    ),
    **DAMAGE,
}


class Level(NamedTuple):
    """Frame-level or video-level data.

    Attributes:
        name: of it.
        flags: of training on it.
        harms: name → what can be wrong with it.
        validation_harm: what is wrong with the validation shard.
    """

    name: str
    flags: tuple[str, ...]
    harms: dict[str, Harm]
    validation_harm: str


FRAME_LEVEL = Level(
    "frame-level", ("--mode=parallel",), FRAME_HARMS, "wrong frame width"
)
VIDEO_LEVEL = Level("video-level", runs.VIDEO_LEVEL_FLAGS, VIDEO_HARMS, "wrong width")


# ------------------------------------------------------------------ data sets


class Spoilt(NamedTuple):
    """A bad shard of a data set.

    Attributes:
        name: of the file.
        harm: what is wrong with it.
        bad, lost_bytes: see Hurt.
    """

    name: str
    harm: Harm
    bad: dict[int, str]
    lost_bytes: int

    def places(self, folder: pathlib.Path) -> list[tuple[str, ...]]:
        """What names each bad record in a message, for the shard in this folder."""
        return [
            (
                f"{folder / self.name}",
                f"record {number} (counted from 0)",
                *([f"video {video}: "] if video else []),
            )
            for number, video in self.bad.items()
        ]


class Twins(NamedTuple):
    """The same shards twice, with and without what is bad.

    Attributes:
        bad: folder of the one, with all kinds of bad shards beside good ones.
        clean: folder of the other; a shard that lost all records is an empty file.
        spoilt: name of the harm → shard, in the order of the files' names.
        validation: the bad shard for validation.
    """

    bad: pathlib.Path
    clean: pathlib.Path
    spoilt: dict[str, Spoilt]
    validation: Spoilt

    @property
    def all_spoilt(self) -> list[Spoilt]:
        """All bad shards, in the order of their names."""
        return [*self.spoilt.values(), self.validation]


def write_twins(
    source: pathlib.Path,
    other: pathlib.Path,
    folder: pathlib.Path,
    level: Level,
    rng: random.Random,
) -> Twins:
    """Makes twins out of a data set.

    Args:
        source: the data set of runs.make_data at this level.
        other: the same at the other level.
        folder: where both twins are made.
        level: which.
        rng: decides where harm is done.
    """
    twins = Twins(folder / "bad", folder / "clean", {}, None)
    for twin in (twins.bad, twins.clean):
        runs.copy(source, twin)
        (twin / SHARED).unlink()

    def spoil(name, harm, kept, others) -> Spoilt:
        hurt = harm.write(twins.bad / name, kept, others, rng)
        runs.write_shard(twins.clean / name, hurt.good)
        return Spoilt(name, harm, hurt.bad, hurt.lost_bytes)

    names, shared = sorted(level.harms), runs.read_shard(source / SHARED)
    others = runs.read_shard(other / SHARED)
    for part, name in enumerate(names):
        dealt = slice(part, None, len(names))
        file = f"train-{name.replace(' ', '-')}.tfrecord"
        twins.spoilt[name] = spoil(
            file, level.harms[name], shared[dealt], others[dealt]
        )
    kept = runs.read_shard(source / SPOILT_VALIDATION)
    harm = level.harms[level.validation_harm]
    return twins._replace(validation=spoil(SPOILT_VALIDATION, harm, kept, []))


# ------------------------------------------------------------------ what is allowed


def _shorten(example) -> None:
    del _frames(example)[1:]
    del _frames(example, "audio")[1:]


def _lengthen(example) -> None:
    for name in ("rgb", "audio"):
        _frames(example, name).extend(list(_frames(example, name)) * 24)


def _shorten_one(example) -> None:
    del _frames(example, "audio")[2:]


def _lose_labels(example) -> None:
    del example.context.feature["labels"].int64_list.value[:]


def _lose_the_key_of_labels(example) -> None:
    del example.context.feature["labels"]


def _rename(example) -> None:
    example.context.feature["id"].bytes_list.value[0] += b'\xff\xfe,"\n'


def _add_features(example) -> None:
    example.context.feature["title"].bytes_list.value.append(b"more")
    _frames(example, "more").add().float_list.value.append(0.5)


ALLOWED: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "an empty file": lambda kept: [],
    "ids that come twice": lambda kept: [*kept, kept[0]],
    **{
        name: lambda kept, change=change: [changed(record, change) for record in kept]
        for name, change in {
            "one frame": _shorten,
            "more than --max_frames": _lengthen,
            "features of unequal length": _shorten_one,
            "no labels": _lose_labels,
            "no key for labels": _lose_the_key_of_labels,
            "ids that are not UTF-8": _rename,
            "more features": _add_features,
        }.items()
    },
}


def _gzip(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=31)  # With gzip's header.
    return packer.compress(content) + packer.flush()


PACKED = {"gzip": _gzip, "zlib": zlib.compress}


def pack(shard: pathlib.Path, by: Callable[[bytes], bytes]) -> None:
    """Compresses a shard where it stands."""
    shard.write_bytes(by(shard.read_bytes()))


def ids_in(csv: pathlib.Path) -> list[bytes]:
    """The ids of a CSV of predictions, in its order."""
    return [
        row.columns[0].encode("utf-8", "surrogateescape")
        for row in predictions.read_rows(csv)
    ]


# ------------------------------------------------------------------ the cases


class Data:
    """The cases for the data of a level.

    Args:
        place: folder for everything.
        source: the data set of runs.make_data at this level.
        other: the same at the other level.
        level: which.
        quick: one kind of harm where each has processes of its own.
        seed: decides where harm is done.
    """

    def __init__(self, place, source, other, level: Level, quick: bool, seed: int):
        self.place, self.level, self.quick = place, level, quick
        self.count = 0
        rng = random.Random(f"{seed} {level.name} data")
        self.twins = write_twins(source, other, place, level, rng)
        # Trained without what is bad; it is used on both twins.
        self.whole = self.new()
        runs.succeed("train", *self.training(self.twins.clean, self.whole))

    def new(self) -> pathlib.Path:
        """A folder that is not there yet."""
        self.count += 1
        return self.place / f"case {self.count}"

    def training(self, data, train_dir, *more: str) -> list[str]:
        """The flags of a training."""
        return runs.training_flags(data, train_dir, *self.level.flags, *more)

    def call(self, script: str, files: str, output: pathlib.Path, *more) -> runs.Ended:
        """eval.py or inference.py with the trained network, and a CSV."""
        flags = [
            f"--train_dir={self.whole}",
            f"--output_file={output}",
            *more,
        ]
        if script == "eval":
            flags += [f"--eval_data_pattern={files}", "--run_once"]
        else:
            flags += [f"--input_data_pattern={files}"]
        return runs.call(script, *flags)

    # ---------------------------------------------------------------- stop

    def refused(self, script: str, files: str, *more: str) -> tuple:
        """A script's end on these shards, and what it wrote though it was to stop."""
        if script == "train":
            train_dir = self.new()
            flags = [f"--train_data_pattern={files}", "--num_epochs=1", *more]
            ended = runs.call(
                script, *self.training(self.twins.clean, train_dir, *flags)
            )
            return ended, runs.leftovers(train_dir), train_dir.exists()
        folder = self.new()
        folder.mkdir()
        before = self._evaluations()
        ended = self.call(script, files, folder / "out.csv", *more)
        left = [path.name for path in folder.iterdir()]
        left += ["metrics"] if self._evaluations() != before else []
        return ended, left, bool(left)

    def _evaluations(self) -> list[dict]:
        path = self.whole / "eval" / "metrics.jsonl"
        return runs.read_json_lines(path) if path.exists() else []

    def stopped(self, script: str) -> Iterator[str | None]:
        """For each kind of bad shard, what is wrong with the script's end."""
        good = self.twins.clean / "train0000.tfrecord"
        kinds = self.twins.spoilt
        if self.quick:
            kinds = {"wrong frame width": kinds["wrong frame width"]}
        for name, spoilt in kinds.items():
            files = f"{good},{self.twins.bad / spoilt.name}"
            ended, left, _ = self.refused(script, files)
            problem = ended.problem(script, 1, spoilt.harm.rule)
            problem = problem or unnamed(ended.last_line, spoilt, self.twins.bad)
            if not problem and left:
                problem = f"it left {left[0]}"
            yield problem and f"{name}: {problem}"

    def exceeded(self) -> Iterator[str | None]:
        """More bad records than --max_bad_fraction allows.

        Lost bytes count as the records that they would hold, were they as long as the
        good ones.
        """
        files = f"{self.twins.bad}/*.tfrecord"
        clean = list(self.twins.clean.glob("*.tfrecord"))
        good = records.count_records([str(path) for path in clean])
        size = sum(path.stat().st_size for path in clean) / good
        bad = sum(
            max(len(spoilt.bad), round(spoilt.lost_bytes / size))
            for spoilt in self.twins.all_spoilt
        )
        line = (
            f"{bad} of {bad + good} records are bad, more than --max_bad_fraction=0.01"
        )
        for script in SCRIPTS[: 1 if self.quick else None]:
            ended, _, written = self.refused(script, files, "--bad_records=skip")
            problem = ended.problem(script, 1, line, *self._first_place())
            if not problem and written:
                problem = "it wrote something"
            yield problem and f"{script}: {problem}"

    def _first_place(self) -> tuple[str, ...]:
        return self.twins.all_spoilt[0].places(self.twins.bad)[0]

    # ---------------------------------------------------------------- skip

    def trained(self) -> Iterator[str | None]:
        """train.py: all numbers of the run without the bad records, then the count."""
        train_dir = self.new()
        flags = self.training(self.twins.bad, train_dir, *SKIP_ALL)
        ended = runs.call("train", *flags)
        if ended.code:
            yield f"exit code {ended.code}: {ended.last_line}"
            return
        ends = [
            runs.without(runs.end_of(run), ("num_skipped",))
            for run in (self.whole, train_dir)
        ]
        different = runs.differences(*ends)
        yield f"it ended with another {different[0]}" if different else None
        yield self._badly_counted(train_dir)

    def _badly_counted(self, train_dir: pathlib.Path) -> str | None:
        """What is wrong with the counts in manifest.json and of the validations."""
        content = manifest.read_json(str(train_dir / manifest.MANIFEST))
        counts = collections.Counter()
        for spoilt in self.twins.spoilt.values():
            counts[spoilt.harm.reason] += len(spoilt.bad)
        found = content["data"]
        reasons = {k: reason["count"] for k, reason in found["reasons"].items()}
        if reasons != counts or found["skipped"] != counts.total():
            return f"manifest.json counts {found['skipped']}: {reasons}, not {counts}"
        expected = len(self.twins.validation.bad)
        for path in train_dir.glob("*/metrics.jsonl"):
            skipped = [line["num_skipped"] for line in runs.validations(path)]
            if not skipped or set(skipped) != {expected}:
                return f"the validations skipped {skipped}, not {expected} each"
        return None

    def evaluated(self) -> Iterator[str | None]:
        """eval.py: the metrics without the bad records, and the count."""
        expected = sum(len(spoilt.bad) for spoilt in self.twins.all_spoilt)
        found = []
        for folder, more in ((self.twins.clean, ()), (self.twins.bad, SKIP_ALL)):
            csv = self.place / f"evaluated {folder.name}.csv"
            ended = self.call("eval", f"{folder}/*.tfrecord", csv, *more)
            if ended.code:
                yield f"exit code {ended.code}: {ended.last_line}"
                return
            found.append((self._evaluations()[-1], csv.read_bytes()))
        (clean, clean_csv), (line, csv) = found
        names = (*runs.TIMES, "num_skipped", "skipped")
        different = runs.differences(*(runs.without(x, names) for x in (clean, line)))
        if different:
            yield f"another {different[0]}"
        elif clean_csv != csv:
            yield "another CSV"
        elif line["num_skipped"] != expected:
            yield f"metrics.jsonl counts {line['num_skipped']}, not {expected}"
        elif not ended.printed.rstrip().endswith(f"| Skipped: {expected}"):
            yield f"not {expected} skipped in: {ended.printed}"
        else:
            yield None

    def predicted(self) -> Iterator[str | None]:
        """inference.py: the CSV without the bad records, and a list of them."""
        clean = self.place / "clean.csv"
        ended = self.call("inference", f"{self.twins.clean}/*.tfrecord", clean)
        if ended.code or pathlib.Path(f"{clean}{skips.SUFFIX}").exists():
            yield f"of the clean shards: exit code {ended.code}: {ended.last_line}"
            return
        yield self._badly_predicted(self.twins.bad, clean.read_bytes())
        if not self.quick:
            # One packed shard sends all through another reader.
            mixed = runs.copy(self.twins.bad, self.new())
            pack(mixed / "train0000.tfrecord", _gzip)
            problem = self._badly_predicted(mixed, clean.read_bytes())
            yield problem and f"beside a shard packed with gzip: {problem}"

    def _badly_predicted(self, folder: pathlib.Path, expected: bytes) -> str | None:
        csv = self.new().with_suffix(".csv")
        ended = self.call("inference", f"{folder}/*.tfrecord", csv, *SKIP_ALL)
        if ended.code:
            return f"exit code {ended.code}: {ended.last_line}"
        if csv.read_bytes() != expected:
            return "another CSV"
        listed = pathlib.Path(f"{csv}{skips.SUFFIX}").read_text().splitlines()
        places = [
            (place, spoilt.harm.rule)
            for spoilt in self.twins.all_spoilt
            for place in spoilt.places(folder)
        ]
        if len(listed) != len(places):
            return f"{len(listed)} bad records are listed, not {len(places)}"
        for line, (place, rule) in zip(listed, places, strict=True):
            if any(word not in line for word in (*place, rule)):
                return f"not {' '.join((*place, rule))} in the list: {line}"
        return None

    # ---------------------------------------------------------------- allowed

    def allowed(self) -> Iterator[str | None]:
        """inference.py: every video of odd shards is in the CSV, also when packed."""
        kept = runs.read_shard(self.twins.clean / SPOILT_VALIDATION)
        folder = self.new()
        folder.mkdir()
        ids: dict[str, list[bytes]] = {}
        for part, name in enumerate(sorted(ALLOWED)):
            odd = ALLOWED[name](kept[part :: len(ALLOWED)])
            runs.write_shard(folder / f"{name.replace(' ', '-')}.tfrecord", odd)
            ids[name] = [id_of(record) for record in odd]
        plain = self.place / "allowed.csv"
        ended = self.call("inference", f"{folder}/*.tfrecord", plain)
        found = [] if ended.code else ids_in(plain)
        expected = sum(ids.values(), [])
        told = f"{len(found)} of {len(expected)} videos: {ended.last_line}"
        for name, of_shard in ids.items():
            counts = [(found.count(video), expected.count(video)) for video in of_shard]
            missing = any(one != other for one, other in counts)
            missing |= ended.code != 0 or len(found) != len(expected)
            yield f"{name}: {told}" if missing else None
        for name, by in PACKED.items():
            packed, csv = runs.copy(folder, self.new()), self.place / f"{name}.csv"
            for shard in packed.iterdir():
                pack(shard, by)
            ended = self.call("inference", f"{packed}/*.tfrecord", csv)
            same = not ended.code and csv.read_bytes() == plain.read_bytes()
            yield None if same else f"{name}: {ended.last_line}"

    @property
    def cases(self) -> dict[str, Iterator[str | None]]:
        """What is done → what is wrong with the end of each try."""
        name = self.level.name
        kinds = f"each kind of bad {name} shard"
        skip = f"--bad_records=skip, all kinds of bad {name} shards"
        cases = {
            f"{script}.py stops at {kinds} with a line": self.stopped(script)
            for script in SCRIPTS
        }
        cases[f"{skip}: train.py gives the numbers without them"] = self.trained()
        cases[f"{skip}: eval.py gives the metrics without them"] = self.evaluated()
        cases[f"{skip}: inference.py gives the CSV without them"] = self.predicted()
        if self.level is FRAME_LEVEL:
            cases["odd data that is allowed: inference.py reads it"] = self.allowed()
        cases[f"more bad {name} records than allowed: a line"] = self.exceeded()
        return cases


def unnamed(line: str, spoilt: Spoilt, folder: pathlib.Path) -> str | None:
    """What is wrong with a line that is to name one of a shard's bad records."""
    places = spoilt.places(folder)
    if any(all(word in line for word in place) for place in places):
        return None
    return f"none of {places} is named in: {line}"


def rows(quick: bool, seed: int = 0) -> list[results.Row]:
    """The table's rows; `quick`: one kind of bad shard to stop at, frame-level."""
    table = []
    with tempfile.TemporaryDirectory() as name:
        place = pathlib.Path(name)
        video = runs.make_data(place / "data", video_level=True)
        frame = place / "frame_level"
        frame.mkdir()
        for shard in (place / "data").glob("*.tfrecord"):
            shard.rename(frame / shard.name)
        levels = [(FRAME_LEVEL, frame, video), (VIDEO_LEVEL, video, frame)]
        for level, source, other in levels[: 1 if quick else None]:
            data = Data(place / level.name, source, other, level, quick, seed)
            for what, problems in tqdm.tqdm(data.cases.items(), unit="case"):
                table.append(results.judged(what, problems))
    return table
