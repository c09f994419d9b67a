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


def touch(folder, *names: str) -> None:
    for name in names:
        (folder / name).write_text("")


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


@pytest.mark.parametrize(
    "names, folder, words",
    [
        (["x.csv"], ".", ["/x-?????-of-?????.csv"]),
        ([], "absent", ["/absent "]),
        (["file"], "file", ["/file "]),
        (
            ["x-00000-of-00001.csv", "x-00000-of-00010.csv"],
            ".",
            ["--num_shards=10", "/x-00000-of-00001.csv."],
        ),
        (
            ["x-00001-of-00004.csv", "x-00002-of-00004.csv"],
            ".",
            ["2 of 4 parts", "/x-00000-of-00004.csv, ", "/x-00003-of-00004.csv."],
        ),
        # Ten are named.
        (["x-00000-of-01000.csv"], ".", ["999 of 1000", "x-00010-", "989 more"]),
        (["x-00000-of-00000.csv"], ".", ["/x-00000-of-00000.csv.", "--num_shards=0"]),
        (["x-00002-of-00002.csv"], ".", ["/x-00002-of-00002.csv.", "--num_shards=2"]),
    ],
    ids=str,
)
def test_parts_that_are_not_whole_are_one_line_with_what_is_wrong(
    tmp_path, names, folder, words
):
    touch(tmp_path, *names)
    path = os.path.join(tmp_path, folder, "x.csv")
    with pytest.raises(ValueError) as caught:
        parts.find_parts(path)
    message = str(caught.value)
    assert message.startswith(f"--input={path}") and "\n" not in message
    assert all(word in message for word in words)
    assert message.count("-of-01000.csv") in (0, 10)
