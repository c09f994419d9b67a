"""Writes are atomic, and file system errors become one line."""

import errno
import os

import pytest
import tensorflow as tf

from tests import training_helpers as helpers
from yt8m_distill import files


def test_the_reason_is_extracted_from_any_error():
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


def test_an_error_names_what_cannot_be_written():
    with pytest.raises(ValueError) as error:
        with files.one_line_errors("--output_file=x", "The old one is there."):
            raise OSError(28, "No space left on device")
    message = str(error.value)
    assert message.startswith("--output_file=x ")
    assert message.endswith(": No space left on device. The old one is there.")
    with pytest.raises(KeyError), files.one_line_errors("--output_file=x"):
        raise KeyError("of another kind")


def test_a_text_file_is_replaced_and_no_other_file_is_left(tmp_path):
    path = tmp_path / "a.json"
    for text in ("first", "second"):
        files.write_text(str(path), text)
        assert path.read_text() == text
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_full_disk_leaves_the_old_text_and_no_other_file(tmp_path):
    path = tmp_path / "a.json"
    files.write_text(str(path), "old")
    with helpers.full_disk(100), pytest.raises(ValueError) as error:
        files.write_text(str(path), "x" * 101)
    assert str(path) in str(error.value) and "File too large" in str(error.value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_what_comes_to_light_when_a_file_is_flushed_names_it(tmp_path, monkeypatch):
    """As on disks over the network; Python gives an error without a name."""

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as error, files.replacing(f"{tmp_path}/a") as temporary:
        open(temporary, "w").close()
    assert error.value.filename == temporary and error.value.errno == errno.ENOSPC
    assert not os.listdir(tmp_path)


def test_a_file_where_a_folder_is_needed_is_one_line(tmp_path):
    (tmp_path / "run").write_text("")
    path = str(tmp_path / "run" / "manifest.json")
    with pytest.raises(ValueError) as error:
        files.write_text(path, "x")
    assert path in str(error.value) and "Not a directory" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_is_removed_if_the_block_raises(tmp_path):
    folder = tmp_path / "new"
    with pytest.raises(helpers.Stop), files.removed_after_errors(str(folder)):
        folder.mkdir()
        (folder / "part").write_text("half")
        raise helpers.Stop
    assert not folder.exists()
    with files.removed_after_errors(str(folder)):
        folder.mkdir()
    assert folder.exists()


def test_names_in_a_folder_are_sorted_and_empty_without_it(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a").write_text("")
    assert files.names_in(str(tmp_path)) == ["a", "b"]
    assert files.names_in(str(tmp_path / "nothing")) == []


def test_a_folder_is_locked_until_the_block_ends(tmp_path):
    for _ in range(2):
        with files.held(str(tmp_path), "--train_dir=x"):
            with pytest.raises(ValueError, match="--train_dir=x: another process is"):
                with files.held(str(tmp_path), "--train_dir=x"):
                    pass
    # Other folders and remote paths are not locked.
    with files.held(str(tmp_path), "a"), files.held(str(tmp_path.parent), "b"):
        with files.held("gs://bucket/run", "c"), files.held("gs://bucket/run", "c"):
            pass


def test_a_file_system_without_locks_locks_nothing(tmp_path, monkeypatch):
    def refuse(*_, **more):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.filelock.FileLock, "acquire", refuse)
    with files.held(str(tmp_path), "x"), files.held(str(tmp_path), "x"):
        pass
