"""Frames at given times: the same by seeking and by decoding all, of any file."""

import itertools

import numpy as np
import pytest

from tests import video_helpers as helpers
from yt8m_distill.video import decoding

pytestmark = pytest.mark.once

av = helpers.import_av()
SIZE = (helpers.HEIGHT, helpers.WIDTH)
NUM_FRAMES = 40
VARIED = list(itertools.accumulate([0.04, 0.11, 0.013, 0.5] * 10))
OPEN_GOPS = "open-gop=1:keyint=10:min-keyint=10"
CLIPS = {
    "closed.mp4": {},
    "one_key_frame.mp4": {"gop": 250},
    "open.mp4": {"options": {"x264-params": f"{OPEN_GOPS}:bframes=3"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": OPEN_GOPS}},
    "pyramid.mkv": {"options": {"x264-params": "bframes=4:b-pyramid=normal"}},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "variable.mp4": {"times": VARIED},
    "broadcast.ts": {},
    "old.avi": {},
    "program.mpg": {"codec": "mpeg2video"},
    "bare.h264": {},
    "ten_bits.mp4": {"pix_fmt": "yuv420p10le"},
    "odd.mp4": {"size": (63, 47), "pix_fmt": "yuv444p"},
    "two_sounds.mp4": {"audio_streams": 2},
}


@pytest.mark.parametrize("name", CLIPS)
def test_a_frame_does_not_depend_on_the_other_requested_frames(tmp_path, name):
    path = helpers.write_clip(tmp_path / name, NUM_FRAMES, **CLIPS[name])
    with decoding.Clip(path) as clip:
        every = clip.images(range(len(clip.seconds)), SIZE)
        assert clip.num_decoded == NUM_FRAMES
    assert helpers.numbers_in(every) == list(range(NUM_FRAMES))
    with decoding.Clip(path) as clip:  # Backward, with the decoder in any state.
        for number in range(NUM_FRAMES - 1, -1, -7):
            (image,) = clip.images([number], SIZE)
            np.testing.assert_array_equal(image, every[number])
    some = [1, 1, 13, 14, 30]
    with decoding.Clip(path) as clip:
        np.testing.assert_array_equal(clip.images(some, SIZE), every[some])
        assert clip.images([], SIZE).shape == (0, *SIZE, 3)


@pytest.mark.parametrize(
    "times", [[n / 25 for n in range(NUM_FRAMES)], VARIED], ids=["constant", "variable"]
)
@pytest.mark.parametrize("fps", [1, 2.5, 40])
def test_a_rate_takes_the_frame_that_is_shown_at_each_time(tmp_path, times, fps):
    path = helpers.write_clip(tmp_path / "x.mp4", times=times)
    shown = [round(time * 1000) - round(times[0] * 1000) for time in times]
    wanted = [i * 1000 / fps for i in range(1000) if i * 1000 / fps <= shown[-1]]
    expected = [max(n for n, ms in enumerate(shown) if ms <= at) for at in wanted]
    with decoding.Clip(path) as clip:
        np.testing.assert_allclose(clip.seconds * 1000, shown, atol=0.1)
        assert clip.at_rate(fps, 1000).tolist() == expected
        assert clip.at_rate(fps, 2).tolist() == expected[:2]


def test_nothing_after_the_last_wanted_frame_is_decoded(tmp_path):
    options = {"x264-params": "bframes=0"}
    path = helpers.write_clip(tmp_path / "x.mp4", options=options)
    # Without B-frames each frame refers to the one before it, from its key frame on.
    for wanted, needed in (([0], 1), ([12], 1), ([14], 3), ([5, 8, 26], 9 + 3)):
        with decoding.Clip(path) as clip:
            clip.images(wanted, SIZE)
            assert clip.num_decoded == needed
    # Every other frame is one to which nothing refers: they are left out.
    options = {"x264-params": "bframes=1:b-adapt=0"}
    path = helpers.write_clip(tmp_path / "b.mp4", gop=250, options=options)
    with decoding.Clip(path) as clip:
        clip.images([NUM_FRAMES - 1], SIZE)
        assert clip.num_decoded <= NUM_FRAMES / 2 + 1


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_a_rotated_video_is_turned_upright(tmp_path, rotation):
    path = helpers.write_clip(tmp_path / "x.mp4", 1, rotation=rotation)
    with decoding.Clip(path) as clip:
        (image,) = clip.images([0], (40, 60))
    # The white corner, stored at the top left, by turning counterclockwise.
    row, column = {90: (-1, 0), 180: (-1, -1), -90: (0, -1)}[rotation]
    corners = {(r, c): image[r, c].min() for r in (0, -1) for c in (0, -1)}
    assert max(corners, key=corners.get) == (row, column)
    assert sorted(corners.values())[-2] < 100 < 230 < corners[row, column]


def damaged(folder) -> dict[str, bytes]:
    """Name → content of files of which no video can be read."""

    def clip(name, **arguments):
        path = helpers.write_clip(folder / name, 20, **arguments)
        with open(path, "rb") as file:
            return file.read()

    good, matroska = clip("good.mp4"), clip("good.mkv")
    index_first = clip("first.mp4", container_options={"movflags": "faststart"})
    noise = np.random.default_rng(0).bytes(len(index_first))
    inside = index_first.index(b"mdat") + 40
    found = {
        "empty": b"",
        "text": b"no video",
        "page.mp4": b"<html>404</html>",
        "zeros.mp4": bytes(3000),
        "noise.mp4": noise,
        "header.mp4": good[:40],
        "half.mp4": good[: len(good) // 2],
        "no_end.mp4": good[:-200],
        "half_of_frames.mp4": index_first[: (inside + len(index_first)) // 2],
        "most_of_frames.mp4": index_first[:-30],
        "last_byte.mp4": index_first[:-1],
        "header.mkv": matroska[:200],
        "noise_in_frames.mp4": index_first[:inside] + noise[inside:],
        "zeros_in_frames.mp4": index_first[:inside] + bytes(len(noise) - inside),
        "no_index.mp4": good.replace(b"moov", b"moox"),
        "unknown_codec.mp4": good.replace(b"avc1", b"xxxx"),
        "no_codec_data.mp4": good.replace(b"avcC", b"xxxx"),
        "no_sizes.mp4": good.replace(b"stsz", b"xxxx"),
    }
    with av.open(str(folder / "frameless.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=25, width=64, height=48)
        stream.pix_fmt = "yuv420p"
        file.start_encoding()
    with av.open(str(folder / "sound.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros([1, 1024], np.float32), "fltp", "mono"
        )
        frame.rate = 16000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    for name in ("frameless.mp4", "sound.mp4"):
        found[name] = (folder / name).read_bytes()
    return found


def test_twenty_broken_files_are_a_line_each(tmp_path):
    broken = damaged(tmp_path)
    assert len(broken) == 20
    for name, content in broken.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError) as error, decoding.Clip(str(path)) as clip:
            clip.images(clip.at_rate(25, 300), SIZE)
        assert str(path) in str(error.value), name
        assert "\n" not in str(error.value), name


def test_titles_in_another_encoding_do_not_matter(tmp_path):
    path = tmp_path / "x.mp4"
    helpers.write_clip(path, 3, title="caf#")
    path.write_bytes(path.read_bytes().replace(b"caf#", "café".encode("latin-1")))
    with decoding.Clip(str(path)) as clip:
        assert len(clip.images(range(3), SIZE)) == 3


@pytest.mark.real_data
def test_a_real_clip_gives_the_same_frames_by_seeking(real_data):
    (path,) = real_data.glob("clips/*.mp4")
    with decoding.Clip(str(path)) as clip:
        seconds = clip.at_rate(1, 300)
        assert len(seconds) == 13
        together = clip.images(seconds, (64, 64))
        assert clip.num_decoded < 390 * 0.6  # It has 390 frames.
        for number, image in zip(seconds, together, strict=True):
            np.testing.assert_array_equal(clip.images([number], (64, 64))[0], image)
