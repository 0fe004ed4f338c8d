"""Frames by their number: a number is drawn into every frame and read again from what was decoded."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from tad.burn import burn
from tad.config import config_from
from tad.predict import VideoWindows
from tad.video import VideoFile
from utils.results.timelines import Event

BITS, CELL = 10, 16


def numbered(i: int) -> np.ndarray:
    """A picture with i as black and white squares, and noise of its own below."""
    picture = np.random.default_rng(i).integers(0, 256, (64, BITS * CELL, 3), dtype=np.uint8)
    picture[:32] = 128
    for bit in range(BITS):
        picture[8:24, bit * CELL + 2 : (bit + 1) * CELL - 2] = 255 * (i >> bit & 1)
    return picture


def read_number(picture: np.ndarray) -> int:
    cells = picture[12:20].mean((0, 2)).reshape(BITS, CELL)[:, 4:-4].mean(1)
    return sum(1 << bit for bit, value in enumerate(cells) if value > 128)


def write(file, frames: int, codec: str = "libx264", rate: int = 25, times=None, container_options=None, **options):
    with av.open(str(file), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options={k: str(v) for k, v in options.items()})
        stream.width, stream.height, stream.pix_fmt = BITS * CELL, 64, "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered(i), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = int(times[i]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


KINDS = {
    "b_frames.mp4": {"bf": 3, "g": 30},
    "no_b_frames.mp4": {"bf": 0, "g": 12},
    "open_gop.mp4": {"bf": 3, "g": 20, "x264-params": "open-gop=1"},
    "one_key_frame.mkv": {"bf": 2, "g": 1000},
    "old.avi": {"codec": "mpeg4", "g": 12},
    "b_frames.avi": {"bf": 3, "g": 12},
    "open_gop.avi": {"bf": 3, "g": 20, "x264-params": "open-gop=1"},
    "old_b_frames.avi": {"codec": "mpeg4", "bf": 2, "g": 12},
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return {name: write(folder / name, 140, **options) for name, options in KINDS.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_frame_is_the_one_asked_for(videos, name, threads):
    with VideoFile(videos[name], threads) as video:
        assert video.frames == 140 and (video.width, video.height) == (BITS * CELL, 64)
        for numbers in (range(0, 140, 4), [77], [5, 4, 3, 100, 5], [139, 0], range(60, 70)):
            assert [read_number(f) for f in video.read(numbers)] == list(numbers)
        assert video.duration == pytest.approx(140 / 25, abs=0.01) and video.even


@pytest.mark.slow
def test_a_varying_frame_rate(tmp_path):
    rng = np.random.default_rng(0)
    times = np.concatenate([[0], np.cumsum(rng.choice([20, 33, 40, 120], 99))])
    file = write(tmp_path / "v.mkv", 100, times=times, bf=2, g=25)
    with VideoFile(file) as video:
        assert video.frames == 100 and not video.even
        assert np.allclose(video.times * 1000, times - times[0], atol=1.5)
        assert [read_number(f) for f in video.read([0, 31, 62, 99])] == [0, 31, 62, 99]


def test_only_what_is_needed_is_decoded(videos, monkeypatch):
    with VideoFile(videos["no_b_frames.mp4"]) as video:
        video.read([100])
        decoded = 0
        real = video._container.decode

        def counting(stream):
            nonlocal decoded
            for frame in real(stream):
                decoded += 1
                yield frame

        class Container:
            decode = staticmethod(counting)

            def __getattr__(self, name):
                return getattr(video_container, name)

        video_container, video._container = video._container, Container()
        video.read([3])
        assert decoded <= 12  # from the key frame before it, not from where the decoder stood


def test_each_picture_is_changed_as_it_comes(videos):
    with VideoFile(videos["b_frames.mp4"]) as video:
        assert video.read([1, 2], lambda picture: picture[:8, :8]).shape == (2, 8, 8, 3)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "no video that can be read"), (b"hello" * 100, "no video that can be read")],
)
def test_a_file_that_is_no_video(tmp_path, content, says):
    file = tmp_path / "a.mp4"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=says) as error:
        VideoFile(file)
    assert str(file) in str(error.value)
    with pytest.raises(FileNotFoundError, match="is not there"):
        VideoFile(tmp_path / "b.mp4")
    with pytest.raises(FileNotFoundError, match="is not there"):
        VideoFile(tmp_path)


def test_a_file_without_pictures(tmp_path):
    file = tmp_path / "sound.mkv"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="holds no video"):
        VideoFile(file)


def test_a_file_cut_short(videos, tmp_path):
    whole = videos["one_key_frame.mkv"].read_bytes()
    file = tmp_path / "cut.mkv"
    file.write_bytes(whole[: len(whole) // 2])
    with VideoFile(file) as video:  # what came before the cut can be read
        assert 20 < video.frames < 140
        last = video.frames - 3  # the very last packet may be half
        assert read_number(video.read([last])[0]) == last
        with pytest.raises(ValueError, match=f"has no frame 139, only {video.frames}"):
            video.read([139])
    whole = videos["b_frames.mp4"].read_bytes()  # its list of frames stands at the end
    file = tmp_path / "cut.mp4"
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut.mp4: no video that can be read, or a damaged one"):
        VideoFile(file)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 0])
def test_frames_that_cannot_be_decoded(tmp_path, threads, capsys):
    """Cut behind its list of frames, or with its middle overwritten: the rest is read, and the damage told once."""
    whole = write(tmp_path / "whole.mp4", 60, bf=3, g=30, container_options={"movflags": "+faststart"}).read_bytes()
    for name, content in {
        "cut.mp4": whole[: len(whole) * 6 // 10],
        "middle.mp4": whole[: len(whole) // 2] + b"Z" * (len(whole) // 4) + whole[len(whole) * 3 // 4 :],
    }.items():
        (tmp_path / name).write_bytes(content)
        with VideoFile(tmp_path / name, threads) as video:
            assert 30 < video.frames <= 60
            numbers = [read_number(p) for p in video.read(range(video.frames))]
            assert numbers[:25] == list(range(25)) and len(numbers) == video.frames
            assert video.read([0, 40 if name == "middle.mp4" else video.frames - 1]).shape[0] == 2
        assert capsys.readouterr().out.count(f"{tmp_path / name}: damaged; for frames") == 1
    (tmp_path / "list.mp4").write_bytes(whole[: whole.index(b"mdat") + 8] + b"Z" * len(whole))
    with VideoFile(tmp_path / "list.mp4", threads) as video, pytest.raises(ValueError, match="list.mp4: frame 3 of"):
        video.read([3, 4])


def test_a_video_that_nothing_decodes_is_told(videos, tmp_path):
    content = videos["b_frames.avi"].read_bytes()
    (tmp_path / "a.avi").write_bytes(content.replace(b"H264", b"ZZZZ").replace(b"h264", b"ZZZZ"))
    with pytest.raises(ValueError, match="of a kind that nothing here decodes"):
        VideoFile(tmp_path / "a.avi")


def test_a_damaged_video_is_burned_without_what_is_lost(tmp_path):
    """A window that holds no whole frame has the nearest key frame in every place."""
    whole = write(tmp_path / "whole.mp4", 120, bf=3, g=10, container_options={"movflags": "+faststart"}).read_bytes()
    start, half = whole.index(b"mdat") + 8, len(whole) // 2
    (tmp_path / "middle.mp4").write_bytes(whole[: start + 2000] + b"Z" * (half - start - 2000) + whole[half:])
    with VideoFile(tmp_path / "middle.mp4") as video:
        (seen,) = {read_number(p) for p in video.read([20, 30, 40])}
        assert seen == 0 or seen > 50
        burn(video, [Event(0, 2, "a", 0.9)], ["a"], tmp_path / "burned.mp4")
        assert video.read([0]).shape[0] == 1
    with VideoFile(tmp_path / "burned.mp4") as burned:
        numbers = [read_number(p) for p in burned.read(range(burned.frames))]
        assert numbers[-1] == 119 and 40 < len(numbers) < 120
        assert burned.times[-1] == pytest.approx(119 / 25 - numbers[0] / 25, abs=0.01)


def test_windows_of_a_video(videos):
    """Every window has the frames that it should, whatever was kept from the one before."""
    config = config_from({"frames": 32, "frame_stride": 2, "imgsz": 64, "blocks": [1, 1, 2]}, "test")
    windows = VideoWindows(videos["b_frames.mp4"], config, threads=1)
    windows.transform.size, windows.transform.box = (BITS * CELL, 64), (0, 0, BITS * CELL, 64)
    windows.transform.side = 64
    windows.transform.frame = lambda picture: picture  # whole pictures, so that numbers can be read
    starts = []
    for window, frames, mask in windows:
        seen = [read_number(f) for f in frames[0].permute(1, 2, 3, 0).numpy()]
        wanted = list(range(0, 140, 2))[window.start : window.end]
        assert seen[: len(wanted)] == wanted and mask[0].sum() == len(wanted)
        starts.append(window.start)
    assert starts == [0, 16, 32, 38] and len(windows) == 4
