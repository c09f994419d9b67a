"""Every setting once: default, unit, help and rule.

Frozen dataclasses, one a concern. `flag_groups` turns their fields into absl
flags of the same name and flags back into them; nothing here knows of flags,
but the messages speak their language, since that is where the value came from.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

from yt8m_distill import registry

# The two networks that have a flag; also their roles' names.
TEACHER, STUDENT = "teacher", "student"
MODES = ("teacher", "baseline", "serial", "parallel")
GUIDED_MODES = ("serial", "parallel")
STUDENT_STARTS = ("new", "teacher")
CLASSIFIERS = ("auto", "shared", "copied", "own")
MATCHES = ("final", "intermediate", "both")
PREDICTION_DISTANCES = ("binary_kl", "class_kl", "squared")
REGULARIZATION_SCOPES = ("all", "classifier")
USES_OF_INDEX = ("auto", "always", "never")
DTYPE_POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")
BAD_RECORDS = ("stop", "skip")
MISSING_FEATURES = ("refuse", "zeros")
NETWORKS = ("auto", TEACHER, STUDENT)
TEACHER_MEANS = ("probabilities", "logits")
SCHEDULES = ("exponential", "cosine")
MIXES = ("none", "cut", "mixup")
EXPORT_FORMATS = ("saved_model", "litert", "litert_int8", "onnx")

# YouTube-8M 2019: frames of a segment, and segments that count per class.
SEGMENT_FRAMES, SEGMENT_MAX_PRED = 5, 100_000


# The settings that matter most, for `--help`.
IMPORTANT = (
    *("mode", "student_k", "student_loss", "feature_names", "feature_sizes"),
    *("num_classes", "validation_data_pattern", "batch_size", "num_epochs"),
    *("base_learning_rate", "run_once", "network", "checkpoint", "vocabulary"),
)

# What TensorFlow's operations take at most where a setting says nothing else.
_MAX_INT, _MAX_FLOAT = 2**31 - 1, 1e30


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    required: str = "",
    path: str = "",
) -> Any:
    """A dataclass field with the help text and the rules of its flag.

    Args:
        default: also says the type: int, float, bool or str.
        help: of the flag.
        choices: all values of a str.
        minimum, maximum: of a number; without a maximum it has that of its type.
        required: for a str that must not be empty, what to do.
        path: `file` (a local or remote path), `checkpoints` (one where TensorFlow reads
            checkpoints) or `pattern` (globs).
    """
    if maximum is None and type(default) in (int, float):
        maximum = _MAX_INT if type(default) is int else _MAX_FLOAT
    metadata = {"help": help, "choices": choices, "required": required, "path": path}
    metadata |= {"minimum": minimum, "maximum": maximum}
    return dataclasses.field(default=default, metadata=metadata)


def split_names(text: str) -> tuple[str, ...]:
    """`"rgb, audio"` → `("rgb", "audio")`."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


YOUTUBE_8M = (-2.0, 2.0)  # Range of its quantized numbers.


def parse_ranges(text: str, flag: str) -> tuple[tuple[float, float], ...]:
    """`"-2:2, 0:6.5"` → ((-2.0, 2.0), (0.0, 6.5)).

    Raises:
        ValueError: naming the flag, if that is not what it is.
    """
    found = []
    for part in split_names(text):
        low, colon, high = part.partition(":")
        try:
            found.append((float(low), float(high)))
        except ValueError as error:
            raise ValueError(f"--{flag}={text}: {part!r} is not low:high.") from error
        if not -1e30 < found[-1][0] < found[-1][1] < 1e30:
            raise ValueError(f"--{flag}={text}: {part!r} is no range.")
    return tuple(found)


_SAMPLERS = ("frame_sampler", "train_frame_sampler")
# Settings that are a registered name with arguments, and those that are a list.
_SPECIFICATIONS = ("teacher", "student", "optimizer", *_SAMPLERS)
_LISTS = ("feature_names", "feature_sizes", "feature_ranges")
_LISTS += ("student_loss", "label_loss", "student_k")


def _canonical(name: str, value: Any) -> Any:
    """What a setting's value means: spaces, quotes and the order of arguments apart."""
    if name in _SPECIFICATIONS and isinstance(value, str):
        try:
            return registry.parse(value)
        except ValueError:
            return value
    if name in _LISTS and isinstance(value, str):
        return value.replace(" ", "")
    return value


def is_same(name: str, one: Any, other: Any) -> bool:
    """Whether two values of a setting mean the same, in whichever spelling."""
    return _canonical(name, one) == _canonical(name, other)


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """`--seed: was 1, is 2; …` of the settings that mean something else."""
    return "; ".join(
        f"--{name}: was {stored.get(name)!r}, is {wanted.get(name)!r}"
        for name in sorted({*stored, *wanted})
        if not is_same(name, stored.get(name), wanted.get(name))
    )


_TYPES = {int: "a whole number", float: "a number", bool: "a bool", str: "a text"}


def _problem(value, kind, *, choices, minimum, maximum, required, path, **_) -> str:
    """The rule that a value breaks, as the end of `--flag=value ...`, or nothing."""
    allowed = (int, float) if kind is float else (kind,)
    if type(value) not in allowed:  # From a file; a bool is no int.
        return f"={value!r} is not {_TYPES[kind]}."
    if kind is str:
        if "\0" in value or not _is_utf8(value):
            return f"={ascii(value)} is not valid UTF-8."
        if required and not value:
            return f" is empty: {required}"
        if choices and value not in choices:
            return f"={value} is not one of {', '.join(choices)}."
        wrong = re.search(r"[\[\\]", value) if path == "checkpoints" else None
        if wrong:
            return (
                f"={value} contains {wrong[0]}, which TensorFlow takes for a pattern: "
                "it could not read its checkpoints there."
            )
    if value != value:
        return f"={value} is not a number."
    if minimum is not None and value < minimum:
        return f"={value} is less than {minimum}."
    if maximum is not None and value > maximum:
        return f"={value} is more than {maximum}."
    return ""


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of all groups: checks each field's rule, then the group's own."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, path = getattr(self, field.name), field.metadata["path"]
            if path in ("file", "checkpoints") and isinstance(value, str):
                value = os.path.expanduser(value)
                object.__setattr__(self, field.name, value)
            problem = _problem(value, field.type, **field.metadata)
            if problem:
                raise ValueError(f"--{field.name}{problem}")
        self.check()

    def check(self) -> None:
        """Rules between fields; raises ValueError."""


@dataclasses.dataclass(frozen=True)
class DataSettings(Settings):
    """What the records hold."""

    feature_names: str = setting(
        "rgb,audio",
        "Names of the features to read, comma separated, in the order in which "
        "they are concatenated.",
    )
    feature_sizes: str = setting(
        "1024,128",
        "Width of each feature, comma separated, in the order of --feature_names.",
    )
    num_classes: int = setting(
        3862,
        "Number of classes: 4800 (YouTube-8M 2016), 4716 (2017), 3862 (2018 on), "
        "527 (AudioSet).",
        minimum=1,
        maximum=1_000_000,
    )
    max_frames: int = setting(
        300,
        "Frames of a video that are read at most; the rest is cut.",
        minimum=1,
        maximum=100_000,
    )
    video_id_key: str = setting(
        "id", "Context key of the video's id: 'id', or 'video_id' (AudioSet)."
    )
    labels_key: str = setting("labels", "Context key of the label indices.")
    missing_feature: str = setting(
        "refuse",
        "What to do about a video that lacks one of several features, such as audio. "
        "refuse: it is an invalid record. zeros: frames of byte 127, the nearest to 0.",
        choices=MISSING_FEATURES,
    )
    feature_ranges: str = setting(
        "",
        "What the bytes 0 and 255 of each feature stand for, low:high, comma separated "
        "in the order of --feature_names; yt8m-inspect prints what the records say. "
        "Empty: -2:2 for all, as in YouTube-8M.",
    )
    frame_features: bool = setting(
        True,
        "True: SequenceExamples with uint8 frames. False: video-level Examples "
        "with float features, such as --feature_names=mean_rgb,mean_audio.",
    )
    segment_labels: bool = setting(
        False,
        "Read the rated segments of the videos (YouTube-8M 2019), 5 seconds each, "
        "instead of the videos.",
    )
    segment_negatives: float = setting(
        0.0,
        "With --segment_labels, in training: weight of the classes that are neither "
        "rated in a segment nor labels of its video, as negatives. A rated class has "
        "weight 1.",
        minimum=0,
    )

    @property
    def names(self) -> tuple[str, ...]:
        return split_names(self.feature_names)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(int(size) for size in split_names(self.feature_sizes))

    @property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """Low and high of each feature's 8-bit numbers."""
        if not self.feature_ranges:
            return (YOUTUBE_8M,) * len(self.names)
        return parse_ranges(self.feature_ranges, "feature_ranges")

    @property
    def feature_size(self) -> int:
        """Width of a frame, all features together."""
        return sum(self.sizes)

    def require_frames(self, what: str) -> None:
        """Raises ValueError for video-level records.

        Args:
            what: needs frames, the beginning of a sentence.
        """
        if not self.frame_features:
            raise ValueError(f"--noframe_features: {what} needs records of frames.")

    def check(self) -> None:
        try:
            sizes = self.sizes
        except ValueError as error:
            raise ValueError(
                f"--feature_sizes={self.feature_sizes} is not a comma separated "
                "list of whole numbers."
            ) from error
        if not self.names:
            raise ValueError("--feature_names is empty.")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"--feature_names={self.feature_names} repeats a name.")
        if len(self.names) != len(sizes):
            raise ValueError(
                f"--feature_names={self.feature_names} has {len(self.names)} entries, "
                f"--feature_sizes={self.feature_sizes} has {len(sizes)}."
            )
        if not all(1 <= size <= 1_000_000 for size in sizes):
            raise ValueError(
                f"--feature_sizes={self.feature_sizes} has a size outside 1..1000000."
            )
        if self.segment_labels:
            self.require_frames("--segment_labels")
        given = f"--feature_ranges={self.feature_ranges}"
        if len(self.ranges) != len(sizes):
            raise ValueError(
                f"{given} has {len(self.ranges)} entries, --feature_names="
                f"{self.feature_names} has {len(sizes)}."
            )
        symmetric = all(low == -high for low, high in self.ranges)
        if self.missing_feature == "zeros" and not symmetric:
            raise ValueError(
                f"--missing_feature=zeros writes byte 127, which is not 0 in {given}."
            )


@dataclasses.dataclass(frozen=True)
class ReadingSettings(Settings):
    """How shards are read, the same in training and afterwards."""

    num_readers: int = setting(8, "Shards read in parallel.", minimum=1, maximum=1024)
    use_index: str = setting(
        "auto",
        "Read only the frames of a view, by an index of each local shard. auto: build "
        "the indices that are missing, and parse what cannot have one (remote and "
        "compressed shards); always: stop there; never: parse all.",
        choices=USES_OF_INDEX,
    )
    index_dir: str = setting(
        "",
        "Folder of the indices. Empty: next to the shards, or a cache folder where "
        "that cannot be written.",
        path="file",
    )
    bad_records: str = setting(
        "stop",
        "What to do about an invalid record. stop: name it and stop. skip: leave it "
        "out and count it.",
        choices=BAD_RECORDS,
    )
    max_bad_fraction: float = setting(
        0.01,
        "With --bad_records=skip: share of invalid records above which to stop all the "
        "same.",
        minimum=0,
        maximum=1,
    )


@dataclasses.dataclass(frozen=True)
class SamplingSettings(Settings):
    """Which frames the student sees."""

    student_k: str = setting(
        "30",
        "Frames of a video that the student sees. Several numbers, as in 6,10,15,30, "
        "train one student for all of them and those between.",
    )
    frame_sampler: str = setting(
        "uniform",
        "How the student's frames are chosen: uniform, uniform_stride, uniform_jitter, "
        "random, first, middle, last, last_padded, first_middle_last, uniform_center, "
        "nested, all; a sampler of one's own may take arguments, as in 'name(step=3)'.",
    )
    train_frame_sampler: str = setting(
        "",
        "How the student's frames are chosen in training, where that is to differ from "
        "--frame_sampler: uniform_jitter or random show other frames in every epoch. "
        "Empty: as --frame_sampler.",
    )
    best_budget: int = setting(
        0,
        "With several --student_k: the one whose GAP decides which epoch was the best. "
        "0: the mean of all.",
        minimum=0,
    )
    segment_context: int = setting(
        3,
        "With --segment_labels: frames before and after a segment that the student "
        "sees, too.",
        minimum=0,
        maximum=100_000,
    )

    def __post_init__(self) -> None:
        if type(self.student_k) is int:  # From Python or a file.
            object.__setattr__(self, "student_k", str(self.student_k))
        super().__post_init__()

    def check(self) -> None:
        numbers = split_names(self.student_k)
        if not numbers or not all(n.isdecimal() and int(n) for n in numbers):
            raise ValueError(
                f"--student_k={self.student_k} is not a whole number above 0, or "
                "several separated by commas."
            )

    @property
    def budgets(self) -> tuple[int, ...]:
        """Each number of frames once, the smallest first."""
        return tuple(sorted({int(n) for n in split_names(self.student_k)}))

    @property
    def largest_k(self) -> int:
        """Frames of the student's largest view."""
        return self.budgets[-1]


@dataclasses.dataclass(frozen=True)
class NetworkSettings(Settings):
    """The two networks."""

    teacher: str = setting(
        "HierarchicalLSTM(block_len=20)",
        "The teacher, with its arguments, such as 'HierarchicalLSTM(cells=512, "
        'num_blocks=20, head="moe")\': HierarchicalLSTM, LstmModel, AttentionPooling, '
        "NeXtVLAD, NetVLAD, DbofModel, TransformerModel, FrameLevelLogisticModel, "
        "LogisticModel or MoeModel. Heads: logistic, moe.",
    )
    student: str = setting(
        "",
        "The student: a model and its arguments, as in --teacher. Empty: the teacher's "
        "own, with block_len 5 (3 at k=6), or 5 blocks (3 at k=6) where the teacher "
        "gives num_blocks.",
    )
    import_modules: str = setting(
        "",
        "Modules of your own, comma separated, that register networks, losses, "
        "samplers or heads, such as my_package.my_models.",
    )
    dtype_policy: str = setting(
        "float32",
        "Precision of the matrix products; variables and losses are float32 always.",
        choices=DTYPE_POLICIES,
    )


@dataclasses.dataclass(frozen=True)
class DistillationSettings(Settings):
    """How the student learns."""

    mode: str = setting(
        "serial",
        "teacher: the teacher alone. baseline: a network on k frames from scratch. "
        "serial: a trained, frozen teacher guides the student. parallel: both learn "
        "in the same steps.",
        choices=MODES,
    )
    student_loss: str = setting(
        "ce + rep + pred",
        "The guided student's objective: a sum of ce or asymmetric, rep, "
        "rep_intermediate, relations and pred with weights, such as "
        "'ce + 0.001*rep + 0.01*pred'. 'rep' alone is followed by fine-tuning. "
        "self_pred: against its own predictions on the most of several --student_k.",
    )
    label_loss: str = setting(
        "ce",
        "What networks without a guide minimise (teacher, baseline, fine-tuning): ce, "
        "asymmetric, or a sum; with arguments, such as 'asymmetric(gamma_negative=4)' "
        "or 'ce(class_counts=\"counts.csv\")'. --student_loss takes them as terms. "
        "With --segment_labels also video_ce: the labels of the segment's video.",
    )
    match: str = setting(
        "final",
        "Which encodings the loss 'rep' compares: the final one, the intermediate ones "
        "at the sampled frames, or both.",
        choices=MATCHES,
    )
    prediction_distance: str = setting(
        "binary_kl",
        "Distance of the two networks' predictions in the loss 'pred'.",
        choices=PREDICTION_DISTANCES,
    )
    temperature: float = setting(
        1.0, "Divides the logits of both networks in the loss 'pred'.", minimum=1e-3
    )
    classifier: str = setting(
        "auto",
        "The student's classifier: shared with the teacher's, copied from it at the "
        "start, or its own. auto: shared in parallel mode, copied in serial mode.",
        choices=CLASSIFIERS,
    )
    teacher_checkpoint: str = setting(
        "",
        "Serial mode: a finished run's train_dir, or a checkpoint prefix, whose "
        "teacher is used; of several, separated by commas, the mean. Empty: the "
        "teacher of --train_dir, trained first where there is none.",
        path="checkpoints",
    )
    teacher_mean: str = setting(
        "probabilities",
        "With several teachers: whether the student learns the mean of their "
        "probabilities or of their logits.",
        choices=TEACHER_MEANS,
    )
    student_start: str = setting(
        "new",
        "Serial mode: the weights with which the student starts. new: random ones; "
        "teacher: all of the teacher's, which needs two networks of the same cells.",
        choices=STUDENT_STARTS,
    )
    video_context: bool = setting(
        False,
        "With --segment_labels in serial mode: the student also reads the teacher's "
        "encoding of the whole video, in training and afterwards.",
    )
    finetune_epochs: int = setting(
        1,
        "Epochs of the second stage with L_CE, which follows --student_loss=rep.",
        minimum=0,
    )
    teacher_cache: str = setting(
        "",
        "Serial mode: a folder for what the frozen teacher says of every training "
        "video, in float16. It is computed once and used in every epoch and run with "
        "the same teacher. Empty: compute it in every step.",
        path="file",
    )
    teacher_cache_top_k: int = setting(
        0,
        "Logits a video in the teacher cache; the other classes get one mean. 0: all.",
        minimum=0,
    )
    student_epochs: int = setting(
        0, "Serial mode: epochs of the student. 0: as --num_epochs.", minimum=0
    )


@dataclasses.dataclass(frozen=True)
class OptimizationSettings(Settings):
    """The optimizer and its schedule."""

    optimizer: str = setting(
        "Adam",
        "Adam, AdamW, SGD, RMSprop, Adagrad, Nadam or Lion, with arguments, such as "
        "'SGD(momentum=0.9)'. With the extra [addons] also tfa.LAMB, tfa.LazyAdam, "
        "tfa.NovoGrad, tfa.RectifiedAdam, tfa.AdaBelief.",
    )
    base_learning_rate: float = setting(0.001, "Initial learning rate.", minimum=0)
    learning_rate_schedule: str = setting(
        "exponential",
        "exponential: times --learning_rate_decay per --learning_rate_decay_examples, "
        "in steps. cosine: from the base rate to 0 over the phase.",
        choices=SCHEDULES,
    )
    learning_rate_decay: float = setting(
        0.95,
        "Factor of --learning_rate_schedule=exponential.",
        minimum=0,
        maximum=1,
    )
    learning_rate_decay_examples: float = setting(
        4_000_000.0,
        "Examples after which --learning_rate_decay is applied once more.",
        minimum=1,
    )
    warmup_examples: float = setting(
        0.0, "Examples over which the learning rate rises linearly from 0.", minimum=0
    )
    clip_gradient_norm: float = setting(
        1.0,
        "Largest global norm of a network's gradient, summed over replicas. 0: no "
        "clipping.",
        minimum=0,
    )
    regularization_penalty: float = setting(
        2.0,
        "L2 penalty, in units of 1e-8: penalty * 1e-8 * sum(w^2) / 2.",
        minimum=0,
    )
    regularization_scope: str = setting(
        "all",
        "Kernels under --regularization_penalty: all, or the classifier's only.",
        choices=REGULARIZATION_SCOPES,
    )
    ema_decay: float = setting(
        0.0,
        "Decay of a moving average of the weights, such as 0.999, which is what is "
        "validated, kept and exported; min(it, (1 + t) / (10 + t)) after step t. 0: "
        "the weights themselves.",
        minimum=0,
        maximum=1,
    )


@dataclasses.dataclass(frozen=True)
class TrainingSettings(Settings):
    """The run."""

    train_dir: str = setting(
        "",
        "Directory of the run: checkpoints, logs, settings.",
        required="name the directory of the run.",
        path="checkpoints",
    )
    train_data_pattern: str = setting(
        "",
        "Glob of the training shards; several separated by commas.",
        required="name the training shards.",
        path="pattern",
    )
    validation_data_pattern: str = setting(
        "",
        "Glob of the validation shards, evaluated after every epoch to keep the best "
        "by GAP. Empty: no validation, the last epoch is kept.",
        path="pattern",
    )
    unlabeled_data_pattern: str = setting(
        "",
        "Glob of shards whose videos fill a share of every batch of a guided student; "
        "their labels do not count.",
        path="pattern",
    )
    unlabeled_fraction: float = setting(
        0.5,
        "With --unlabeled_data_pattern: its share of every batch.",
        minimum=0,
        maximum=1,
    )
    train_fraction: float = setting(
        1.0,
        "Share of the training videos that is used, the same ones in every epoch.",
        minimum=1e-6,
        maximum=1,
    )
    label_fraction: float = setting(
        1.0,
        "Share of the training videos whose labels count, chosen by their ids alone. A "
        "phase without a guide leaves the others out; a guided student learns on them "
        "what its teacher says.",
        minimum=1e-6,
        maximum=1,
    )
    mix: str = setting(
        "none",
        "Makes each training video one with another of the batch; all networks of a "
        "step see the same. cut: the first part of one, then the rest of the other; "
        "mixup: their frames, weighted. Labels are weighted likewise.",
        choices=MIXES,
    )
    batch_size: int = setting(
        256, "Videos per step, over all replicas.", minimum=1, maximum=65_536
    )
    num_epochs: int = setting(5, "Passes over the training data.", minimum=1)
    max_steps: int = setting(
        0, "Steps after which a phase ends at the latest. 0: no limit.", minimum=0
    )
    seed: int = setting(0, "Seed of weights, order, dropout and sampling.", minimum=0)
    deterministic: bool = setting(
        False, "Only deterministic kernels: the same run gives the same bits."
    )
    shuffle_buffer_size: int = setting(
        2048,
        "Records among which the next one is drawn. 0: no shuffling.",
        minimum=0,
        maximum=10_000_000,  # TensorFlow reserves the buffer at once, 24 bytes each.
    )
    steps_per_loop: int = setting(20, "Steps inside one tf.function call.", minimum=1)
    log_steps: int = setting(
        10, "Steps between two log lines and TensorBoard points.", minimum=1
    )
    save_checkpoint_minutes: float = setting(
        10.0, "Minutes between checkpoints within an epoch.", minimum=0
    )
    max_checkpoints: int = setting(3, "Checkpoints kept of each phase.", minimum=1)
    allow_moved_shards: bool = setting(
        False,
        "Let a stopped run continue with training shards of the same names and sizes, "
        "whenever they were written.",
    )
    early_stop_epochs: int = setting(
        0,
        "Epochs without a better validation GAP after which a phase ends. 0: no limit.",
        minimum=0,
    )
    start_new_model: bool = setting(
        False,
        "Begin anew: an earlier run in --train_dir is moved aside, to "
        "<train_dir>.old-1 or the next number that is free.",
    )
    start_from: str = setting(
        "",
        "A run's train_dir, or a checkpoint prefix in one, from which the first phase "
        "takes its initial weights. With another --num_classes the encoder alone.",
        path="checkpoints",
    )
    num_gpus: int = setting(
        -1, "GPUs of this machine to use. -1: all; 0: the CPU.", minimum=-1
    )
    cluster_timeout_secs: float = setting(
        600.0,
        "With TF_CONFIG: seconds that a process waits for the others, at the start and "
        "in a step, before it stops.",
        minimum=1,
        maximum=1e6,
    )
    top_k: int = setting(20, "Predictions a video that the metrics use.", minimum=1)
    vocabulary: str = setting(
        "",
        "CSV with the names of the classes. It is kept with the run, where evaluation, "
        "inference and export find it.",
        path="file",
    )


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """All that defines a training run; stored as model_flags.json."""

    data: DataSettings
    reading: ReadingSettings
    sampling: SamplingSettings
    networks: NetworkSettings
    distillation: DistillationSettings
    optimization: OptimizationSettings
    training: TrainingSettings

    def __post_init__(self) -> None:
        k, max_frames = self.sampling.largest_k, self.data.max_frames
        if k > max_frames and self.distillation.mode != "teacher":
            raise ValueError(f"--student_k={k} is more than --max_frames={max_frames}.")
        best = self.sampling.best_budget
        if best and best not in self.sampling.budgets:
            raise ValueError(
                f"--best_budget={best} is not among "
                f"--student_k={self.sampling.student_k}."
            )
        patience = self.training.early_stop_epochs
        if patience and not self.training.validation_data_pattern:
            raise ValueError(
                f"--early_stop_epochs={patience} needs --validation_data_pattern."
            )
        if self.distillation.teacher_checkpoint and self.distillation.mode != "serial":
            raise ValueError(
                "--teacher_checkpoint goes with --mode=serial; received "
                f"--mode={self.distillation.mode}."
            )
        if self.distillation.teacher_cache and self.distillation.mode != "serial":
            raise ValueError(
                "--teacher_cache goes with --mode=serial, where the teacher is frozen; "
                f"received --mode={self.distillation.mode}."
            )
        if self.distillation.video_context and (
            self.distillation.mode != "serial" or not self.data.segment_labels
        ):
            raise ValueError(
                "--video_context goes with --segment_labels in --mode=serial."
            )
        mix = self.training.mix
        if mix != "none" and self.distillation.teacher_cache:
            raise ValueError(
                f"--mix={mix} makes other videos in every step, of which "
                "--teacher_cache knows nothing: use one of the two."
            )
        if mix == "cut":
            self.data.require_frames("--mix=cut")
        if (
            self.distillation.student_start == "teacher"
            and self.distillation.mode == "parallel"
        ):
            raise ValueError(
                "--student_start=teacher goes with --mode=serial: in parallel mode "
                "the teacher has nothing to give at the start."
            )
        if (
            self.distillation.mode == "serial"
            and self.distillation.classifier == "shared"
        ):
            raise ValueError(
                "--classifier=shared goes with --mode=parallel: in serial mode the "
                "teacher is frozen. Use copied or own."
            )

    def to_dict(self) -> dict[str, Any]:
        """Flat, name → value; names are unique over all groups."""
        return {
            field.name: getattr(group, field.name)
            for group in (getattr(self, g.name) for g in dataclasses.fields(self))
            for field in dataclasses.fields(group)
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunSettings":
        """The inverse of `to_dict`; a missing name takes its default.

        Raises:
            ValueError: if `values` has a name that no group knows.
        """
        groups, left = {}, dict(values)
        for group in dataclasses.fields(cls):
            known = [f.name for f in dataclasses.fields(group.type)]
            groups[group.name] = group.type(
                **{name: left.pop(name) for name in known if name in left}
            )
        if left:
            raise ValueError(f"Unknown settings: {', '.join(sorted(left))}.")
        return cls(**groups)


@dataclasses.dataclass(frozen=True)
class CheckpointSettings(Settings):
    """Which trained network a script reads."""

    train_dir: str = setting(
        "",
        "Directory of the training run.",
        required="name the directory of the run.",
        path="checkpoints",
    )
    network: str = setting(
        "auto",
        "Which network to read. auto: the student, or the teacher where there is none.",
        choices=NETWORKS,
    )
    checkpoint: str = setting(
        "best",
        "Which weights of the network: best (by validation GAP), latest, or a "
        "checkpoint prefix.",
        path="checkpoints",
    )
    student_k: int = setting(
        0,
        "Frames that the student reads, at most those it was trained on. 0: as in "
        "training.",
        minimum=0,
    )
    mean_frames: float = setting(
        0.0,
        "Early exit: frames to read per video, on average; each video stops once the "
        "student is sure enough. Needs the file of yt8m-calibrate. 0: no early exit.",
        minimum=0,
    )
    max_regret: float = setting(
        0.0,
        "Early exit with the fewest frames for which the regret, 1 - nDCG@20 against "
        "the answer on all frames, is at most this. 0: no early exit.",
        minimum=0,
        maximum=1,
    )
    confidence: float = setting(
        0.9,
        "With --max_regret: the probability with which its bound holds.",
        minimum=0.5,
        maximum=0.9999,
    )
    video_id_key: str = setting(
        "", "Context key of the video's id in the records. Empty: as in training."
    )
    batch_size: int = setting(
        256, "Videos per step, over all replicas.", minimum=1, maximum=65_536
    )
    top_k: int = setting(20, "Predictions a video.", minimum=1)
    num_gpus: int = setting(
        -1, "GPUs of this machine to use. -1: all; 0: the CPU.", minimum=-1
    )

    @property
    def asked(self) -> str:
        """The flag that asks for other frames than in training, with its value."""
        names = ("mean_frames", "max_regret", "student_k")
        given = [f"--{n}={getattr(self, n):g}" for n in names if getattr(self, n)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other.")
        return given[0] if given else ""

    @property
    def early_exit(self) -> str:
        """The flag that asks for early exit, with its value; empty: none does."""
        return "" if self.student_k else self.asked

    def check(self) -> None:
        _ = self.asked


@dataclasses.dataclass(frozen=True)
class CalibrationSettings(Settings):
    """Calibration of early exit."""

    calibration_data_pattern: str = setting(
        "",
        "Glob of the shards to calibrate on, such as the validation shards; several "
        "separated by commas.",
        required="name the shards.",
        path="pattern",
    )
    exit_rule: str = setting(
        "expected_saving",
        "How sure an answer is: expected_saving (a regression of what further frames "
        "would gain), max_probability, entropy or change.",
    )


@dataclasses.dataclass(frozen=True)
class EvalSettings(Settings):
    """Evaluation."""

    eval_data_pattern: str = setting(
        "",
        "Glob of the shards to evaluate; several separated by commas.",
        required="name the shards.",
        path="pattern",
    )
    run_once: bool = setting(
        False, "Evaluate once and stop; otherwise wait for new checkpoints."
    )
    eval_interval_secs: float = setting(
        30.0,
        "Seconds between two looks for a new checkpoint.",
        minimum=0.1,
        maximum=1e6,
    )
    output_file: str = setting(
        "",
        "With --run_once: also write the predictions to this CSV, in the same pass, as "
        "inference.py does. Empty: no CSV.",
        path="file",
    )
    vocabulary: str = setting(
        "",
        "CSV with the names of the classes, such as YouTube-8M's vocabulary.csv. With "
        "it, the best and worst classes are printed.",
        path="file",
    )
    per_class_file: str = setting(
        "",
        "With --run_once: CSV to write with the average precision of each class. "
        "Empty: none.",
        path="file",
    )
    segment_labels: bool = setting(
        False,
        "Evaluate on the rated segments of the videos (YouTube-8M 2019): mAP@K and GAP "
        "over their ratings.",
    )
    segment_context: int = setting(
        -1,
        "With --segment_labels: frames before and after a segment that the network "
        "sees, too. -1: as in training, or 3.",
        minimum=-1,
        maximum=100_000,
    )
    segment_max_pred: int = setting(
        SEGMENT_MAX_PRED,
        "With --segment_labels: K of mAP@K, segments that count per class.",
        minimum=1,
    )
    mean_with: str = setting(
        "",
        "With --segment_labels: train_dir of another run, whose network's logits are "
        "averaged with those of the network. One of whole videos answers for all "
        "segments of a video.",
        path="checkpoints",
    )
    mean_weight: float = setting(
        0.5,
        "With --mean_with: weight of the other network in the mean.",
        minimum=0,
        maximum=1,
    )

    def check(self) -> None:
        if self.output_file and not self.run_once:
            raise ValueError(f"--output_file={self.output_file} goes with --run_once.")
        if self.per_class_file and not self.run_once:
            raise ValueError(
                f"--per_class_file={self.per_class_file} goes with --run_once."
            )
        if self.output_file and self.segment_labels:
            raise ValueError(
                f"--output_file={self.output_file} does not go with --segment_labels: "
                "yt8m-inference --segments writes the CSV of segments."
            )
        if self.mean_with and not self.segment_labels:
            raise ValueError(
                f"--mean_with={self.mean_with} goes with --segment_labels."
            )


@dataclasses.dataclass(frozen=True)
class InferenceSettings(Settings):
    """Inference."""

    input_data_pattern: str = setting(
        "",
        "Glob of the shards to predict; several separated by commas.",
        required="name the shards.",
        path="pattern",
    )
    output_file: str = setting(
        "",
        "The CSV to write. With --num_shards=10 the CSV of part 3 has "
        "-00003-of-00010 before its extension.",
        required="name the CSV to write.",
        path="file",
    )
    vocabulary: str = setting(
        "",
        "CSV with the names of the classes, such as YouTube-8M's vocabulary.csv. With "
        "it, <output_file>.names.csv has the predictions with the names.",
        path="file",
    )
    num_shards: int = setting(
        1,
        "Parts into which the files are divided, each predicted by a process of its "
        "own; yt8m-merge joins their CSVs.",
        minimum=1,
        maximum=99_999,  # A part's name has five digits.
    )
    shard_index: int = setting(
        0,
        "Which of the --num_shards parts to predict, counted from 0: a range of the "
        "sorted files.",
        minimum=0,
        maximum=99_998,
    )

    segments: bool = setting(
        False,
        "Score the segments of the videos (YouTube-8M 2019) instead of the videos, and "
        "write the CSV Class,Segments.",
    )
    segment_stride: int = setting(
        SEGMENT_FRAMES,
        "With --segments: frames from the start of a segment to that of the next.",
        minimum=1,
    )
    segment_context: int = setting(
        -1,
        "With --segments: frames before and after a segment that the network sees, "
        "too. -1: as in training, or 3.",
        minimum=-1,
        maximum=100_000,
    )
    segment_margins: str = setting(
        "0,0",
        "With --segments: how many are left out at the start and at the end of each "
        "video. YouTube-8M rates none of the first 6 and the last 2: 6,2.",
    )
    segment_max_pred: int = setting(
        SEGMENT_MAX_PRED, "With --segments: segments per class at most.", minimum=1
    )
    segment_label_ids_file: str = setting(
        "",
        "With --segments: CSV with the classes to write in its first column, such as "
        "Kaggle's segment_label_ids.csv. Empty: all.",
        path="file",
    )
    mean_with: str = setting(
        "",
        "With --segments: train_dir of another run, whose network's logits are "
        "averaged with those of the network. One of whole videos answers for all "
        "segments of a video.",
        path="checkpoints",
    )
    mean_weight: float = setting(
        0.5,
        "With --mean_with: weight of the other network in the mean.",
        minimum=0,
        maximum=1,
    )

    @property
    def margins(self) -> tuple[int, int]:
        """Segments that are left out at the start and at the end."""
        before, after = map(int, split_names(self.segment_margins))
        return before, after

    def check(self) -> None:
        if self.shard_index >= self.num_shards:
            raise ValueError(
                f"--shard_index={self.shard_index} is not below "
                f"--num_shards={self.num_shards}."
            )
        numbers = split_names(self.segment_margins)
        if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
            raise ValueError(
                f"--segment_margins={self.segment_margins} is not two whole numbers, "
                "as in 6,2."
            )
        if self.vocabulary and self.segments:
            raise ValueError(
                f"--vocabulary={self.vocabulary} does not go with --segments."
            )
        if self.mean_with and not self.segments:
            raise ValueError(f"--mean_with={self.mean_with} goes with --segments.")


@dataclasses.dataclass(frozen=True)
class ExportSettings(Settings):
    """Export."""

    export_dir: str = setting(
        "",
        "Folder of the exported model. Empty: <train_dir>/export/<network>, with the "
        "format's name behind it where that is not saved_model.",
        path="checkpoints",
    )
    format: str = setting(
        "saved_model",
        "saved_model: for TensorFlow Serving, takes serialized records. litert, onnx: "
        "a file that takes the student's frames, without TensorFlow. litert_int8: a "
        "quarter of the size, with weights of 8 bits.",
        choices=EXPORT_FORMATS,
    )
    eval_data_pattern: str = setting(
        "",
        "Glob of shards on whose videos, all of them, the exported model is run next "
        "to the network; both GAPs are reported. Empty: on frames of noise.",
        path="pattern",
    )
    vocabulary: str = setting(
        "",
        "CSV with the names of the classes, stored with the model. Empty: that of the "
        "run.",
        path="file",
    )
    extraction_manifest: str = setting(
        "",
        "The manifest that yt8m-extract wrote with the training records. With it, "
        "yt8m-tag takes video files.",
        path="file",
    )


@dataclasses.dataclass(frozen=True)
class FeatureSettings(Settings):
    """How videos become features."""

    image_network: str = setting(
        "",
        "The network that makes a vector of each frame: 'keras_application(name=\""
        'InceptionV3", weights="inception_notop.h5")\', \'saved_model(folder="cnn")\' '
        "or 'onnx(file=\"cnn.onnx\", mean=0.5, std=0.5)'.",
    )
    pca: str = setting(
        "",
        "Folder with mean.npy, eigenvals.npy and eigenvecs.npy, by which the vectors "
        "are projected and whitened, as YouTube-8M's were. Empty: they are kept.",
        path="file",
    )
    feature_range: str = setting(
        "-2:2",
        "Numbers of the vectors that become the bytes 0 and 255; what is outside is "
        "clipped.",
    )
    audio_network: str = setting(
        "",
        "The network that makes a vector of the 0.96 s of sound that begin with each "
        "frame, from log-mel examples [96, 64] as VGGish's: "
        "'saved_model(folder=\"vggish\")' or 'onnx(file=\"vggish.onnx\")'. Empty: no "
        "feature audio.",
    )
    audio_pca: str = setting("", "Of sound, as --pca.", path="file")
    audio_range: str = setting("-2:2", "Of sound, as --feature_range.")
    fps: float = setting(
        1.0, "Frames per second of a video.", minimum=1e-3, maximum=1000
    )
    max_frames: int = setting(
        300,
        "Frames of a video at most, from its beginning.",
        minimum=1,
        maximum=100_000,
    )

    @property
    def range(self) -> tuple[float, float]:
        """Low and high of --feature_range."""
        return parse_ranges(self.feature_range, "feature_range")[0]

    @property
    def sound_range(self) -> tuple[float, float]:
        """Low and high of --audio_range."""
        return parse_ranges(self.audio_range, "audio_range")[0]

    def check(self) -> None:
        for flag in ("feature_range", "audio_range"):
            text = getattr(self, flag)
            if len(parse_ranges(text, flag)) != 1:
                raise ValueError(f"--{flag}={text} is not low:high.")


@dataclasses.dataclass(frozen=True)
class ExtractionSettings(Settings):
    """From video files to records."""

    videos: str = setting(
        "",
        "Glob of the video files; several separated by commas.",
        required="name the video files.",
        path="pattern",
    )
    output: str = setting(
        "",
        "The TFRecord file to write; the manifest <output>.json says what made it.",
        required="name the file of records to write.",
        path="file",
    )
    labels: str = setting(
        "",
        "CSV with a header; each row has a video, by its path or name with or without "
        "extension, and its labels: names or numbers of classes, several separated by "
        "semicolons or in more columns. Empty: the records have no labels.",
        path="file",
    )
    vocabulary: str = setting(
        "",
        "CSV with the names of the classes that --labels may name. Empty: the names "
        "in --labels, in alphabetical order, written to <output>.vocabulary.csv.",
        path="file",
    )
    frames: int = setting(
        0,
        "Keep, and decode, only that many frames of a video, chosen by "
        "--frame_sampler. 0: all.",
        minimum=0,
    )
    frame_sampler: str = setting(
        "uniform", "With --frames: how they are chosen, as in training."
    )
    jobs: int = setting(2, "Videos that are read in parallel.", minimum=1, maximum=256)
    overwrite: bool = setting(
        False,
        "Replace an --output that was made from other videos, labels or settings. "
        "Features of unchanged videos are kept.",
    )
