"""Labels of files by name or number."""

import pathlib

import pytest

from yt8m_distill import vocabulary
from yt8m_distill.data import labels

pytestmark = pytest.mark.once


def write(path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_names_become_classes_in_alphabetical_order(tmp_path):
    path = write(
        tmp_path / "labels.csv",
        "file,labels",
        "a.mp4,dog;cat",
        'clips/b.mp4,"Speech, male",dog',
        "a.mp4,bird",
        "c,",
    )
    found = labels.read(path, {})
    assert found.names == {0: "Speech, male", 1: "bird", 2: "cat", 3: "dog"}
    assert found.find("anywhere/a.mp4") == [1, 2, 3]
    assert found.find("clips/b.mp4") == [0, 3]
    assert found.find("other/b.mp4") is None
    assert found.find("x/c.mkv") == []
    written = str(tmp_path / "vocabulary.csv")
    pathlib.Path(written).write_text(vocabulary.to_text(found.names), encoding="utf-8")
    assert vocabulary.read(written) == found.names
    assert labels.read(path, vocabulary.read(written)) == found


def test_numbers_are_classes(tmp_path):
    path = write(tmp_path / "labels.csv", "id,label", "a,7;3", "b,3,12")
    of = {"a": [3, 7], "b": [3, 12]}
    assert labels.read(path, {}) == (of, {}, "id", False)
    names = dict(enumerate("abcdefghijklm"))
    assert labels.read(path, names).of == of


@pytest.mark.parametrize("key", ["clips/a.mp4", "a.mp4", "a"])
def test_a_first_line_with_labels_of_a_file_is_not_lost(tmp_path, key):
    path = write(tmp_path / "labels.csv", f"{key},dog", "b.mp4,cat")
    with pytest.raises(ValueError, match="--labels.* clips/a.mp4"):
        labels.read(path, {}).find_each(["clips/a.mp4", "clips/b.mp4"])


def test_a_first_row_without_extension_is_not_lost_where_its_file_has_another(tmp_path):
    for first in ("a,dog", "a,7"):
        other = "a,bird;dog" if first == "a,dog" else "a,3"
        path = write(tmp_path / "labels.csv", first, other)
        with pytest.raises(ValueError, match="--labels.* a.npz"):
            labels.read(path, {}).find_each(["a.npz"])


@pytest.mark.parametrize("cells", [("1,0,1", "0,0,1"), ("1.0,0.0", "0.0,1.0")])
def test_a_column_per_class_is_refused(tmp_path, cells):
    # Else each video would have the classes 0 and 1, or those called 0.0 and 1.0.
    rows = [f"{name},{row}" for name, row in zip("ab", cells, strict=True)]
    path = write(tmp_path / "labels.csv", "file,dog,cat", *rows)
    with pytest.raises(ValueError, match="--labels.*dog;cat"):
        labels.read(path, {})
    # One column of numbers is classes, and so are two of which one is empty somewhere.
    path = write(tmp_path / "labels.csv", "file,one,two", "a,0,1", "b,1,")
    assert labels.read(path, {}).of == {"a": [0, 1], "b": [1]}


@pytest.mark.parametrize("header", ["video,labels", ",labels", "\nfile,labels"])
def test_a_header_is_no_row_even_if_a_file_is_called_so(tmp_path, header):
    path = write(tmp_path / "labels.csv", header, "video.mp4,3")
    assert labels.read(path, {}).find_each(["video.mp4"]) == {"video.mp4": [3]}


def test_a_name_of_two_classes_is_no_label(tmp_path):
    names = {0: "jaguar", 1: "cat", 2: "jaguar"}
    path = write(tmp_path / "labels.csv", "file,labels", "a,cat;2", "b,cat")
    assert labels.read(path, names).of == {"a": [1, 2], "b": [1]}
    path = write(tmp_path / "labels.csv", "file,labels", "a,cat", "b,jaguar")
    with pytest.raises(ValueError, match="line 3.*'jaguar'.* 0 and 2"):
        labels.read(path, names)


def test_a_number_that_is_no_class_is_named(tmp_path):
    path = write(tmp_path / "labels.csv", "id,label", "a,7", f"b,{10**6}")
    with pytest.raises(ValueError, match="line 3.*1000000"):
        labels.read(path, {})


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (["file,labels", "a,dog", "b,unicorn"], ["line 3", "'unicorn'"]),
        (["file,labels", "a,9"], ["line 2", "'9'"]),
        (["file,labels"], ["no rows"]),
        ([], ["no rows"]),
    ],
)
def test_an_invalid_value_is_named(tmp_path, lines, named):
    path = write(tmp_path / "labels.csv", *lines)
    with pytest.raises(ValueError) as error:
        labels.read(path, {0: "dog", 1: "cat"})
    assert str(error.value).startswith(f"--labels={path}")
    assert all(part in str(error.value) for part in named)
