"""Small records, settings and a quick network for the tests of training."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

from yt8m_distill import files, settings
from yt8m_distill.models import base, builder
from yt8m_distill.serving import export, served
from yt8m_distill.training import (
    actions,
    checkpoints,
    distribution,
    inputs,
    manifest,
    modes,
    phase_runner,
    trainer,
)

SUFFIX = ".ATTRIBUTES/VARIABLE_VALUE"  # Of a variable's key in a checkpoint.
NAMES, SIZES, NUM_CLASSES = ("rgb", "audio"), (8, 4), 10
MIN_FRAMES, MAX_FRAMES, STUDENT_K = 12, 20, 6
LSTM_TEACHER = "HierarchicalLSTM(cells=4, layers=1, block_len=5, dropout=0.3)"
LSTM_STUDENT = "HierarchicalLSTM(cells=4, layers=1, block_len=3, dropout=0.3)"


@base.MODELS.register("MeanTanh")
class MeanTanh(base.VideoClassifier):
    """Mean of tanh(W x_t): everything a network has, and traced in no time."""

    def __init__(
        self,
        feature_size,
        num_classes,
        max_frames,
        units=6,
        head="logistic",
        dropout=0.5,
        encoding_size=None,
    ):
        super().__init__(
            feature_size, num_classes, max_frames, head, dropout, encoding_size
        )
        self.kernel = self.add_weight(
            name="kernel", shape=(feature_size, units), initializer="glorot_uniform"
        )
        self.build_classifier(units)

    def encoder_kernels(self):
        return [self.kernel]

    def multiply_adds(self, num_frames):
        size = base.num_weights([self.kernel])
        return {"frames": num_frames * size, **self.classifier_multiply_adds()}

    def encode(self, frames, num_frames, state_indices, training, noise):
        x = tf.tanh(4 * tf.matmul(frames, tf.convert_to_tensor(self.kernel)))
        count = tf.cast(tf.maximum(num_frames, 1), tf.float32)
        encoding = tf.reduce_sum(x, axis=1) / count[:, tf.newaxis]
        if state_indices is None:
            return encoding, None
        return encoding, tf.gather(x, state_indices, batch_dims=1)


def build_networks(run, names, share_classifier=False, to_be_read=False):
    """New networks of these roles, as the settings describe them."""
    roles = [modes.networks(run)[name] for name in sorted(names, reverse=True)]
    shares = "teacher" if share_classifier else None
    roles = [
        dataclasses.replace(
            role, shares_classifier_with=shares if role.name == "student" else None
        )
        for role in roles
    ]
    return builder.build_networks(roles, run.data, to_be_read)


def plan_of(run) -> manifest.Plan:
    """The phases' entries in the manifest of a run."""
    phases = modes.phases(run, resolved=False)
    return manifest.Plan("", [{"phase": p.name, "roles": p.describe()} for p in phases])


def build_network(name, run):
    """The new network of one role."""
    return build_networks(run, [name]).network(name)


def evaluation_dataset(run, strategy, names, batch_size: int):
    """The training videos, each once, in the views of these networks."""
    shards, views = inputs.training_shards(run), modes.views_of(run, names)
    return inputs.evaluation_dataset(strategy, shards, views, batch_size)


def make_example(video_id: str, labels, frames, sizes=SIZES, id_key="id") -> bytes:
    """One frame-level record; frames [T, D] uint8 holds all features side by side."""
    example = tf.train.SequenceExample()
    example.context.feature[id_key].bytes_list.value.append(video_id.encode())
    example.context.feature["labels"].int64_list.value.extend(labels)
    parts = np.split(frames, np.cumsum(sizes)[:-1], axis=1)
    for name, part in zip(NAMES, parts, strict=True):
        steps = example.feature_lists.feature_list[name].feature
        for row in part:
            steps.add().bytes_list.value.append(row.tobytes())
    return example.SerializeToString(deterministic=True)


def make_videos(count: int, seed: int, prefix: str = "v") -> list:
    """(id, labels, frames [T, 12] uint8) of videos whose frames tell their labels."""
    width = sum(SIZES)
    directions = np.random.default_rng(0).normal(size=(NUM_CLASSES, width))
    random = np.random.default_rng(seed)
    videos = []
    for number in range(count):
        # Few classes are frequent, as in real data: a prior to be better than.
        odds = 0.8 ** np.arange(NUM_CLASSES)
        labels = random.choice(
            NUM_CLASSES, random.integers(1, 4), replace=False, p=odds / odds.sum()
        )
        length = random.integers(MIN_FRAMES, MAX_FRAMES + 1)
        noise = random.normal(size=(length, width))
        frames = 128 + 40 * directions[labels].sum(axis=0) + 25 * noise
        frames = np.clip(frames, 0, 255).astype(np.uint8)
        videos.append((f"{prefix}{number:03d}", labels.tolist(), frames))
    return videos


def write_shard(path, videos) -> str:
    """Writes videos as a TFRecord file."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for video in videos:
            writer.write(make_example(*video))
    return str(path)


def write_data(folder: pathlib.Path, num_train: int = 36, num_valid: int = 12) -> None:
    """Two training shards and one for validation."""
    folder.mkdir(parents=True, exist_ok=True)
    videos = make_videos(num_train, seed=1, prefix="t")
    write_shard(folder / "train-0.tfrecord", videos[: num_train // 2])
    write_shard(folder / "train-1.tfrecord", videos[num_train // 2 :])
    write_shard(folder / "validate-0.tfrecord", make_videos(num_valid, 2, "e"))


def make_run(train_dir, data, **changes) -> settings.RunSettings:
    """Settings of a small run on the data of `write_data`."""
    values = {
        "feature_names": ",".join(NAMES),
        "feature_sizes": ",".join(map(str, SIZES)),
        "num_classes": NUM_CLASSES,
        "max_frames": MAX_FRAMES,
        "student_k": STUDENT_K,
        "teacher": "MeanTanh(units=6)",
        "mode": "teacher",
        "train_dir": str(train_dir),
        "train_data_pattern": f"{data}/train-*.tfrecord",
        "validation_data_pattern": f"{data}/validate-*.tfrecord",
        "batch_size": 8,
        "num_epochs": 2,
        "base_learning_rate": 0.02,
        "shuffle_buffer_size": 16,
        "num_readers": 2,
        "steps_per_loop": 2,
        "log_steps": 2,
        "top_k": 5,
    }
    return settings.RunSettings.from_dict({**values, **changes})


def cpus(count: int) -> tf.distribute.Strategy:
    """A strategy over that many logical CPUs."""
    return distribution.mirrored_strategy([f"CPU:{i}" for i in range(count)])


def train(run: settings.RunSettings, replicas: int = 1) -> dict:
    """Trains a run."""
    return trainer.train(run, cpus(replicas))


def build_phase(run, replicas: int = 1, prepare=None) -> phase_runner.PhaseRunner:
    """The only phase of a run, before its first step.

    Args:
        run: the settings.
        replicas: logical CPUs.
        prepare: called with the networks.
    """
    (phase,) = modes.phases(run, resolved=False)
    data = inputs.Data(inputs.training_shards(run))
    runner = phase_runner.PhaseRunner(phase, run, cpus(replicas), None, data)
    runner._build()
    if prepare:
        prepare(runner.networks)
    return runner


def first_gradients(runner: phase_runner.PhaseRunner) -> tuple[dict, dict]:
    """As gradients_of, of the first batch."""
    batch, *_ = runner._dataset(0, 0)  # To its end: see PhaseRunner._open_cache.
    return gradients_of(runner, batch)


def gradients_of(runner: phase_runner.PhaseRunner, batch) -> tuple[dict, dict]:
    """Role → gradients of a batch, and its metrics; nothing is traced."""
    gradients, metrics, finite = runner.strategy.run(
        runner.step.compute, args=(batch, tf.constant(0, tf.int64))
    )
    local = runner.strategy.experimental_local_results
    assert bool(local(finite)[0])
    found = {k: [local(g)[0].numpy() for g in v] for k, v in gradients.items()}
    values = local(metrics)[0].numpy()
    return found, dict(zip(runner.step.metric_names, values, strict=True))


def change(run: settings.RunSettings, **changes) -> settings.RunSettings:
    """The run with some settings changed."""
    return settings.RunSettings.from_dict({**run.to_dict(), **changes})


def latest(train_dir, phase: str) -> str:
    """Prefix of a phase's newest checkpoint."""
    return tf.train.latest_checkpoint(f"{train_dir}/{phase}/{checkpoints.CHECKPOINTS}")


def best(train_dir, phase: str, role: str) -> str:
    """Prefix of a phase's best network."""
    return checkpoints.read_best(str(train_dir), phase, role).prefix


def best_weights(run, phase: str, role: str) -> dict[str, np.ndarray]:
    """Name → value of the best network of a role after a phase."""
    values = read_variables(best(run.training.train_dir, phase, role))
    return {k: v for k, v in values.items() if k.startswith(f"{role}/")}


def read_variables(prefix: str) -> dict[str, np.ndarray]:
    """Name → value of the numbers in a checkpoint."""
    reader = tf.train.load_checkpoint(prefix)
    names = reader.get_variable_to_shape_map()
    values = {name: np.asarray(reader.get_tensor(name)) for name in names}
    return {
        name: value
        for name, value in values.items()
        # Texts (the graph, the notes) and the count of saves are no weights.
        if value.dtype.kind in "fiu" and not name.startswith("save_counter")
    }


def of(values: dict, part: str) -> dict:
    """The entries whose name begins with `part`, without it."""
    cut = len(part)
    return {k[cut:]: v for k, v in values.items() if k.startswith(part)}


def assert_identical(a: dict, b: dict) -> None:
    """Same names, and the same bits under each."""
    assert a.keys() == b.keys()
    assert a, "nothing was compared"
    different = [k for k in a if not np.array_equal(a[k], b[k])]
    assert not different


def assert_close(a: dict, b: dict, rtol: float = 1e-7, atol: float = 0.0) -> None:
    """Same names, and under each numbers that differ by so little."""
    assert a.keys() == b.keys()
    assert a, "nothing was compared"
    for name, value in a.items():
        np.testing.assert_allclose(value, b[name], rtol, atol, err_msg=name)


def served_scores(opened, run, folder, shards: str, top_k: int) -> np.ndarray:
    """Best scores of all records, as an export of an opened network answers them."""
    (view,) = opened.views.values()
    given = served.Served(opened.network, run.data, view, top_k)
    export.export(given, str(folder))
    serve = tf.saved_model.load(str(folder)).signatures["serving_default"]
    records = [r.numpy() for r in tf.data.TFRecordDataset(tf.io.gfile.glob(shards))]
    return serve(example_bytes=tf.constant(records))["predictions"].numpy()


@contextlib.contextmanager
def full_disk(num_bytes: int):
    """Within it no file can grow beyond that; skips where the system has no such."""
    resource = pytest.importorskip("resource", reason="no limits on this system")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Stop(Exception):
    """Stands for whatever ends a process."""


@contextlib.contextmanager
def stopped(monkeypatch, phase: str, step: int):
    """Within it, a run ends at that step of that phase, with a checkpoint.

    Used as `with stopped(...): train(run)`; the end is checked.
    """

    def stop(self, loop, chunk):
        if loop.name == phase and loop.step >= step:
            self.state.save()
            raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(actions.Save, "after_steps", stop)
        yield


@contextlib.contextmanager
def killed_copy(
    train_dir,
    name: str,
    phase: str,
    step: int,
    save: bool = False,
    before=(actions.Save, "after_steps"),
):
    """Within it, a run leaves a copy of its folder, as if it had been killed.

    So one training gives the end of a run without a stop and all that `resume` needs.

    Args:
        train_dir: of the run that is trained; the copy is <train_dir>.<name>.
        name: of the copy, for `resume`.
        phase, step: the moment is the first one at that step or after it.
        save: whether the state is saved then.
        before: action and method whose call is the moment.
    """
    action, method = before
    original, copy = getattr(action, method), f"{train_dir}.{name}"

    def keep(self, loop, *arguments):
        if loop.name == phase and loop.step >= step and not os.path.exists(copy):
            if save:
                self.state.save()
            shutil.copytree(train_dir, copy)
        original(self, loop, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(action, method, keep)
        yield
    assert os.path.exists(copy), "there was no such moment"


def resume(run, name: str, folder, replicas: int = 1, **changes):
    """Continues a copy of a `killed_copy` in a folder; returns its settings."""
    train_dir = os.path.join(folder, name)
    shutil.copytree(f"{run.training.train_dir}.{name}", train_dir)
    resumed = change(run, train_dir=train_dir, **changes)
    train(resumed, replicas)
    return resumed


def initialized(run, phase: str, monkeypatch):
    """The networks of a phase before its first step."""
    found, original = {}, phase_runner.PhaseRunner._train

    def look(self):
        if self.phase.name != phase:
            return original(self)
        found["networks"] = self.networks
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(phase_runner.PhaseRunner, "_train", look)
        with pytest.raises(Stop):
            train(run)
    return found["networks"]


def refusal(run, replicas: int = 1) -> str:
    """The one line with which a run is refused, before anything is written."""

    def look():
        return os.path.exists(run.training.train_dir), snapshot(run.training.train_dir)

    before = look()
    with pytest.raises(ValueError) as caught:
        train(run, replicas)
    assert "\n" not in str(caught.value) and look() == before
    return str(caught.value)


def without(value, names):
    """A result without some entries."""
    if isinstance(value, dict):
        return {k: without(v, names) for k, v in value.items() if k not in names}
    return [without(v, names) for v in value] if isinstance(value, list) else value


def end_of(train_dir) -> dict[str, object]:
    """All that two runs must have in common: names → bits and results."""
    train_dir = pathlib.Path(train_dir)
    content = manifest.read_json(str(train_dir / manifest.MANIFEST))
    times = ("videos_per_second", "time", "seconds")
    found: dict[str, object] = {}
    for phase, entry in content["phases"].items():
        found[f"{phase} finished"] = entry["finished"]
        found[f"{phase} results"] = without(entry["results"], times)
        prefixes = {"state": latest(train_dir, phase)}
        for role in os.listdir(train_dir / phase / checkpoints.BEST):
            kept = checkpoints.read_best(str(train_dir), phase, role)
            prefixes[f"best {role}"] = kept.prefix
            found[f"{phase} best {role} step"] = kept.step
        for kind, prefix in prefixes.items():
            for name, value in read_variables(prefix).items():
                bits = (str(value.dtype), value.shape, value.tobytes())
                found[f"{phase} {kind} {name}"] = bits
        lines = read_lines(train_dir / phase / "metrics.jsonl")
        validations = [line for line in lines if line["kind"] == "validation"]
        found[f"{phase} validations"] = without(validations, times)
    return found


def assert_same_end(one: dict, other: dict) -> None:
    """Two results of `end_of` are equal, bit for bit."""
    assert one.keys() == other.keys() and one
    different = [name for name in one if one[name] != other[name]]
    assert not different


def assert_ends_alike(whole, other, phase: str) -> None:
    """Both runs have the same bits and results in a phase, and nothing is left over."""
    folders = [pathlib.Path(run.training.train_dir) for run in (whole, other)]
    assert_same_end(*(of(end_of(folder), f"{phase} ") for folder in folders))
    for folder in (folders[1] / phase / checkpoints.BEST).iterdir():
        assert len(list(folder.iterdir())) == 3  # One network, and what names it.


def fill(variables, seed: int, scale: float = 1.0) -> None:
    """Assigns normal numbers to the float variables."""
    random = np.random.default_rng(seed)
    for variable in variables:
        if "float" in str(variable.dtype):
            variable.assign(random.normal(0, scale, variable.shape))


def read_lines(path) -> list[dict]:
    """The objects of a JSON-lines file."""
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


def snapshot(folder) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    paths = sorted(pathlib.Path(folder).rglob("*"))
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in paths
        if p.is_file() and p.name != files.LOCK
    }


def copy_without(run, train_dir: pathlib.Path, phase: str):
    """A copy of a finished run in which a phase, and what follows, never began."""
    shutil.copytree(run.training.train_dir, train_dir)
    content = manifest.read_json(f"{train_dir}/manifest.json")
    names = [p.name for p in modes.phases(run)]
    for name in names[names.index(phase) :]:
        shutil.rmtree(train_dir / name)
        del content["phases"][name]
    manifest.write_json(f"{train_dir}/manifest.json", content)
    return change(run, train_dir=str(train_dir))
