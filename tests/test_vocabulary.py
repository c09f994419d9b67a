"""Names of classes in the CSVs of three data sets."""

import numpy as np
import pytest

from yt8m_distill import vocabulary
from yt8m_distill.evaluation import per_class

YT8M = (
    "Index,TrainVideoCount,KnowledgeGraphId,Name,WikiUrl,Vertical1\n"
    '0,788288,/m/03bt1gh,Game,https://x,Games\n1,539945,/m/01mw1,"a, b",,\n'
)


@pytest.mark.parametrize(
    "text",
    [
        YT8M,
        'index,mid,display_name\n0,/m/09x0r,"Game"\n1,/m/05zppz,"a, b"\n',
        'label_id,label_name\n0,Game\n1,"a, b"\n',
        '\ufefflabel_id,label_name\r\n0,Game\r\n1,"a, b"\r\n',
        '0,Game\n1,"a, b"\n',
    ],
    ids=["YouTube-8M", "AudioSet", "Kaggle", "with a mark", "no header"],
)
def test_the_names_of_each_data_set_are_found(tmp_path, text):
    path = tmp_path / "names.csv"
    path.write_bytes(text.encode())
    assert vocabulary.read(str(path), 2) == {0: "Game", 1: "a, b"}


@pytest.mark.parametrize(
    ("text", "num_classes", "named"),
    [
        (None, 0, "No such file"),
        ("a,b\nc,d\n", 0, "class numbers"),
        ("", 0, "class numbers"),
        ("0,Game\n10,Car\n", 10, "--num_classes=10"),
        (b"\xff\xfe0,Game\n", 0, "cannot be read"),
    ],
)
def test_an_invalid_vocabulary_is_one_line(tmp_path, text, num_classes, named):
    path = tmp_path / "names.csv"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as error:
        vocabulary.read(str(path), num_classes)
    assert f"--vocabulary={path}" in str(error.value) and named in str(error.value)


@pytest.mark.real_data
def test_the_real_files_name_all_classes(real_data):
    for name, count, first in (
        ("yt8m_meta/label_names_2018_kaggle.csv", 3862, "Game"),
        ("audioset_bal_train/class_labels_indices.csv", 527, "Speech"),
    ):
        names = vocabulary.read(str(real_data / name), count)
        assert names[0] == first and len(names) > 0.98 * count


def test_counts_come_from_the_files_that_have_them(tmp_path):
    path = str(tmp_path / "counts.csv")
    per_class.write(path, np.array([0.5, np.nan]), np.array([7, 0]), {})
    assert vocabulary.read_counts(path, "") == {0: 7, 1: 0}
    for text, found in (
        (YT8M, {0: 788288, 1: 539945}),
        ("class,videos\n0,1\n", "num_videos"),
        ("class,num_videos\n0,1\nx,2\n", "x,2"),
        ("class,num_videos\n0\n", "0 is not a class"),
    ):
        (tmp_path / "counts.csv").write_text(text)
        if isinstance(found, dict):
            assert vocabulary.read_counts(path, "") == found
            continue
        with pytest.raises(ValueError) as error:
            vocabulary.read_counts(path, f"class_counts={path}")
        assert f"class_counts={path}" in str(error.value) and found in str(error.value)
