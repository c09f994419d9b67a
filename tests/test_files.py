"""Files appear whole or not at all, and a refusal is one line."""

import errno
import os

import pytest
import tensorflow as tf

from tests import training_helpers as helpers
from yt8m_distill import files


def test_the_reason_of_the_system_is_all_that_is_said():
    assert files.reason(OSError(28, "No space left on device")) == (
        "No space left on device"
    )
    assert files.reason(OSError("odd.")) == "odd"
    assert files.reason(OSError()) == "OSError"
    message = (
        "{{function_node __wrapped__SaveV2_device_/job:localhost}} /run/ckpt-3; File "
        "too large [Op:SaveV2]\nmore"
    )
    error = tf.errors.ResourceExhaustedError(None, None, message)
    assert files.reason(error) == "File too large"


def test_a_refusal_names_what_cannot_be_written():
    with pytest.raises(ValueError) as error:
        with files.one_line_errors("--output_file=x", "The old one is there."):
            raise OSError(28, "No space left on device")
    assert str(error.value) == (
        "--output_file=x cannot be written: No space left on device. The old one is "
        "there."
    )
    with pytest.raises(KeyError), files.one_line_errors("--output_file=x"):
        raise KeyError("of another kind")


def test_a_text_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    for text in ("first", "second"):
        files.write_text(str(path), text)
        assert path.read_text() == text
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_full_disk_leaves_the_old_text_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    files.write_text(str(path), "old")
    with helpers.full_disk(100), pytest.raises(ValueError) as error:
        files.write_text(str(path), "x" * 101)
    assert str(error.value) == f"{path} cannot be written: File too large."
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_file_in_the_place_of_a_folder_is_one_line(tmp_path):
    (tmp_path / "run").write_text("")
    path = str(tmp_path / "run" / "manifest.json")
    with pytest.raises(ValueError) as error:
        files.write_text(path, "x")
    assert str(error.value) == f"{path} cannot be written: Not a directory."


def test_what_a_block_began_is_removed_after_an_error(tmp_path):
    folder = tmp_path / "new"
    with pytest.raises(helpers.Stop), files.removed_after_errors(str(folder)):
        folder.mkdir()
        (folder / "part").write_text("half")
        raise helpers.Stop
    assert not folder.exists()
    with files.removed_after_errors(str(folder)):
        folder.mkdir()
    assert folder.exists()


def test_names_in_a_folder_are_sorted_and_none_without_it(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a").write_text("")
    assert files.names_in(str(tmp_path)) == ["a", "b"]
    assert files.names_in(str(tmp_path / "nothing")) == []


def test_a_folder_is_held_until_the_end(tmp_path):
    for _ in range(2):
        with files.held(str(tmp_path), "--train_dir=x"):
            with pytest.raises(ValueError, match="--train_dir=x: another process is"):
                with files.held(str(tmp_path), "--train_dir=x"):
                    pass
    # Another folder, and one that only TensorFlow knows, are not held.
    with files.held(str(tmp_path), "a"), files.held(str(tmp_path.parent), "b"):
        with files.held("gs://bucket/run", "c"), files.held("gs://bucket/run", "c"):
            pass


def test_where_there_are_no_locks_nothing_is_held(tmp_path, monkeypatch):
    def refuse(*_, **more):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.filelock.FileLock, "acquire", refuse)
    with files.held(str(tmp_path), "x"), files.held(str(tmp_path), "x"):
        pass
