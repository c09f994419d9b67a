"""Frames of a video file at given times, decoding as few others as possible.

A first pass reads the packets without decoding them, which costs little more than
reading the file, and gives the time of each frame and the key frames. Each wanted frame
is then decoded from the key frame before it, so its pixels do not depend on which other
frames are requested.

PyAV is the extra `video`; it is imported when a file is opened.
"""

import bisect
import contextlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

_SEEKABLE = ("mov", "matroska")  # Containers (mp4, webm too) with an index of packets.
_SKIPPING = ("h264", "hevc")  # Decoders that know which frames others need.
_ROUNDING = 1e-6  # Seconds by which a time stamp may be off.


def import_av() -> Any:
    """PyAV, with FFmpeg's own messages off.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError(
            f"Videos are read with PyAV, which cannot be imported ({error}): "
            "pip install av."
        ) from error
    av.logging.set_level(None)
    return av


@contextlib.contextmanager
def one_line_errors(path: str) -> Iterator[None]:
    """Turns what FFmpeg says of a file into one line.

    Raises:
        ValueError: `<path>: it cannot be read: <reason>.`
    """
    av = import_av()
    try:
        yield
    except (av.error.FFmpegError, OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{path}: it cannot be read: {reason}.") from error


def open_container(path: str) -> Any:
    """PyAV's container of a file; metadata may be in any encoding."""
    return import_av().open(path, metadata_errors="replace")


class Clip:
    """A video file of N frames, numbered in the order in which they are shown.

    Attributes:
        path: a local file.
        seconds: [N] float64 when each frame is shown, counted from the first one.
        num_decoded: frames decoded so far: the wanted ones and those they depend on.

    Raises:
        ValueError: for a file without a video stream or frames, or one that is damaged
            or truncated. Damage inside a frame is found when the frame is decoded.
    """

    def __init__(self, path: str):
        self.path = path
        self.num_decoded = 0
        scaling = import_av().video.reformatter
        self._reformatter = scaling.VideoReformatter()
        # The same numbers on every machine.
        kinds = scaling.Interpolation
        self._scaling = kinds.AREA | kinds.ACCURATE_RND | kinds.BITEXACT
        with one_line_errors(path):
            self._open()
            try:
                self._read_packets()
            except BaseException:
                self._container.close()
                raise

    def __enter__(self) -> "Clip":
        return self

    def __exit__(self, *error) -> None:
        self._container.close()

    def _open(self) -> None:
        av = import_av()
        self._container = open_container(self.path)
        self._stream = stream = self._container.streams.best("video")
        cover = av.stream.Disposition.attached_pic
        problem = ""
        if stream is None or stream.disposition & cover:
            problem = "there is no video stream"
        elif stream.codec_context is None:
            problem = "there is no decoder for its video"
        if problem:
            self._container.close()
            raise ValueError(f"{self.path}: {problem}.")
        # Threads over frames hold frames back, for which others would be decoded.
        stream.thread_type = "SLICE"
        self._demuxed = self._container.demux(stream)
        self._next = 0  # The packet that the demuxer gives next.

    def _read_packets(self) -> None:
        """Reads the time stamps of all packets, and which are key frames."""
        stamps, hidden, decode_times, self._keys = [], set(), [], []
        for number, packet in enumerate(p for p in self._demuxed if p.size):
            if packet.is_corrupt:
                raise ValueError(f"{self.path}: it is damaged or truncated.")
            if packet.is_keyframe:
                self._keys.append(number)
            if packet.is_discard:  # Before the beginning of an edited video.
                hidden.add(number)
            stamps.append(packet.pts)
            decode_times.append(packet.pts if packet.dts is None else packet.dts)
        if len(hidden) == len(stamps):
            raise ValueError(f"{self.path}: its video stream has no frames.")
        self._next = len(stamps)
        self._stamps, self._decode_times = stamps, decode_times
        self._number_of = {stamp: number for number, stamp in enumerate(stamps)}
        kind = self._container.format.name.split(",")[0]
        # Otherwise frames can only be counted: AVI has the order of decoding alone.
        self._is_stamped = len({*stamps} - {None}) == len(stamps) and not (
            kind == "avi" and self._stream.codec_context.has_b_frames
        )
        if kind not in _SEEKABLE or self._keys[:1] != [0]:
            self._keys = [0]
        if not self._is_stamped:
            rate = float(self._stream.average_rate or 25)
            self.seconds = np.arange(len(stamps) - len(hidden)) / rate
            return
        shown = [n for n in range(len(stamps)) if n not in hidden]
        self._shown = sorted(shown, key=lambda number: stamps[number])
        times = np.array([stamps[n] for n in self._shown], np.int64)
        self.seconds = (times - times[0]) * float(self._stream.time_base)

    def at_rate(self, fps: float, max_frames: int) -> np.ndarray:
        """The frames that are shown at 0, 1 / fps, 2 / fps, ... seconds.

        Returns:
            [n] int64 numbers of frames, n = min(floor(duration * fps) + 1, max_frames),
            where the duration ends with the beginning of the last frame. A frame that
            is shown longer than 1 / fps is repeated.
        """
        count = min(int((self.seconds[-1] + _ROUNDING) * fps) + 1, max_frames)
        times = np.arange(count) / fps + _ROUNDING
        return np.searchsorted(self.seconds, times, side="right") - 1

    def images(self, numbers: Iterable[int], size: tuple[int, int]) -> np.ndarray:
        """These frames, rotated upright and stretched to a size.

        Args:
            numbers: of n frames, ascending; repeats are decoded once.
            size: height and width, to which each frame is stretched.

        Returns:
            [n, height, width, 3] uint8, RGB.

        Raises:
            ValueError: for a frame that cannot be decoded.
        """
        numbers = [int(number) for number in numbers]
        found = {n: self._image(f, size) for n, f in self._decoded({*numbers})}
        for number in numbers:
            if number not in found:
                raise ValueError(
                    f"{self.path}: the frame at {self.seconds[number]:.2f} s cannot be "
                    "decoded."
                )
        if not numbers:
            return np.zeros([0, *size, 3], np.uint8)
        return np.stack([found[number] for number in numbers])

    def _image(self, frame, size: tuple[int, int]) -> np.ndarray:
        turns = round(frame.rotation / 90) % 4
        height, width = size[::-1] if turns % 2 else size
        scaled = self._reformatter.reformat(
            frame, width, height, "rgb24", interpolation=self._scaling, threads=1
        )
        return np.rot90(scaled.to_ndarray(), turns)

    def _decoded(self, wanted: set[int]) -> Iterator[tuple[int, Any]]:
        """(number, frame) of each wanted frame, in decoding order."""
        with one_line_errors(self.path):
            if not self._is_stamped:
                every = range(len(self._stamps))
                frames = enumerate(self._run(0, {*every}))
                yield from ((n, frame) for n, frame in frames if n in wanted)
                return
            packets = {self._shown[number]: number for number in wanted}
            for start, targets in self._runs(packets):
                for frame in self._run(start, targets):
                    packet = self._number_of.get(frame.pts)
                    if packet in targets:
                        yield packets[packet], frame

    def _runs(self, packets: Iterable[int]) -> list[tuple[int, set[int]]]:
        """Key packets to begin with, and the wanted packets that follow each."""
        runs: list[tuple[int, set[int]]] = []
        for packet in sorted(packets):
            key = bisect.bisect(self._keys, packet) - 1
            # A frame that is shown before its key frame needs the one before that.
            while key and self._stamps[packet] < self._stamps[self._keys[key]]:
                key -= 1
            start, targets = self._keys[key], {packet}
            while runs and start <= max(runs[-1][1]):
                before, others = runs.pop()
                start, targets = min(start, before), targets | others
            runs.append((start, targets))
        return runs

    def _run(self, start: int, targets: set[int]) -> Iterator[Any]:
        """The frames decoded from a key packet up to the last target."""
        self._go_to(start)
        codec = self._stream.codec_context
        codec.flush_buffers()
        # A frame to which no other refers is decoded only where it is wanted.
        skipped = "NONREF" if codec.name in _SKIPPING else "DEFAULT"
        while self._next <= max(targets):
            number, packet = self._next, self._packet()
            if self._is_stamped and self._stamps[number] < self._stamps[start]:
                continue  # It would need frames before the key frame.
            codec.skip_frame = "DEFAULT" if number in targets else skipped
            yield from self._counted(codec.decode(packet))
        yield from self._counted(codec.decode(None))

    def _counted(self, frames: list) -> list:
        self.num_decoded += len(frames)
        return frames

    def _packet(self) -> Any:
        self._next += 1
        for packet in self._demuxed:
            if packet.size:
                return packet
        raise ValueError(f"{self.path}: it changed while it was read.")

    def _go_to(self, start: int) -> None:
        """Makes the packet `start` the demuxer's next one."""
        if self._next == start:
            return
        number = len(self._stamps)
        if start:
            self._container.seek(self._decode_times[start], stream=self._stream)
            self._demuxed = self._container.demux(self._stream)
            first = self._packet()
            number = self._number_of.get(first.pts, number)
            self._demuxed = itertools.chain([first], self._demuxed)
        if number > start:  # At the beginning, or where an index leads too far.
            self._container.close()
            self._open()
            number = 0
        self._next = number
        while self._next < start:
            self._packet()
