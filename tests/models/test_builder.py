"""builder.py: which networks the settings ask for."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import training_helpers as helpers
from yt8m_distill import registry, settings, structures
from yt8m_distill.losses import registered
from yt8m_distill.models import base, builder, frame_average, heads
from yt8m_distill.training import modes

TEACHER = "HierarchicalLSTM(cells=3, block_len=4)"
ROLES = ("teacher", "student")


def make_run(
    teacher=TEACHER, student="", k=10, frame_features=True, **distillation
) -> settings.RunSettings:
    return settings.RunSettings(
        data=settings.DataSettings(
            feature_names="rgb,audio",
            feature_sizes="4,1",
            num_classes=2,
            max_frames=40,
            frame_features=frame_features,
        ),
        reading=settings.ReadingSettings(),
        sampling=settings.SamplingSettings(student_k=k),
        networks=settings.NetworkSettings(teacher=teacher, student=student),
        distillation=settings.DistillationSettings(**distillation),
        optimization=settings.OptimizationSettings(),
        training=settings.TrainingSettings(
            train_dir="run", train_data_pattern="train*"
        ),
    )


# ------------------------------------------------------- the student by default


def test_the_help_of_teacher_names_every_model_and_head():
    field = settings.NetworkSettings.__dataclass_fields__["teacher"]
    for table in (base.MODELS, heads.HEADS):
        # Without those of tests.
        own = [n for n in table if table.get(n).__module__.startswith("yt8m_distill.")]
        assert len(own) > 1
        assert all(name in field.metadata["help"] for name in own)


@pytest.mark.parametrize(
    "k, block_len",
    # 3 where it divides k and 5 does not, as the paper's k = 6; 5 otherwise.
    [(6, 3), (3, 3), (9, 3), (10, 5), (15, 5), (20, 5), (30, 5), (7, 5), (1, 5)]
    + [("6,10,15", 5)],  # The largest counts.
)
def test_the_default_student_is_the_teacher_with_short_blocks(k, block_len):
    found = modes.student_specification(make_run(k=k))
    expected = {"cells": 3, "block_len": block_len}
    assert found == registry.Specification("HierarchicalLSTM", expected)


def test_a_student_of_all_frames_is_as_wide_as_the_teachers_view():
    teacher = "HierarchicalLSTM(cells=3, num_blocks=4)"
    run = make_run(teacher=teacher, student=teacher, k=8)
    wholes = [
        dataclasses.replace(
            run, sampling=settings.SamplingSettings(student_k=8, frame_sampler=sampler)
        )
        for sampler in ("all", "all()")
    ]
    found = [helpers.build_network("student", r) for r in (run, *wholes)]
    # 8 and 40 frames in 4 blocks.
    assert [network.max_frames for network in found] == [8, 40, 40]
    assert [network.block_len for network in found] == [2, 10, 10]


@pytest.mark.parametrize("k, num_blocks", [(6, 3), (10, 5), (15, 5), (30, 5)])
def test_the_default_student_of_a_teacher_in_blocks_has_fewer(k, num_blocks):
    teacher = 'HierarchicalLSTM(cells=3, num_blocks=20, head="moe")'
    found = modes.student_specification(make_run(teacher=teacher, k=k))
    assert found.arguments == {"cells": 3, "num_blocks": num_blocks, "head": "moe"}


def test_a_student_is_as_given_or_that_of_a_teacher_without_blocks():
    text = "LstmModel(cells=3)"
    for run in (make_run(teacher=text), make_run(student=text, k=6)):
        found = modes.student_specification(run)
        assert found == registry.parse(text)


# ------------------------------------------------------------------ the networks


def test_the_roles_read_views_of_their_own_length():
    networks = helpers.build_networks(make_run(), ROLES)
    assert (networks.teacher.max_frames, networks.student.max_frames) == (40, 10)
    assert (networks.teacher.block_len, networks.student.block_len) == (4, 5)
    assert networks.views == {
        "teacher": structures.ALL,
        "student": structures.SAMPLED,
    }
    for network in (networks.teacher, networks.student):
        assert type(network).__name__ == "HierarchicalLSTM"
        assert (network.feature_size, network.num_classes) == (5, 2)


@pytest.mark.parametrize("role", ROLES)
def test_only_the_requested_roles_are_built(role):
    networks = helpers.build_networks(make_run(), [role])
    (other,) = set(ROLES) - {role}
    assert networks.network(role) is not None
    assert not hasattr(networks, other)
    assert list(networks.views) == [role]


def test_weights_that_are_to_be_read_are_not_drawn():
    drawn, waiting, again = (
        helpers.build_networks(make_run(), ROLES, to_be_read=to_be_read)
        for to_be_read in (False, True, False)
    )
    described = [[tuple(v.shape) for v in n.variables] for n in (drawn, waiting)]
    assert described[0] == described[1]
    for networks, is_drawn in ((drawn, True), (waiting, False), (again, True)):
        for network in (networks.teacher, networks.student):
            for layer in network.lower.stack + network.upper.stack:
                recurrent = layer.cell.recurrent_kernel.numpy()
                product = recurrent @ recurrent.T
                expected = np.eye(3) if is_drawn else np.zeros([3, 3])
                np.testing.assert_allclose(product, expected, atol=1e-5)


def test_a_network_on_video_level_records_reads_one_frame():
    run = make_run(teacher="FrameLevelLogisticModel", frame_features=False)
    networks = helpers.build_networks(run, ROLES)
    assert (networks.teacher.max_frames, networks.student.max_frames) == (1, 1)


# ----------------------------------------------------------- sharing and bridging


def test_a_narrower_student_shares_through_a_bridge():
    run = make_run(student="HierarchicalLSTM(cells=2, block_len=5)", mode="parallel")
    networks = helpers.build_networks(run, ROLES, share_classifier=True)
    assert networks.student.head is networks.teacher.head
    assert tuple(networks.student.bridge.shape) == (8, 12)
    assert networks.student.encoding_size == networks.teacher.encoding_size
    unshared = helpers.build_networks(run, ROLES)
    assert unshared.student.head is not unshared.teacher.head
    assert unshared.teacher.bridge is None
    # Whatever the order of the roles is called in.
    again = helpers.build_networks(run, ROLES[::-1], share_classifier=True)
    assert again.student.head is again.teacher.head


@pytest.mark.parametrize(
    "mode, classifier, student_loss, bridged",
    [
        ("serial", "auto", "ce + rep + pred", True),
        ("parallel", "auto", "ce + rep + pred", True),
        ("serial", "own", "ce + rep", True),
        ("serial", "own", "rep", True),
        ("serial", "copied", "ce + pred", True),  # the classifier reads that width
        ("parallel", "shared", "ce", True),
        ("serial", "own", "ce + pred", False),
        ("parallel", "own", "ce + 0.1*pred", False),
        ("baseline", "auto", "ce + rep + pred", False),
        ("teacher", "auto", "ce + rep + pred", False),
    ],
)
def test_a_bridge_is_built_where_the_encodings_have_to_meet(
    mode, classifier, student_loss, bridged
):
    run = make_run(
        student="FrameLevelLogisticModel",
        mode=mode,
        classifier=classifier,
        student_loss=student_loss,
    )
    network = helpers.build_network("student", run)
    assert (network.bridge is not None) == bridged
    assert network.encoding_size == (12 if bridged else 5)


@pytest.mark.parametrize("compares, bridged", [("encoding", True), ("logits", False)])
def test_a_registered_loss_decides_whether_the_encodings_meet(
    monkeypatch, compares, bridged
):
    loss = registered.Loss(lambda student, teacher: None, "guide", compares)
    monkeypatch.setitem(registered.LOSSES._entries, "cosine", lambda: loss)
    run = make_run(
        student="FrameLevelLogisticModel",
        mode="serial",
        classifier="own",
        student_loss="ce + cosine",
    )
    student = helpers.build_network("student", run)
    # The teacher's encoding has 4 * 3 numbers, the student's is a frame of 5.
    assert student.encoding_size == (12 if bridged else 5)


def test_the_student_meets_a_teacher_that_has_a_bridge_itself():
    run = make_run(
        teacher="HierarchicalLSTM(cells=3, block_len=4, encoding_size=7)",
        student="HierarchicalLSTM(cells=2, block_len=5)",
    )
    networks = helpers.build_networks(run, ROLES)
    assert networks.teacher.encoding_size == networks.student.encoding_size == 7
    networks.copy_classifier("teacher", "student")


# -------------------------------------------------------------------- bad input


def refuse(run, roles=ROLES, **arguments) -> str:
    with pytest.raises(ValueError) as caught:
        helpers.build_networks(run, roles, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("roles", [ROLES, ["teacher"], ["student"]])
def test_an_unknown_teacher_names_its_flag_even_where_only_the_student_is_made(roles):
    message = refuse(make_run(teacher="Transformer(cells=3)"), roles)
    assert message.startswith("--teacher=Transformer(cells=3): ")
    assert all(f" {name}" in message for name in base.MODELS)


@pytest.mark.parametrize("flag", ROLES)
@pytest.mark.parametrize(
    "text, reason",
    [
        ("HierarchicalLSTM(", "must be a name or a call"),
        ("__import__('os').mkdir('ran')", "must be a name or a call"),
        ("HierarchicalLSTM(cell=3, block_len=4)", "does not take cell; it takes: "),
        ("HierarchicalLSTM(cells=0, block_len=4)", "cells=0 is not"),
        ("HierarchicalLSTM(cells=3, block_len=4, head='svm')", "Unknown head 'svm'"),
        ("HierarchicalLSTM(cells=3, block_len=4, num_classes=3)", "num_classes"),
        ("Transformer", "Known: "),
    ],
)
def test_a_bad_argument_names_its_flag(flag, text, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refuse(make_run(**{flag: text}))
    # A student gets the width of its teacher's encoding, too.
    name = text.split("(")[0]
    assert message.startswith((f"--{flag}={text}: ", f"--{flag}={name}("))
    assert reason in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "argument, named",
    [
        (
            "head='moe'",
            ("--classifier=shared", "'logistic'", "'moe'", "--classifier=own"),
        ),
        ("encoding_size=7", ("width 12", "width 7")),
    ],
)
def test_a_shared_classifier_needs_the_same_head_and_width(argument, named):
    student = f"HierarchicalLSTM(cells=3, block_len=5, {argument})"
    message = refuse(make_run(student=student, mode="parallel"), share_classifier=True)
    assert message.startswith("--student=HierarchicalLSTM(cells=3, block_len=5")
    assert all(part in message for part in named)


# ------------------------------------------------------------- models of users


class MeanNetwork(frame_average.FrameLevelLogisticModel):
    """A mean of frames, of which only the constructor is another in each test."""

    def encode(self, frames, num_frames, state_indices, training, noise):
        return tf.reduce_sum(frames, axis=1), None


class WithKeywords(MeanNetwork):
    def __init__(self, width=5, **kwargs):
        super().__init__(**kwargs)


class WithoutHead(MeanNetwork):
    def __init__(self, feature_size, num_classes, max_frames, encoding_size=None):
        super().__init__(
            feature_size, num_classes, max_frames, encoding_size=encoding_size
        )


class WithoutEncodingSize(MeanNetwork):
    def __init__(self, feature_size, num_classes, max_frames, head="logistic"):
        super().__init__(feature_size, num_classes, max_frames, head=head)


class WithoutDefault(MeanNetwork):
    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)


class WithoutClassifier(MeanNetwork):
    def __init__(self, feature_size, num_classes, max_frames):
        base.VideoClassifier.__init__(self, feature_size, num_classes, max_frames)


@pytest.fixture
def register(monkeypatch):
    """Adds a class as the model `Mine` for one test."""
    return lambda entry: monkeypatch.setitem(base.MODELS._entries, "Mine", entry)


@pytest.mark.parametrize(
    ("result", "received"),
    [
        (lambda frames: tf.reduce_max(frames, axis=1), "Tensor"),
        (lambda frames: (frames, None), "5]"),
        (lambda frames: (frames[:, 0, :3], None), "3]"),
    ],
)
def test_what_encode_returns_is_checked(result, received, monkeypatch):
    network = MeanNetwork(feature_size=5, num_classes=2, max_frames=4)
    monkeypatch.setattr(network, "encode", lambda frames, *_: result(frames))
    view = {"frames": np.zeros([2, 4, 5], np.float32), "num_frames": np.int32([4, 4])}
    with pytest.raises(ValueError) as caught:
        network(view)
    assert "MeanNetwork.encode" in str(caught.value) and "[B, 5]" in str(caught.value)
    assert received in str(caught.value)


@pytest.mark.parametrize("mode, share", [("serial", False), ("parallel", True)])
def test_a_constructor_may_pass_keywords_on(register, mode, share):
    register(WithKeywords)
    run = make_run(student="Mine(dropout=0.25)", mode=mode)
    networks = helpers.build_networks(run, ROLES, share)
    # A frame of 5 numbers meets the teacher's encoding of 4 * 3.
    assert tuple(networks.student.bridge.shape) == (5, 12)
    assert networks.student.dropout_rate == 0.25
    assert (networks.student.head is networks.teacher.head) == share


@pytest.mark.parametrize(
    "entry, mode, words",
    [
        (WithoutHead, "parallel", ["--classifier=shared", "head", "--classifier=own"]),
        (WithoutEncodingSize, "serial", ["5 wide", "12", "encoding_size"]),
        (WithoutDefault, "serial", ["lacks width"]),
        (WithoutDefault, "baseline", ["lacks width"]),
        (WithoutClassifier, "baseline", ["build_classifier"]),
    ],
)
def test_a_defect_of_a_constructor_is_named_in_one_line(register, entry, mode, words):
    register(entry)
    run = make_run(student="Mine", mode=mode)
    message = refuse(
        run,
        ["student"] if mode == "baseline" else ROLES,
        **({"share_classifier": True} if mode == "parallel" else {}),
    )
    assert message.startswith("--student=Mine: ") and "\n" not in message
    assert not [word for word in words if word not in message]


# ------------------------------------------------------------------ checkpoints


@base.MODELS.register("Held")
class Held(base.VideoClassifier):
    """Layers in a list, in a dict and in a list of a layer; and a Keras dropout."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.steps_of = [self._dense(), self._dense()]
        self.by_name = {"gate": self._dense()}
        self.outer = keras.layers.Layer()
        self.outer.inner = [self._dense()]
        self.drop = keras.layers.Dropout(0.5)
        self.build_classifier(self.feature_size)

    def _dense(self):
        layer = keras.layers.Dense(self.feature_size)
        layer.build((None, self.feature_size))
        return layer

    def encode(self, frames, num_frames, state_indices, training, noise):
        x = self.drop(tf.reduce_mean(frames, axis=1), training=training)
        for layer in (*self.steps_of, *self.outer.inner):
            x = layer(x)
        return x * self.by_name["gate"](x), None


def test_a_checkpoint_holds_what_only_keras_finds(tmp_path):
    run = make_run(teacher="Held")
    spec = registry.parse("Held")
    saved, restored = (
        builder.build_network("teacher", spec, run.data, 3) for _ in range(2)
    )
    view = {
        structures.FRAMES: tf.ones([2, 3, 5]),
        structures.NUM_FRAMES: tf.constant([3, 3]),
    }
    saved(view, training=True)  # Moves the generator of the dropout.
    path = tf.train.Checkpoint(teacher=saved).write(str(tmp_path / "network"))
    tf.train.Checkpoint(teacher=restored).read(path).assert_existing_objects_matched()
    assert len(saved.variables) >= 10  # Four layers and the head.
    for one, other in zip(saved.variables, restored.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_a_checkpoint_of_lstms_holds_their_weights_alone(tmp_path):
    """Generators that none draws from would be missed in earlier checkpoints."""
    network = helpers.build_network("teacher", make_run())
    path = tf.train.Checkpoint(teacher=network).write(str(tmp_path / "network"))
    names = [name for name, _ in tf.train.list_variables(path) if "teacher/" in name]
    # Three of each LSTM, two layers of them below and two above; two of the head.
    assert len(names) == len(network.weights) == 2 * 2 * 3 + 2
