"""settings.py: defaults that fit together, rules with clear errors, round trips."""

import dataclasses
import functools
import json
import math

import pytest

from yt8m_distill import (
    classify_records,
    convert_records,
    index_records,
    inspect_records,
    merge_predictions,
    settings,
    tag_videos,
    thin_records,
)

PROGRAMS = (
    *(classify_records, convert_records, index_records, inspect_records),
    *(merge_predictions, tag_videos, thin_records),
)
GROUPS = [
    group
    for group in vars(settings).values()
    if isinstance(group, type) and settings.Settings in group.__mro__[1:]
]
REQUESTS = [program.Request for program in PROGRAMS]
FIELD_PARAMETERS = [
    pytest.param(group, field, id=f"{group.__module__}.{group.__name__}.{field.name}")
    for group in (*GROUPS, *REQUESTS)
    for field in dataclasses.fields(group)
]

# Values unlike the default that the rules of a run allow, and what goes with them.
OTHER = {
    "feature_names": {"feature_names": "audio,inc3"},
    "feature_sizes": {"feature_sizes": "4,6"},
    "feature_ranges": {"feature_ranges": "-1:1,-3.5:3.5"},
    "student_k": {"student_k": "2,6"},
    "best_budget": {"best_budget": 2, "student_k": "2,6"},
    "video_context": {"video_context": True, "segment_labels": True},
    "segment_negatives": {"segment_negatives": 0.5, "segment_labels": True},
}


def other(field: dataclasses.Field):
    """A value unlike the default."""
    if field.metadata["choices"]:
        return next(c for c in field.metadata["choices"][::-1] if c != field.default)
    default, kind = field.default, field.type
    if kind in (bool, str):
        return not default if kind is bool else "x"
    return default + 1 if kind is int else 0.4 * default + 0.2


def companions(group, values: dict) -> dict:
    """What some values of a group say nothing without."""
    fields = {field.name: field for field in dataclasses.fields(group)}
    found = {}
    for name in values:
        other, _, value = fields[name].metadata["goes_with"].partition("=")
        if other:
            some = {bool: True, int: 1, float: 0.5, str: value or "x"}
            found[other] = some[fields[other].type]
    return {**companions(group, found), **found} if found else {}


def required(group) -> dict:
    """What a group needs before its own rules let it be built."""
    fields = dataclasses.fields(group)
    return {field.name: "x" for field in fields if field.metadata["required"]}


def build(group, **values):
    return group(**{**required(group), **companions(group, values), **values})


def build_run(**values) -> settings.RunSettings:
    needed = required(settings.TrainingSettings)
    return settings.RunSettings.from_dict({**needed, **values})


def error_of(make, *arguments, **values) -> str:
    with pytest.raises(ValueError) as caught:
        make(*arguments, **values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("group, field", FIELD_PARAMETERS)
def test_what_is_beyond_the_limits_is_refused_by_name(group, field):
    more = {"num_shards": 99_999} if field.name == "shard_index" else {}
    least, most = field.metadata["minimum"], field.metadata["maximum"]
    refused = [] if least is None else [(least - 1, [least]), (2 * most + 1, [most])]
    if field.metadata["choices"]:
        refused.append(("nonsense", field.metadata["choices"]))
    for value, limits in refused:
        message = error_of(build, group, **{field.name: value})
        assert message.startswith(f"--{field.name}={value} ")
        assert all(str(limit) in message for limit in limits)
        if len(limits) == 1:
            build(group, **{field.name: limits[0]}, **more)


def test_a_missing_feature_needs_a_zero_in_every_range():
    zeros = {"missing_feature": "zeros"}
    build(settings.DataSettings, feature_ranges="0:6,-2:2", **zeros)
    ranges = {"feature_ranges": "-2:2,1:3"}
    message = error_of(build, settings.DataSettings, **ranges, **zeros)
    assert (
        "--missing_feature=zeros" in message and "--feature_ranges=-2:2,1:3" in message
    )


@pytest.mark.parametrize(
    "group, field", [p for p in FIELD_PARAMETERS if p.values[1].metadata["goes_with"]]
)
def test_a_setting_that_says_nothing_without_another_is_refused(group, field):
    value = {bool: True, int: 2, float: 0.75, str: "1,1"}[field.type]
    values = {**required(group), field.name: value}
    if field.metadata["goes_with"] == "mode=serial":
        values["mode"] = "parallel"
    message = error_of(group, **values)
    assert f"--{field.name}={value} " in message
    assert f"--{field.metadata['goes_with']}" in message
    # A default is not: it may come from a flagfile.
    group(**{**values, field.name: field.default})


@pytest.mark.parametrize("group, field", FIELD_PARAMETERS)
def test_no_value_outside_its_type_reaches_tensorflow(group, field):
    """Every setting is bounded, and refuses by name what no operation takes."""
    wrong = {
        int: [2**63, -(2**63), 2**31, True, 1.5, "many", None],
        float: [math.nan, math.inf, -math.inf, 10**400, True, "many", None],
        bool: [2, "true", None],
        str: ["a\0b", "\udcff", 1, None],
    }[field.type]
    if field.name == "student_k":
        wrong.remove(1)  # One number may be an int.
    for value in wrong:
        message = error_of(build, group, **{field.name: value})
        assert message.startswith(f"--{field.name}=")
        message.encode()
    if field.type in (int, float):
        assert field.metadata["minimum"] is not None
        assert field.metadata["maximum"] is not None


def test_sizes_at_which_tensorflow_dies_are_refused():
    # The first ended the process with a segmentation fault, the second hung.
    for name, value in (("shuffle_buffer_size", 2**31), ("batch_size", 20_000_000)):
        assert f"--{name}={value}" in error_of(build_run, **{name: value})
    assert "--feature_sizes" in error_of(build_run, feature_sizes=f"1,{2**40}")


PATHS = ["with space", "a,b", "a*b", "a?b", "{a}", "ünïcode", "-dash", "#a"]


@pytest.mark.parametrize(
    "group, field",
    [p for p in FIELD_PARAMETERS if p.values[1].metadata["path"]],
)
def test_every_path_is_accepted_or_refused_at_once(group, field, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    path = field.metadata["path"]
    for value in PATHS:
        built = build(group, **{field.name: value})
        assert getattr(built, field.name) == value
    home = getattr(build(group, **{field.name: "~/a"}), field.name)
    # A pattern is expanded where its globs are.
    assert home == ("~/a" if path == "pattern" else "/home/me/a")
    for value in ("run[v2]", "back\\slash", "[", "x/[y]/z"):
        if path == "checkpoints":
            message = error_of(build, group, **{field.name: value})
            assert message.startswith(f"--{field.name}={value} ")
        else:
            build(group, **{field.name: value})


@pytest.mark.parametrize("group, field", FIELD_PARAMETERS)
def test_every_setting_has_a_help_text_and_a_default_of_its_type(group, field):
    assert field.metadata["help"].rstrip().endswith(".")
    # An int is a fine default of a float; a bool is no int.
    allowed = (int, float) if field.type is float else (field.type,)
    assert type(field.default) in allowed


@pytest.mark.parametrize(
    "group, field", [p for p in FIELD_PARAMETERS if p.values[1].metadata["required"]]
)
def test_a_required_setting_that_is_empty_is_named(group, field):
    message = error_of(build, group, **{field.name: ""})
    assert message.startswith(f"--{field.name} ")
    assert field.metadata["required"] in message


RUN = settings.RunSettings


@pytest.mark.parametrize(
    "group, values, named",
    [
        (settings.DataSettings, {"feature_sizes": "1,many"}, "--feature_sizes=1,many"),
        (settings.DataSettings, {"feature_names": ","}, "--feature_names"),
        (settings.DataSettings, {"feature_names": "a,a"}, "--feature_names=a,a"),
        (settings.DataSettings, {"feature_names": "a"}, "--feature_sizes=1024,128"),
        (settings.DataSettings, {"feature_sizes": "1024,0"}, "--feature_sizes=1024,0"),
        (settings.InferenceSettings, {"num_shards": 4, "shard_index": 4}, "=4"),
        (settings.InferenceSettings, {"shard_index": 1}, "--num_shards=1"),
        (RUN, {"student_k": 400}, "--student_k=400"),
        (RUN, {"classifier": "shared"}, "--mode=parallel"),
        (RUN, {"mode": "parallel", "student_start": "teacher"}, "--mode=serial"),
    ],
)
def test_each_rule_names_flag_and_value(group, values, named):
    make = build_run if group is RUN else functools.partial(build, group)
    message = error_of(make, **values)
    assert f"--{[*values][-1]}" in message and named in message


@pytest.mark.parametrize(
    "values",
    [
        {"student_k": "300"},
        {"mode": "serial", "teacher_checkpoint": "run"},
        {"mode": "parallel", "classifier": "shared"},
        {"mode": "serial", "classifier": "own"},
    ],
    ids=lambda values: "-".join(values),
)
def test_values_at_the_limits_are_accepted(values):
    run = build_run(**values)
    assert run.to_dict() | values == run.to_dict()


def test_features_are_split_in_order_and_their_widths_added_up():
    data = settings.DataSettings(feature_names="rgb, audio,", feature_sizes="1024, 128")
    assert data.names == ("rgb", "audio")
    assert data.sizes == (1024, 128)
    assert data.feature_size == 1024 + 128


def test_some_features_alone_keep_their_widths_and_ranges():
    data = settings.DataSettings(
        feature_names="a,b,c", feature_sizes="1,2,3", feature_ranges="-1:1,0:2,0:3"
    )
    some = data.only(("c", "a"))
    assert (some.names, some.sizes) == (("c", "a"), (3, 1))
    assert some.ranges == ((0, 3), (-1, 1))
    assert data.only(()) == data
    assert "--feature_names=a,b,c lacks d" in error_of(data.only, ("a", "d"))


@pytest.mark.parametrize(
    "group, field",
    [p for p in FIELD_PARAMETERS if p.values[0] in RUN.__annotations__.values()],
)
def test_a_setting_survives_its_dictionary_and_json(group, field):
    """Lost on the way, it would come back as its default."""
    values = OTHER.get(field.name, {field.name: other(field)})
    run = build_run(**companions(group, {field.name: None}) | values)
    stored = json.loads(json.dumps(run.to_dict()))
    assert stored[field.name] == values[field.name] != field.default
    assert RUN.from_dict(stored) == run


def test_a_missing_name_takes_its_default():
    run = build_run(student_k=6)
    assert run.sampling == settings.SamplingSettings(student_k=6)
    assert run.data == settings.DataSettings()


def test_unknown_names_are_refused_together():
    message = error_of(build_run, student_j=6, colour="red", student_k=6)
    assert message == "Unknown settings: colour, student_j."


@pytest.mark.parametrize(
    ("name", "one", "same", "other"),
    [
        ("teacher", "M(a=1,b='x')", 'M( b="x", a=1 )', "M(a=2, b='x')"),
        ("student", "M", " M ", ""),
        ("optimizer", "Adam(epsilon=1e-7)", "Adam(epsilon=0.0000001)", "Adam()"),
        ("frame_sampler", "every(step=3)", "every( step = 3 )", "every(step=4)"),
        ("train_frame_sampler", "uniform", "uniform ", "uniform_jitter"),
        ("student_loss", "ce+0.1*rep", "ce + 0.1 * rep", "ce+0.2*rep"),
        ("feature_names", "rgb,audio", "rgb, audio", "audio,rgb"),
        ("train_data_pattern", "a b*", "a b*", "ab*"),
        ("base_learning_rate", 0.001, 1e-3, 0.01),
    ],
)
def test_settings_are_compared_by_meaning(name, one, same, other):
    assert settings.differences({name: one}, {name: same}) == ""
    difference = settings.differences({"seed": 1, name: one}, {"seed": 1, name: other})
    assert difference == f"--{name}: was {one!r}, is {other!r}"


def test_a_setting_that_only_one_side_has_is_a_difference():
    difference = settings.differences({"a": 1, "c": 3}, {"a": 1, "b": "x"})
    assert difference == "--b: was None, is 'x'; --c: was 3, is None"
    # Values that cannot be parsed are compared as text.
    assert settings.differences({"teacher": "M("}, {"teacher": "M("}) == ""
