"""Patterns of files: what they match, and how one that matches nothing is named."""

import os

import pytest

from yt8m_distill import file_patterns


def test_patterns_become_sorted_names_each_once(tmp_path):
    for name in ("b1", "a2", "a1"):
        (tmp_path / name).touch()
    found = file_patterns.expand(f"{tmp_path}/b*, {tmp_path}/a*,{tmp_path}/a1", "x")
    assert found == [str(tmp_path / name) for name in ("a1", "a2", "b1")]


def test_a_pattern_without_files_is_named_with_its_flag(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(ValueError, match=r"^--some_pattern=\S+/b\* matches no file\.$"):
        file_patterns.expand(f"{tmp_path}/a,{tmp_path}/b*", "some_pattern")
    with pytest.raises(ValueError, match="^--some_pattern is empty"):
        file_patterns.expand(" , ", "some_pattern")


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        ("w/as", "is a directory"),
        ("w/as/", "is a directory"),
        ("w/a*", "matches the directory {}/w/as"),
        ("w/*", "matches the directory {}/w/as"),  # Beside a shard.
    ],
)
def test_a_pattern_that_matches_a_directory_names_it(tmp_path, pattern, what):
    (tmp_path / "w" / "as").mkdir(parents=True)
    (tmp_path / "w" / "b.tfrecord").touch()
    with pytest.raises(ValueError) as caught:
        file_patterns.expand(f"{tmp_path}/{pattern}", "some_pattern")
    line = str(caught.value)
    assert line.startswith(f"--some_pattern={tmp_path}/{pattern} ")
    assert what.format(tmp_path) in line and f"{tmp_path}/w/as/*.tfrecord" in line
    files = file_patterns.expand(f"{tmp_path}/w/*.tfrecord", "some_pattern")
    assert files == [f"{tmp_path}/w/b.tfrecord"]


ODD = ["a b", "a,b", "a*b", "a?b", "{a}", "run[v2]", "back\\slash", "ünï", "a[b", "~a"]


@pytest.mark.parametrize("name", ODD)
def test_a_file_and_a_folder_of_any_name_can_be_named(tmp_path, name):
    folder = tmp_path / name / "below"
    folder.mkdir(parents=True)
    other = tmp_path / "run2"  # What `run[v2]` would match.
    other.mkdir()
    shards = [folder / "x1.tfrecord", folder / f"{name}.tfrecord"]
    for path in (*shards, other / "x1.tfrecord"):
        path.touch()
    for pattern, expected in (
        (f"{folder}/x*.tfrecord", shards[:1]),
        (f"{tmp_path}/{name}/*/x?.tfrecord", shards[:1]),
        (str(shards[1]), shards[1:]),
        (f"{folder}/x*.tfrecord,{other}/*", [shards[0], other / "x1.tfrecord"]),
        (f"{other}/*, {shards[1]}", [shards[1], other / "x1.tfrecord"]),
    ):
        found = file_patterns.expand(pattern, "data_pattern")
        assert found == sorted(map(str, expected))


def test_patterns_of_the_home_folder_and_of_here(tmp_path, monkeypatch):
    (tmp_path / "x.tfrecord").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    found = file_patterns.expand("~/*.tfrecord", "data_pattern")
    assert found == [str(tmp_path / "x.tfrecord")]
    monkeypatch.chdir(tmp_path)
    (found,) = file_patterns.expand("*.tfrecord", "data_pattern")
    assert os.path.normpath(found) == "x.tfrecord"
    with pytest.raises(ValueError) as error:
        file_patterns.expand("nowhere/*/x,*", "data_pattern")
    assert "--data_pattern=nowhere/*/x " in str(error.value)
