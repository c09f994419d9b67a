"""The parts of an inference: their files and the names of their CSVs."""

import os

import pytest

from yt8m_distill.serving import parts

pytestmark = pytest.mark.once


@pytest.mark.parametrize("num_files", [0, 1, 2, 3, 7, 10, 64, 3844])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 64, 100])
def test_concatenated_parts_contain_every_file_once(num_files, count):
    files = [f"{number:04d}" for number in range(num_files)]
    split = [parts.files_of_part(files, index, count) for index in range(count)]
    assert [path for part in split for path in part] == files
    sizes = {len(part) for part in split}
    assert sizes <= {num_files // count, -(-num_files // count)}


def test_the_split_of_five_files():
    # 5 * (0, 1, 2, 3) // 3 = 0, 1, 3, 5.
    split = [parts.files_of_part("abcde", index, 3) for index in range(3)]
    assert split == [["a"], ["b", "c"], ["d", "e"]]


@pytest.mark.parametrize(
    "path, expected",
    [
        ("predictions.csv", "predictions-00003-of-00010.csv"),
        ("a.b/predictions", "a.b/predictions-00003-of-00010"),
        ("a.b/.csv", "a.b/.csv-00003-of-00010"),
        ("x.v2.csv", "x.v2-00003-of-00010.csv"),
        ("gs://bucket/x.csv", "gs://bucket/x-00003-of-00010.csv"),
    ],
)
def test_the_number_of_a_part_is_before_the_extension(path, expected):
    assert parts.part_path(path, 3, 10) == expected
    assert parts.part_path(path, 0, 1) == path


def test_the_largest_number_of_parts_has_five_digits():
    assert parts.part_path("x", 99_998, 99_999) == "x-99998-of-99999"


def touch(folder, *names: str) -> None:
    for name in names:
        (folder / name).write_text("")


def error_of(path) -> str:
    with pytest.raises(ValueError) as caught:
        parts.find_parts(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["x.csv", "x", "[x]*.v2.csv"])
def test_only_the_parts_are_found_and_in_order(tmp_path, name):
    path = str(tmp_path / name)
    # Twelve, so that the order of numbers is not that of single digits.
    expected = [parts.part_path(path, index, 12) for index in range(12)]
    for part in reversed(expected):
        touch(tmp_path, part)
    first = os.path.basename(expected[0])
    others = (name, f"{first}.0123abcd.tmp", f"a{first}", "x-1-of-2.csv", "y.csv")
    touch(tmp_path, *others)
    touch(tmp_path, "xx-00000-of-00003.csv", "x-00000-of-000003.csv")
    assert parts.find_parts(path) == expected


def test_a_path_without_a_folder_is_in_the_working_directory(tmp_path, monkeypatch):
    touch(tmp_path, "x-00000-of-00002.csv", "x-00001-of-00002.csv")
    monkeypatch.chdir(tmp_path)
    assert parts.find_parts("x.csv") == ["x-00000-of-00002.csv", "x-00001-of-00002.csv"]


def test_without_parts_the_error_has_the_pattern(tmp_path):
    touch(tmp_path, "x.csv")
    message = error_of(tmp_path / "x.csv")
    assert message.startswith(f"--input={tmp_path}/x.csv: ")
    assert f"{tmp_path}/x-?????-of-?????.csv" in message


@pytest.mark.parametrize("folder", ["absent", "file"])
def test_a_folder_that_cannot_be_listed_is_named(tmp_path, folder):
    touch(tmp_path, "file")
    folder = tmp_path / folder
    assert error_of(folder / "x.csv").startswith(f"--input={folder}/x.csv: {folder} ")


def test_parts_of_several_counts_are_refused(tmp_path):
    touch(tmp_path, "x-00000-of-00001.csv", "x-00000-of-00010.csv")
    message = error_of(tmp_path / "x.csv")
    assert message.startswith(f"--input={tmp_path}/x.csv ")
    assert "--num_shards: 1, 10" in message


def test_missing_parts_are_named(tmp_path):
    touch(tmp_path, "x-00001-of-00004.csv", "x-00002-of-00004.csv")
    message = error_of(tmp_path / "x.csv")
    assert message.startswith(f"--input={tmp_path}/x.csv: 2 of 4 parts ")
    assert message.endswith(
        f"{tmp_path}/x-00000-of-00004.csv, {tmp_path}/x-00003-of-00004.csv."
    )


def test_of_many_missing_parts_ten_are_named(tmp_path):
    touch(tmp_path, "x-00000-of-01000.csv")
    message = error_of(tmp_path / "x.csv")
    assert "999 of 1000 parts" in message
    assert message.count("-of-01000.csv") == 10
    assert message.endswith("x-00010-of-01000.csv and 989 more.")


@pytest.mark.parametrize(
    "name, count", [("x-00000-of-00000.csv", 0), ("x-00002-of-00002.csv", 2)]
)
def test_an_out_of_range_part_is_refused(tmp_path, name, count):
    touch(tmp_path, name)
    message = error_of(tmp_path / "x.csv")
    assert f"{tmp_path}/{name} is not below {count}." in message
