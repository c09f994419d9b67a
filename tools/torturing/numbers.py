"""Numbers gone wrong: the run stops, names step and part, and saves none of them."""

import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
import tqdm

from tools.torturing import results, runs
from yt8m_distill import settings
from yt8m_distill.training import digests
from yt8m_distill.training import trained as trained_networks

BAD = {"NaN": np.nan, "infinity": np.inf}


def spoil(shard: pathlib.Path, number: int, value: float) -> None:
    """Puts a value into one feature of a record."""
    records = runs.read_shard(shard)
    example = tf.train.Example.FromString(records[number])
    example.features.feature["mean_rgb"].float_list.value[3] = value
    records[number] = example.SerializeToString(deterministic=True)
    runs.write_shard(shard, records)


def bad_states(train_dir: pathlib.Path) -> list[str]:
    """Checkpoints of a run that are damaged or hold what is no finite number."""
    bad = []
    for index in sorted(train_dir.rglob("*.index")):
        prefix = str(index.with_suffix(""))
        values = runs.numbers_of(prefix).values()
        finite = all(np.isfinite(v).all() for v in values if v.dtype.kind == "f")
        if digests.problem(prefix) or not finite:
            bad.append(str(index.relative_to(train_dir)))
    return bad


class Numbers:
    """The cases, over one data set.

    Args:
        place: folder for everything.
        quick: NaN alone, in float32.
    """

    def __init__(self, place: pathlib.Path, quick: bool):
        self.place, self.quick = place, quick
        self.count = 0
        # These hold floats, which can be no numbers.
        self.data = runs.make_data(place / "data", video_level=True)
        self.whole = self.new()
        runs.succeed("train", *self.flags(self.data, self.whole))

    def new(self) -> pathlib.Path:
        """A folder that is not there yet."""
        self.count += 1
        return self.place / f"case {self.count}"

    def flags(self, data, train_dir, *more: str) -> list[str]:
        """Of a training on video-level records."""
        return runs.training_flags(data, train_dir, *runs.VIDEO_LEVEL_FLAGS, *more)

    def a_video_in_training(self) -> Iterator[str | None]:
        """a value of one training video, in float32 and with loss scaling"""
        policies = ("float32", "mixed_float16")
        for policy in policies[:1] if self.quick else policies:
            reference = self.whole
            if policy != "float32":
                reference = self.new()
                runs.succeed("train", *self.precise(self.data, reference, policy))
            for what, value in list(BAD.items())[: 1 if self.quick else None]:
                problem = self._spoiled_training(policy, value, reference)
                yield problem and f"{what}, {policy}: {problem}"

    def precise(self, data, train_dir, policy: str) -> list[str]:
        """The flags with a precision."""
        return self.flags(data, train_dir, f"--dtype_policy={policy}")

    def _spoiled_training(self, policy, value, reference) -> str | None:
        folder, train_dir = self.new(), self.new()
        runs.copy(self.data, folder)
        spoil(folder / "train0001.tfrecord", 40, value)
        flags = self.precise(folder, train_dir, policy)
        ended = runs.call("train", *flags)
        problem = ended.problem("train", 1, "Step ", "student/ce_loss", "finite")
        bad = bad_states(train_dir)
        if problem or bad:
            return problem or f"{bad[0]} was saved"
        # The video is put right, and the run goes on as if nothing had been.
        shutil.rmtree(folder)
        runs.copy(self.data, folder)
        again = runs.call("train", *flags)
        if again.code:
            return f"it did not go on: {again.last_line}"
        different = runs.differences(runs.end_of(reference), runs.end_of(train_dir))
        return f"it ended with another {different[0]}" if different else None

    def steps_that_are_too_long(self) -> Iterator[str | None]:
        """a learning rate of 1e30, and one of 1e39, which float32 does not hold"""
        for rate in ("1e30", "1e39"):
            train_dir = self.new()
            more = ("--optimizer=SGD", f"--base_learning_rate={rate}")
            more += ("--clip_gradient_norm=0", "--steps_per_loop=1")
            ended = runs.call("train", *self.flags(self.data, train_dir, *more))
            problem = ended.problem("train", 1, "Step ", "finite")
            bad = bad_states(train_dir)
            yield problem or (f"{rate}: {bad[0]} was saved" if bad else None)

    def _call(self, script: str, data, folder: pathlib.Path, *more: str):
        """A script that is to refuse; and its CSV."""
        output = folder / "out.csv"
        flags = {
            "inference": [
                f"--input_data_pattern={data}/validate*",
                f"--output_file={output}",
            ],
            "eval": [
                f"--eval_data_pattern={data}/validate*",
                f"--output_file={output}",
                "--run_once",
            ],
            "export_model": [f"--export_dir={folder / 'model'}"],
        }
        return runs.call(script, f"--train_dir={self.whole}", *flags[script], *more)

    def _refused(self, ended, script, folder, *words: str) -> str | None:
        problem = ended.problem(script, 1, *words)
        left = [p.name for p in folder.iterdir()]
        if not problem and left:
            problem = f"it left {left[0]}"
        return problem and f"{script}: {problem}"

    def a_weight(self) -> Iterator[str | None]:
        """a weight of a network that is evaluated, used and exported"""
        given = settings.CheckpointSettings(train_dir=str(self.whole))
        trained = trained_networks.open_network(given)
        kernel = trained.network.head.trainable_variables[0]
        value = np.array(kernel.numpy())
        good = value[0, 7]
        for what, bad in list(BAD.items())[: 1 if self.quick else None]:
            value[0, 7] = bad
            kernel.assign(value)
            prefix = tf.train.Checkpoint(student=trained.network).write(
                str(self.place / f"network {what}")
            )
            for script in ("inference", "eval", "export_model"):
                folder = self.new()
                folder.mkdir()
                ended = self._call(script, self.data, folder, f"--checkpoint={prefix}")
                problem = self._refused(ended, script, folder, prefix, "finite")
                yield problem and f"{what}: {problem}"
        value[0, 7] = good
        kernel.assign(value)

    def a_video_afterwards(self) -> Iterator[str | None]:
        """a value of one video that is evaluated or predicted"""
        for what, value in list(BAD.items())[: 1 if self.quick else None]:
            data = runs.copy(self.data, self.new())
            spoil(data / "validate0000.tfrecord", 20, value)
            before = (self.whole / "eval" / "metrics.jsonl").exists()
            for script in ("inference", "eval"):
                folder = self.new()
                folder.mkdir()
                ended = self._call(script, data, folder)
                problem = self._refused(ended, script, folder, "ideo ")
                yield problem and f"{what}: {problem}"
            lines = self.whole / "eval" / "metrics.jsonl"
            if not before and lines.exists() and lines.read_text():
                yield f"{what}: eval.py wrote metrics"

    @property
    def cases(self) -> list:
        """All of them."""
        return [
            self.a_video_in_training,
            self.steps_that_are_too_long,
            self.a_weight,
            self.a_video_afterwards,
        ]


def rows(quick: bool) -> list[results.Row]:
    """The table's rows; `quick`: NaN alone."""
    table = []
    with tempfile.TemporaryDirectory() as name:
        numbers = Numbers(pathlib.Path(name), quick)
        for case in tqdm.tqdm(numbers.cases, unit="case"):
            what = f"NaN or infinity: {case.__doc__}"
            if case == numbers.steps_that_are_too_long:
                what = case.__doc__
            table.append(results.judged(what, case()))
    return table
