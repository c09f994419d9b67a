"""All settings: default, unit, help text and rule of each.

Frozen dataclasses, one per topic. `flag_groups` defines an absl flag for each field and
creates the dataclasses from the flags. This module does not depend on flags, but its
error messages name them, since the values come from there.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from yt8m_distill import registry

BAD_RECORDS = ("stop", "skip")
MISSING_FEATURES = ("refuse", "zeros")
EXPORT_FORMATS = ("saved_model", "litert", "litert_int8", "onnx")
MATCHES = ("final", "intermediate", "both")
PREDICTION_DISTANCES = ("binary_kl", "class_kl", "squared")

# The largest --num_classes.
MAX_CLASSES = 1_000_000
# YouTube-8M 2019: frames of a segment, and segments that count per class.
SEGMENT_FRAMES, SEGMENT_MAX_PRED = 5, 100_000


# The most important settings, which `--help` lists first.
IMPORTANT = (
    *("mode", "student_k", "student_loss", "feature_names", "feature_sizes"),
    *("num_classes", "validation_data_pattern", "batch_size", "num_epochs"),
    *("base_learning_rate", "run_once", "network", "checkpoint", "vocabulary"),
)

# Limits of TensorFlow's operations, for settings without a maximum.
MAX_INT, _MAX_FLOAT = 2**31 - 1, 1e30


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    required: str = "",
    path: str = "",
    goes_with: str = "",
) -> Any:
    """A dataclass field with the help text and the rules of its flag.

    Args:
        default: an int, float, bool or str; its type is that of the setting.
        help: the flag's help text.
        choices: all values of a str.
        minimum, maximum: of a number; the default maximum depends on the type.
        required: for a str that must not be empty: what the user should do.
        path: `file` (a local or remote path), `checkpoints` (one where TensorFlow reads
            checkpoints) or `pattern` (globs).
        goes_with: a setting of the same group, `name` or `name=value`, without which
            this one says nothing; any value but the default is refused then.
    """
    if maximum is None and type(default) in (int, float):
        maximum = MAX_INT if type(default) is int else _MAX_FLOAT
    metadata = {"help": help, "choices": choices, "required": required, "path": path}
    metadata |= {"minimum": minimum, "maximum": maximum, "goes_with": goes_with}
    return dataclasses.field(default=default, metadata=metadata)


def split_names(text: str) -> tuple[str, ...]:
    """`"rgb, audio"` → `("rgb", "audio")`."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


YOUTUBE_8M = (-2.0, 2.0)  # Range of YouTube-8M's quantized numbers.


def parse_ranges(text: str, flag: str) -> tuple[tuple[float, float], ...]:
    """`"-2:2, 0:6.5"` → ((-2.0, 2.0), (0.0, 6.5)).

    Raises:
        ValueError: naming the flag, if the text is not a list of ranges.
    """
    ranges = []
    for part in split_names(text):
        try:
            low, high = map(float, part.split(":"))
        except ValueError as error:
            raise ValueError(f"--{flag}={text}: {part!r} is not low:high.") from error
        if not -1e30 < low < high < 1e30:
            raise ValueError(f"--{flag}={text}: {part!r} is not a range.")
        ranges.append((low, high))
    return tuple(ranges)


# Settings that are a list or a sum, in which spaces mean nothing.
_LISTS = ("feature_names", "feature_sizes", "feature_ranges")
_LISTS += ("student_loss", "label_loss", "student_k")


def _canonical(name: str, value: Any) -> Any:
    """A setting's value without its spaces, quotes and order of arguments."""
    if not isinstance(value, str):
        return value
    try:
        return registry.parse(value)  # A name, perhaps with arguments.
    except ValueError:
        return value.replace(" ", "") if name in _LISTS else value


def is_same(name: str, one: Any, other: Any) -> bool:
    """Whether two values of a setting have the same meaning."""
    return _canonical(name, one) == _canonical(name, other)


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """`--seed: was 1, is 2; …`, the settings that differ in meaning."""
    return "; ".join(
        f"--{name}: was {stored.get(name)!r}, is {wanted.get(name)!r}"
        for name in sorted({*stored, *wanted})
        if not is_same(name, stored.get(name), wanted.get(name))
    )


_TYPES = {int: "a whole number", float: "a number", bool: "a bool", str: "text"}


def _problem(value, kind, *, choices, minimum, maximum, required, path, **_) -> str:
    """The end of the error line `--flag=value ...` for a broken rule, or empty."""
    allowed = (int, float) if kind is float else (kind,)
    if type(value) not in allowed:  # From a file; a bool is not an int here.
        return f"={value!r} is not {_TYPES[kind]}."
    if kind is str:
        if not is_text(value):
            return f"={ascii(value)} is not valid UTF-8."
        if required and not value:
            return f" is empty: {required}"
        if choices and value not in choices:
            return f"={value} is not one of {', '.join(choices)}."
        wrong = re.search(r"[\[\\]", value) if path == "checkpoints" else None
        if wrong:
            return (
                f"={value} contains {wrong[0]}: TensorFlow would read it as a pattern "
                "and not find its checkpoints."
            )
    if value != value:
        return f"={value} is not a number."
    if minimum is not None and value < minimum:
        return f"={value} is less than {minimum}."
    if maximum is not None and value > maximum:
        return f"={value} is more than {maximum}."
    return ""


def counted(count: int, noun: str, plural: str = "") -> str:
    """`1 video`, `2 videos`; the plural of an irregular noun is given."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def is_text(text: str) -> bool:
    """Whether a value is UTF-8 without a null byte."""
    if "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base class of all groups: checks the rules of each field, then of the group."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, path = getattr(self, field.name), field.metadata["path"]
            if path in ("file", "checkpoints") and isinstance(value, str):
                value = os.path.expanduser(value)
                object.__setattr__(self, field.name, value)
            problem = _problem(value, field.type, **field.metadata)
            if problem:
                raise ValueError(f"--{field.name}{problem}")
        for field in dataclasses.fields(self):
            value, other = getattr(self, field.name), field.metadata["goes_with"]
            name, _, wanted = other.partition("=")
            given = getattr(self, name) if other else True
            if value != field.default and (given != wanted if wanted else not given):
                raise ValueError(f"--{field.name}={value} goes with --{other}.")
        self.check()

    def check(self) -> None:
        """Raises ValueError if fields contradict each other."""


@dataclasses.dataclass(frozen=True)
class DataSettings(Settings):
    """The contents of the records."""

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
        maximum=MAX_CLASSES,
    )
    max_frames: int = setting(
        300,
        "Maximum number of frames to read per video; later frames are ignored.",
        minimum=1,
        maximum=100_000,
    )
    video_id_key: str = setting(
        "id", "Context key of the video's id: 'id', or 'video_id' (AudioSet)."
    )
    labels_key: str = setting("labels", "Context key of the label indices.")
    missing_feature: str = setting(
        "refuse",
        "How to handle a video that lacks one of several features, such as audio. "
        "refuse: its record is invalid. zeros: use frames of the byte nearest to 0.",
        choices=MISSING_FEATURES,
    )
    feature_ranges: str = setting(
        "",
        "The values of bytes 0 and 255 of each feature, low:high, comma separated in "
        "the order of --feature_names; yt8m-inspect prints those of the records. "
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
        "instead of whole videos.",
    )
    segment_negatives: float = setting(
        0.0,
        "With --segment_labels, in training: weight of the classes that are neither "
        "rated in a segment nor labels of its video, as negatives. A rated class has "
        "weight 1.",
        minimum=0,
    )

    # Cached: every record is judged by them.
    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        return split_names(self.feature_names)

    @functools.cached_property
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

    def only(self, names: Sequence[str]) -> "DataSettings":
        """The same records with these features alone, in this order; empty: all.

        Raises:
            ValueError: for a name that is not in --feature_names.
        """
        if not names:
            return self
        unknown = set(names) - set(self.names)
        if unknown:
            raise ValueError(
                f"--feature_names={self.feature_names} lacks {', '.join(unknown)}, "
                "which a view takes."
            )
        columns = [self.names.index(name) for name in names]
        ranges = [self.ranges[c] for c in columns] if self.feature_ranges else []
        return dataclasses.replace(
            self,
            feature_names=",".join(names),
            feature_sizes=",".join(str(self.sizes[c]) for c in columns),
            feature_ranges=",".join(f"{low}:{high}" for low, high in ranges),
        )

    def require_frames(self, what: str) -> None:
        """Raises ValueError for video-level records.

        Args:
            what: the flag or feature that needs frames, for the error.
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
        has_zero = all(low <= 0 <= high for low, high in self.ranges)
        if self.missing_feature == "zeros" and not has_zero:
            raise ValueError(f"--missing_feature=zeros: 0 is not in {given}.")


@dataclasses.dataclass(frozen=True)
class ReadingSettings(Settings):
    """How shards are read, in training and afterwards."""

    num_readers: int = setting(8, "Shards read in parallel.", minimum=1, maximum=1024)
    use_index: str = setting(
        "auto",
        "Read only the frames of a view, with an index of each local shard. auto: "
        "build missing indices, and parse remote and compressed shards, which cannot "
        "have one; always: stop at such a shard; never: store none, and parse all "
        "shards except under --bad_records=skip.",
        choices=("auto", "always", "never"),
    )
    index_dir: str = setting(
        "",
        "Folder of the indices. Empty: the folder of the shards, or a cache folder if "
        "that is read-only.",
        path="file",
    )
    bad_records: str = setting(
        "stop",
        "How to handle an invalid record. stop: name it and stop. skip: skip and "
        "count it.",
        choices=BAD_RECORDS,
    )
    max_bad_fraction: float = setting(
        0.01,
        "With --bad_records=skip: stop if the share of invalid records is larger.",
        minimum=0,
        maximum=1,
        goes_with="bad_records=skip",
    )


@dataclasses.dataclass(frozen=True)
class SamplingSettings(Settings):
    """Which frames the student reads."""

    student_k: str = setting(
        "30",
        "Number of frames per video that the student reads. Several numbers, as in "
        "6,10,15,30, train one student for all of them and those between.",
    )
    frame_sampler: str = setting(
        "uniform",
        "How the student's frames are selected: uniform, uniform_stride, "
        "uniform_jitter, random, first, middle, last, last_padded, first_middle_last, "
        "uniform_center, nested or all; or a sampler of your own, with arguments as in "
        "'name(step=3)'.",
    )
    train_frame_sampler: str = setting(
        "",
        "How the student's frames are selected in training: uniform_jitter and random "
        "select other frames in every epoch. Empty: as --frame_sampler.",
    )
    best_budget: int = setting(
        0,
        "With several --student_k: the one whose GAP decides which epoch is the best. "
        "0: the mean of all.",
        minimum=0,
    )
    segment_context: int = setting(
        3,
        "With --segment_labels: number of frames before and after a segment that the "
        "student also reads.",
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
        if len(set(self.budgets)) < len(self.budgets):
            raise ValueError(f"--student_k={self.student_k} repeats a number.")

    @property
    def budgets(self) -> tuple[int, ...]:
        """The numbers of frames, ascending."""
        return tuple(sorted(int(n) for n in split_names(self.student_k)))

    @property
    def largest_k(self) -> int:
        """Number of frames of the student's largest view."""
        return self.budgets[-1]


@dataclasses.dataclass(frozen=True)
class NetworkSettings(Settings):
    """The two networks."""

    teacher: str = setting(
        "HierarchicalLSTM(block_len=20)",
        "The teacher with its arguments, such as 'HierarchicalLSTM(cells=512, "
        'num_blocks=20, head="moe")\': HierarchicalLSTM, LstmModel, AttentionPooling, '
        "NeXtVLAD, NetVLAD, DbofModel, TransformerModel, FrameLevelLogisticModel, "
        "LogisticModel or MoeModel. Heads: logistic, moe.",
    )
    student: str = setting(
        "",
        "The student with its arguments, as in --teacher. Empty: the teacher's network "
        "with block_len=5 (3 at k=6), or with 5 blocks (3 at k=6) if the teacher has "
        "num_blocks.",
    )
    import_modules: str = setting(
        "",
        "Modules of your own, comma separated, that register networks, losses, "
        "samplers, heads or modes, such as my_package.my_models.",
    )
    dtype_policy: str = setting(
        "float32",
        "Precision of matrix products; variables and losses are always float32.",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
    )


@dataclasses.dataclass(frozen=True)
class DistillationSettings(Settings):
    """How the student learns."""

    mode: str = setting(
        "serial",
        "teacher: the teacher alone. baseline: a network on k frames from scratch. "
        "serial: a trained, frozen teacher guides the student. parallel: both are "
        "trained in the same steps. Or one that --import_modules registers.",
    )
    student_loss: str = setting(
        "ce + rep + pred",
        "The guided student's objective: a sum of ce or asymmetric, rep, "
        "rep_intermediate and pred with weights, such as "
        "'ce + 0.001*rep + 0.01*pred'. 'rep' alone is followed by fine-tuning. "
        "self_pred: against its own predictions on the most of several --student_k.",
    )
    label_loss: str = setting(
        "ce",
        "Objective of networks without a guide (teacher, baseline, fine-tuning): ce, "
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
        "The student's classifier: shared with the teacher, copied from the teacher at "
        "the start, or its own. auto: shared in parallel mode, copied in serial mode.",
        choices=("auto", "shared", "copied", "own"),
    )
    teacher_checkpoint: str = setting(
        "",
        "Serial mode: train_dir of a finished run, or a checkpoint prefix, whose "
        "teacher is used, or, of a run without one, the network that reads all frames; "
        "if there are several, comma separated, their mean. Empty: the teacher of "
        "--train_dir, which is trained first if necessary.",
        path="checkpoints",
        goes_with="mode=serial",
    )
    teacher_mean: str = setting(
        "probabilities",
        "With several teachers: average their probabilities or their logits.",
        choices=("probabilities", "logits"),
    )
    student_start: str = setting(
        "new",
        "Serial mode: the student's initial weights. new: random; teacher: all of the "
        "teacher's, which must have the same shapes.",
        choices=("new", "teacher"),
    )
    video_context: bool = setting(
        False,
        "With --segment_labels in serial mode: the student also reads the teacher's "
        "encoding of the whole video, in training and afterwards.",
    )
    finetune_epochs: int = setting(
        1,
        "Epochs of fine-tuning on the labels, which follows --student_loss=rep.",
        minimum=0,
    )
    teacher_cache: str = setting(
        "",
        "Serial mode: folder for the frozen teacher's outputs for every training "
        "video, in float16. They are computed once and used in every epoch and run "
        "with the same teacher. Empty: compute them in every step.",
        path="file",
        goes_with="mode=serial",
    )
    teacher_cache_top_k: int = setting(
        0,
        "Logits per video in the teacher cache; the other classes get their mean. 0: "
        "all.",
        minimum=0,
        goes_with="teacher_cache",
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
        "exponential: multiplied by --learning_rate_decay after every "
        "--learning_rate_decay_examples. cosine: from the base rate to 0 over the "
        "phase.",
        choices=("exponential", "cosine"),
    )
    learning_rate_decay: float = setting(
        0.95,
        "Factor of --learning_rate_schedule=exponential.",
        minimum=0,
        maximum=1,
    )
    learning_rate_decay_examples: float = setting(
        4_000_000.0,
        "Number of examples between two decays of the learning rate.",
        minimum=1,
    )
    warmup_examples: float = setting(
        0.0, "Examples over which the learning rate rises linearly from 0.", minimum=0
    )
    clip_gradient_norm: float = setting(
        1.0,
        "Maximum global norm of a network's gradient, summed over replicas. 0: no "
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
        "Kernels under --regularization_penalty: all, or only the classifier's.",
        choices=("all", "classifier"),
    )
    ema_decay: float = setting(
        0.0,
        "Decay of a moving average of the weights, such as 0.999, which is validated, "
        "kept and exported; after step t it is at most (1 + t) / (10 + t). 0: no "
        "average.",
        minimum=0,
        maximum=1,
    )


@dataclasses.dataclass(frozen=True)
class TrainingSettings(Settings):
    """The training run."""

    train_dir: str = setting(
        "",
        "Directory of the run: checkpoints, logs, settings.",
        required="name the directory of the run.",
        path="checkpoints",
    )
    train_data_pattern: str = setting(
        "",
        "Glob of the training shards, or several, comma separated.",
        required="name the training shards.",
        path="pattern",
    )
    validation_data_pattern: str = setting(
        "",
        "Glob of the validation shards, evaluated after every epoch to keep the best "
        "network by GAP. Empty: no validation; the last network is kept.",
        path="pattern",
    )
    unlabeled_data_pattern: str = setting(
        "",
        "Glob of shards whose videos fill a share of every batch of a guided student; "
        "their labels are ignored.",
        path="pattern",
    )
    unlabeled_fraction: float = setting(
        0.5,
        "With --unlabeled_data_pattern: share of unlabeled videos in every batch.",
        minimum=0,
        maximum=1,
        goes_with="unlabeled_data_pattern",
    )
    train_fraction: float = setting(
        1.0,
        "Share of the training videos to use, the same videos in every epoch.",
        minimum=1e-6,
        maximum=1,
    )
    label_fraction: float = setting(
        1.0,
        "Share of the training videos that keep their labels, selected by id. A phase "
        "without a guide skips the others; on them a guided student learns the "
        "teacher's outputs.",
        minimum=1e-6,
        maximum=1,
    )
    mix: str = setting(
        "none",
        "Mixes each training video with another one of the batch, for all networks "
        "alike. cut: the first part of one, then the rest of the other; mixup: a "
        "weighted mean of their frames. Labels are weighted in the same way.",
        choices=("none", "cut", "mixup"),
    )
    batch_size: int = setting(
        256, "Videos per step, over all replicas.", minimum=1, maximum=65_536
    )
    num_epochs: int = setting(5, "Passes over the training data.", minimum=1)
    max_steps: int = setting(
        0,
        "Maximum number of steps of a phase, which ends within an epoch then. 0: no "
        "limit.",
        minimum=0,
    )
    seed: int = setting(0, "Seed of weights, order, dropout and sampling.", minimum=0)
    deterministic: bool = setting(
        False, "Use deterministic kernels: equal runs give the same bits."
    )
    shuffle_buffer_size: int = setting(
        2048,
        "Number of records from which the next one is drawn. 0: no shuffling.",
        minimum=0,
        maximum=10_000_000,  # TensorFlow reserves the buffer at once, 24 bytes each.
    )
    steps_per_loop: int = setting(20, "Steps inside one tf.function call.", minimum=1)
    log_steps: int = setting(
        10, "Steps between log lines and TensorBoard points.", minimum=1
    )
    save_checkpoint_minutes: float = setting(
        10.0, "Minutes between checkpoints within an epoch.", minimum=0
    )
    max_checkpoints: int = setting(3, "Checkpoints to keep per phase.", minimum=1)
    allow_moved_shards: bool = setting(
        False,
        "Let a stopped run continue with training shards of the same names and sizes, "
        "but other modification times.",
    )
    early_stop_epochs: int = setting(
        0,
        "End a phase after this many epochs without a better validation GAP. 0: do "
        "not.",
        minimum=0,
        goes_with="validation_data_pattern",
    )
    start_new_model: bool = setting(
        False,
        "Start from scratch: an earlier run in --train_dir is moved aside, to "
        "<train_dir>.old-1 or the next free number.",
    )
    start_from: str = setting(
        "",
        "Train_dir of another run, or a checkpoint prefix in one: the initial weights "
        "of the first phase. If --num_classes differs, only those of the encoder.",
        path="checkpoints",
    )
    num_gpus: int = setting(
        -1, "GPUs of this machine to use. -1: all; 0: the CPU.", minimum=-1
    )
    cluster_timeout_secs: float = setting(
        600.0,
        "With TF_CONFIG: how long a process waits for the others, at the start and in "
        "a step, before it stops.",
        minimum=1,
        maximum=1e6,
    )
    top_k: int = setting(20, "Predictions per video for the metrics.", minimum=1)
    vocabulary: str = setting(
        "",
        "CSV with the names of the classes. It is stored with the run for evaluation, "
        "inference and export.",
        path="file",
    )


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """All settings of a training run; stored as model_flags.json."""

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
        if self.distillation.video_context and (
            self.distillation.mode != "serial" or not self.data.segment_labels
        ):
            raise ValueError(
                "--video_context goes with --segment_labels in --mode=serial."
            )
        negatives = self.data.segment_negatives
        if negatives and not self.data.segment_labels:
            raise ValueError(
                f"--segment_negatives={negatives:g} goes with --segment_labels."
            )
        mix = self.training.mix
        if mix != "none" and self.distillation.teacher_cache:
            raise ValueError(
                f"--mix={mix} makes new videos in every step, which --teacher_cache "
                "cannot hold: use one of the two."
            )
        if mix == "cut":
            self.data.require_frames("--mix=cut")
        if (
            self.distillation.student_start != "new"
            and self.distillation.mode == "parallel"
        ):
            raise ValueError(
                f"--student_start={self.distillation.student_start} goes with "
                "--mode=serial: in parallel mode no network is trained at the start."
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
        """Name → value; names are unique over all groups."""
        return {
            field.name: getattr(group, field.name)
            for group in (getattr(self, g.name) for g in dataclasses.fields(self))
            for field in dataclasses.fields(group)
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunSettings":
        """The inverse of `to_dict`; missing names get their defaults.

        Raises:
            ValueError: for an unknown name or an invalid value.
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
        "The network to read: teacher or student, or one that a mode of your own "
        "trains. auto: the student, or the teacher if there is none.",
    )
    checkpoint: str = setting(
        "best",
        "The network's weights: best (by validation GAP), latest, or a checkpoint "
        "prefix.",
        path="checkpoints",
    )
    student_k: int = setting(
        0,
        "Number of frames that the student reads, at most that of training. 0: as in "
        "training.",
        minimum=0,
    )
    mean_frames: float = setting(
        0.0,
        "Early exit: mean number of frames to read per video; reading stops once the "
        "student is sure enough. Needs yt8m-calibrate first. 0: no early exit.",
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
        goes_with="max_regret",
    )
    video_id_key: str = setting(
        "", "Context key of the video's id in the records. Empty: as in training."
    )
    batch_size: int = setting(
        256, "Videos per step, over all replicas.", minimum=1, maximum=65_536
    )
    top_k: int = setting(20, "Predictions per video.", minimum=1)
    num_gpus: int = setting(
        -1, "GPUs of this machine to use. -1: all; 0: the CPU.", minimum=-1
    )

    @property
    def asked(self) -> str:
        """The flag that requests other frames than in training, with its value."""
        names = ("mean_frames", "max_regret", "student_k")
        given = [f"--{n}={getattr(self, n):g}" for n in names if getattr(self, n)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} cannot be combined.")
        return given[0] if given else ""

    @property
    def early_exit(self) -> str:
        """The flag that requests early exit, with its value; empty if none does."""
        return "" if self.student_k else self.asked

    def check(self) -> None:
        _ = self.asked


@dataclasses.dataclass(frozen=True)
class CalibrationSettings(Settings):
    """Calibration of early exit."""

    calibration_data_pattern: str = setting(
        "",
        "Glob of the shards to calibrate on, such as the validation shards, or "
        "several, comma separated.",
        required="name the shards.",
        path="pattern",
    )
    exit_rule: str = setting(
        "expected_saving",
        "Measure of certainty: expected_saving (a regression of the gain of further "
        "frames), max_probability, entropy or change.",
    )


def _segment_context(flag: str) -> Any:
    return setting(
        -1,
        f"With --{flag}: number of frames before and after a segment that the network "
        "also reads. -1: as in training, or 3.",
        minimum=-1,
        maximum=100_000,
        goes_with=flag,
    )


def _segment_max_pred(flag: str) -> Any:
    return setting(
        SEGMENT_MAX_PRED,
        f"With --{flag}: number of segments per class that count, K of mAP@K.",
        minimum=1,
        goes_with=flag,
    )


def _mean_with(flag: str) -> Any:
    return setting(
        "",
        f"With --{flag}: train_dir of another run, whose network's logits are averaged "
        "with those of the network. One of whole videos answers for all segments of a "
        "video.",
        path="checkpoints",
        goes_with=flag,
    )


def _mean_weight() -> Any:
    return setting(
        0.5,
        "With --mean_with: weight of the other network in the mean.",
        minimum=0,
        maximum=1,
        goes_with="mean_with",
    )


@dataclasses.dataclass(frozen=True)
class EvalSettings(Settings):
    """Evaluation."""

    eval_data_pattern: str = setting(
        "",
        "Glob of the shards to evaluate, or several, comma separated.",
        required="name the shards.",
        path="pattern",
    )
    run_once: bool = setting(
        False, "Evaluate once and stop; otherwise wait for new checkpoints."
    )
    eval_interval_secs: float = setting(
        30.0,
        "Seconds between checks for a new checkpoint.",
        minimum=0.1,
        maximum=1e6,
    )
    output_file: str = setting(
        "",
        "With --run_once: also write the predictions to this CSV, as inference.py "
        "does. Empty: no CSV.",
        path="file",
        goes_with="run_once",
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
        goes_with="run_once",
    )
    segment_labels: bool = setting(
        False,
        "Evaluate the rated segments of the videos (YouTube-8M 2019): mAP@K and GAP "
        "over their ratings.",
    )
    segment_context: int = _segment_context("segment_labels")
    segment_max_pred: int = _segment_max_pred("segment_labels")
    mean_with: str = _mean_with("segment_labels")
    mean_weight: float = _mean_weight()

    def check(self) -> None:
        if self.output_file and self.segment_labels:
            raise ValueError(
                f"--output_file={self.output_file} does not go with --segment_labels: "
                "yt8m-inference --segments writes the CSV of segments."
            )


@dataclasses.dataclass(frozen=True)
class SegmentSettings(Settings):
    """Which segments of a video are scored."""

    segments: bool = setting(
        False,
        "Score the segments of the videos (YouTube-8M 2019) instead of whole videos. "
        "The CSV of yt8m-inference is Class,Segments then.",
    )
    segment_stride: int = setting(
        SEGMENT_FRAMES,
        "With --segments: number of frames from the start of a segment to the next.",
        minimum=1,
        goes_with="segments",
    )
    segment_context: int = _segment_context("segments")
    segment_margins: str = setting(
        "0,0",
        "With --segments: number of segments to skip at the start and at the end of "
        "each video. YouTube-8M does not rate the first 6 and the last 2: 6,2.",
        goes_with="segments",
    )

    @property
    def margins(self) -> tuple[int, int]:
        """Number of segments to skip at the start and at the end."""
        before, after = map(int, split_names(self.segment_margins))
        return before, after

    def check(self) -> None:
        numbers = split_names(self.segment_margins)
        if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
            raise ValueError(
                f"--segment_margins={self.segment_margins} is not two whole numbers, "
                "as in 6,2."
            )


@dataclasses.dataclass(frozen=True)
class InferenceSettings(SegmentSettings):
    """Inference."""

    input_data_pattern: str = setting(
        "",
        "Glob of the shards to predict, or several, comma separated.",
        required="name the shards.",
        path="pattern",
    )
    output_file: str = setting(
        "",
        "The CSV to write. With --num_shards=10 the CSV of part 3 has -00003-of-00010 "
        "before its extension.",
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
        "Number of parts into which the files are divided, each for a process of its "
        "own; yt8m-merge joins their CSVs.",
        minimum=1,
        maximum=99_999,  # A part's name has five digits.
    )
    shard_index: int = setting(
        0,
        "The part to predict, counted from 0: a range of the sorted files.",
        minimum=0,
        maximum=99_998,
    )
    segment_max_pred: int = _segment_max_pred("segments")
    segment_label_ids_file: str = setting(
        "",
        "With --segments: CSV whose first column has the classes to write, such as "
        "Kaggle's segment_label_ids.csv. Empty: all classes.",
        path="file",
        goes_with="segments",
    )
    mean_with: str = _mean_with("segments")
    mean_weight: float = _mean_weight()

    def check(self) -> None:
        super().check()
        if self.shard_index >= self.num_shards:
            raise ValueError(
                f"--shard_index={self.shard_index} is not below "
                f"--num_shards={self.num_shards}."
            )
        if self.vocabulary and self.segments:
            raise ValueError(
                f"--vocabulary={self.vocabulary} does not go with --segments."
            )


@dataclasses.dataclass(frozen=True)
class ExportSettings(SegmentSettings):
    """Export."""

    export_dir: str = setting(
        "",
        "Folder of the exported model. Empty: <train_dir>/export/<network>, followed "
        "by the format's name unless that is saved_model.",
        path="checkpoints",
    )
    format: str = setting(
        "saved_model",
        "saved_model: for TensorFlow Serving, takes serialized records. litert, onnx: "
        "a file that takes the student's frames, without TensorFlow. litert_int8: with "
        "8-bit weights, a quarter of the size.",
        choices=EXPORT_FORMATS,
    )
    eval_data_pattern: str = setting(
        "",
        "Glob of shards on which the exported model is compared with the network; both "
        "GAPs are reported. Empty: compare them on frames of noise.",
        path="pattern",
    )
    vocabulary: str = setting(
        "",
        "CSV with the names of the classes, stored with the model. Empty: the run's.",
        path="file",
    )
    extraction_manifest: str = setting(
        "",
        "The manifest that yt8m-extract wrote with the training records, with which "
        "yt8m-tag reads video files.",
        path="file",
    )


@dataclasses.dataclass(frozen=True)
class FeatureSettings(Settings):
    """How features are computed from videos."""

    image_network: str = setting(
        "",
        "The network that maps a frame to a vector: 'keras_application(name=\""
        'InceptionV3", weights="inception_notop.h5")\', \'saved_model(folder="cnn")\' '
        "or 'onnx(file=\"cnn.onnx\", mean=0.5, std=0.5)'.",
    )
    pca: str = setting(
        "",
        "Folder with mean.npy, eigenvals.npy and eigenvecs.npy for projecting and "
        "whitening the vectors, as in YouTube-8M. Empty: no projection.",
        path="file",
    )
    feature_range: str = setting(
        "-2:2",
        "The values that become bytes 0 and 255; others are clipped.",
    )
    audio_network: str = setting(
        "",
        "The network that maps the 0.96 s of sound from each frame on to a vector; it "
        "takes log-mel examples [96, 64] as VGGish does: "
        "'saved_model(folder=\"vggish\")' or 'onnx(file=\"vggish.onnx\")'. Empty: no "
        "feature audio.",
    )
    audio_pca: str = setting(
        "",
        "As --pca, for sound.",
        path="file",
        goes_with="audio_network",
    )
    audio_range: str = setting(
        "-2:2",
        "As --feature_range, for sound.",
        goes_with="audio_network",
    )
    fps: float = setting(
        1.0, "Frames per second of a video.", minimum=1e-3, maximum=1000
    )
    max_frames: int = setting(
        300,
        "Maximum number of frames per video, from its beginning.",
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
    """How records are made from video files."""

    videos: str = setting(
        "",
        "Glob of the video files, or several, comma separated.",
        required="name the video files.",
        path="pattern",
    )
    output: str = setting(
        "",
        "The TFRecord file to write, with a manifest <output>.json.",
        required="name the file of records to write.",
        path="file",
    )
    labels: str = setting(
        "",
        "CSV with a header and a row per video: its path or name, with or without "
        "extension, and its labels: names or numbers of classes, separated by "
        "semicolons or in further columns. Empty: the records have no labels.",
        path="file",
    )
    vocabulary: str = setting(
        "",
        "CSV with the names of the classes that --labels may name. Empty: the names "
        "in --labels, in alphabetical order, written to <output>.vocabulary.csv.",
        path="file",
        goes_with="labels",
    )
    frames: int = setting(
        0,
        "Decode and keep only this many frames per video, selected by --frame_sampler. "
        "0: all.",
        minimum=0,
    )
    frame_sampler: str = setting(
        "uniform",
        "With --frames: how they are selected, as in training.",
        goes_with="frames",
    )
    jobs: int = setting(2, "Videos to read in parallel.", minimum=1, maximum=256)
    overwrite: bool = setting(
        False,
        "Replace an --output that was made from other videos, labels or settings. "
        "Features of unchanged videos are kept.",
    )
