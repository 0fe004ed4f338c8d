"""What `--source` may name."""

from __future__ import annotations

import http.server
import itertools
import sys
import threading
import time
import types
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.dataset.pictures import decode_picture, read_picture
from utils.results import sources, streams
from utils.results.frames import Frame
from utils.results.sources import FileSource, open_source
from utils.results.streams import ScreenSource, StreamSource
from utils.system.downloads import public_name


def picture(value: int = 90, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    im = np.full((*size, 3), value, np.uint8)
    im[:, : size[1] // 2, 0] = 255 - value
    return im


def save(file: Path, value: int = 90) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(cv2.imencode(file.suffix, picture(value))[1].tobytes())
    return file


def video(file: Path, frames: int = 8, fps: float = 12.0) -> Path:
    """Frame k (from 1) is grey of value 20·k."""
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), fps, (64, 48))
    for k in range(1, frames + 1):
        writer.write(np.full((48, 64, 3), 20 * k % 256, np.uint8))
    writer.release()
    return file


def taken(source) -> list[Frame]:
    with source:
        return [frame for batch in source for frame in batch]


def test_folder_gives_pictures_then_videos_by_name(tmp_path):
    for name in ("b.png", "a.JPG", "sub/hidden.png"):
        save(tmp_path / name)
    video(tmp_path / "0.avi", frames=2)
    (tmp_path / "notes.md").write_text("no picture")
    frames = taken(open_source(tmp_path))
    assert [Path(f.path).name for f in frames] == ["a.JPG", "b.png", "0.avi", "0.avi"]
    assert frames[0].title == f"image 1/3 {tmp_path / 'a.JPG'}"
    assert frames[3].title == f"video 3/3 (2/2) {tmp_path / '0.avi'}"
    assert [f.number for f in frames] == [0, 0, 1, 2] and frames[0].fps is None


@pytest.mark.parametrize("name", ["one.png", "with space [1].png", "Ünï_心.jpg"])
def test_single_picture_of_any_name(tmp_path, name):
    frames = taken(open_source(str(save(tmp_path / name))))
    assert len(frames) == 1 and frames[0].mode == "image"
    assert np.abs(frames[0].image.astype(int) - picture()).mean() < 2


def test_globs(tmp_path):
    save(tmp_path / "a" / "1.png"), save(tmp_path / "b" / "2.png"), save(tmp_path / "b" / "3.jpg")
    assert [Path(p).name for p in open_source(f"{tmp_path}/*/*.png").images] == ["1.png", "2.png"]
    assert len(open_source(f"{tmp_path}/**/*.*")) == 3


def test_list_file(tmp_path, monkeypatch):
    save(tmp_path / "lists" / "beside.png"), save(tmp_path / "cwd.png"), save(tmp_path / "folder" / "x y.png")
    text = f"\ufeffbeside.png\r\n\n# a comment\ncwd.png\n{tmp_path}/folder\nmissing.png\n"
    (tmp_path / "lists" / "all.txt").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    source = open_source(tmp_path / "lists" / "all.txt")
    assert [Path(p).name for p in source.images] == ["beside.png", "cwd.png", "x y.png"]
    assert source.problems == [f"{tmp_path / 'lists' / 'all.txt'}:6: there is no missing.png"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "none.png", "no such file or folder"),
        (lambda p: p, "no picture or video"),
        (lambda p: p / "*.png", "no picture or video"),
        (lambda p: p / "none.streams", "no such list of streams"),
    ],
)
def test_nothing_found_is_said(tmp_path, make, message):
    with pytest.raises(FileNotFoundError, match=message):
        open_source(make(tmp_path))


def test_hint_at_subfolders_and_suffixes(tmp_path):
    save(tmp_path / "sub" / "a.png")
    with pytest.raises(FileNotFoundError, match=r"subfolders.*\*\*/\*"):
        open_source(tmp_path)


@pytest.mark.parametrize(("source", "stride"), [("", 1), ("a.png", 0)])
def test_malformed_arguments(source, stride):
    with pytest.raises(ValueError, match="--source|--vid-stride"):
        open_source(source, stride)


def test_bad_pictures_are_named_and_left_out(tmp_path):
    good = save(tmp_path / "good.jpg")
    (tmp_path / "cut.jpg").write_bytes(good.read_bytes()[: len(good.read_bytes()) // 2])
    (tmp_path / "cut.png").write_bytes(save(tmp_path / "whole.png").read_bytes()[:60])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 100)
    source = open_source(tmp_path)
    assert [Path(f.path).name for f in taken(source)] == ["good.jpg", "whole.png"]
    assert sorted(Path(p.split(": ")[0]).name for p in source.problems) == [
        "broken.mp4",
        "cut.jpg",
        "cut.png",
        "empty.jpg",
        "text.png",
    ]


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_cut_picture_is_refused_where_opencv_fills_it_with_grey(monkeypatch, suffix):
    data = cv2.imencode(suffix, picture())[1].tobytes()
    monkeypatch.setattr(sources.cv2, "imdecode", lambda *args: picture())  # as OpenCV 4 does
    assert np.array_equal(decode_picture(data), picture())
    with pytest.raises(ValueError, match="cut off"):
        decode_picture(data[:-60])


def test_jpeg_without_end_mark_but_with_all_data_is_whole():
    data = cv2.imencode(".jpg", picture())[1].tobytes()
    assert np.array_equal(decode_picture(data + b"\0\0"), decode_picture(data))


def test_exif_orientation_is_applied(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees
    Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(tmp_path / "a.jpg").shape == (64, 48, 3)


def test_video_stride_and_fps(tmp_path):
    file = video(tmp_path / "v.avi", frames=8, fps=12)
    frames = taken(open_source(file))
    assert [round(f.image.mean() / 20) for f in frames] == list(range(1, 9))
    assert frames[0].fps == 12 and frames[-1].title.startswith("video 1/1 (8/8)")
    frames = taken(open_source(file, vid_stride=3))
    assert [round(f.image.mean() / 20) for f in frames] == [3, 6]
    assert [f.number for f in frames] == [3, 6] and frames[0].fps == 4 and "(2/2)" in frames[1].title


def test_a_video_that_breaks_off_is_told_with_its_counts(tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "whole.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 12, (64, 48))
    rng = np.random.default_rng(0)
    for _ in range(60):
        writer.write(rng.integers(0, 256, (48, 64, 3), np.uint8))
    writer.release()
    whole = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 3])
    hole = bytearray(whole)
    hole[len(hole) // 2 : len(hole) // 2 + len(hole) // 10] = bytes(len(hole) // 10)
    (tmp_path / "hole.avi").write_bytes(hole)
    source = open_source(tmp_path)
    frames = taken(source)
    count = {name: sum(Path(f.path).name == name for f in frames) for name in ("whole.avi", "cut.avi", "hole.avi")}
    assert count["whole.avi"] == 60 and 10 < count["cut.avi"] < 30 and 45 < count["hole.avi"] < 60
    assert source.problems == [
        f"{tmp_path / 'cut.avi'}: breaks off or is damaged: {count['cut.avi']} of about 60 frames could be read",
        f"{tmp_path / 'hole.avi'}: breaks off or is damaged: {count['hole.avi']} of about 60 frames could be read",
    ]
    (tmp_path / "all.streams").write_text(str(tmp_path / "cut.avi"))
    source = open_source(tmp_path / "all.streams")
    assert len(taken(source)) == count["cut.avi"] and "of about 60" in source.problems[0]


def test_files_of_other_kinds_in_a_folder_are_counted(tmp_path):
    for name in ("a.png", "b.jfif.png", "d.heic"):
        save(tmp_path / "x.png").rename(tmp_path / name)
    (tmp_path / "b.jfif.png").rename(tmp_path / "b.jfif")
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.1 0.1")  # lies beside pictures
    for name in (tmp_path, f"{tmp_path}/*"):
        source = open_source(name)
        assert source.problems == ["2 files of other kinds passed over (.heic 1, .jfif 1)"] and len(source) == 1


@pytest.mark.parametrize("suffix", [".jfif", ".xyz", ""])
def test_a_file_named_by_itself_is_what_the_decoder_reads(tmp_path, suffix):
    save(tmp_path / "a.jpg").rename(tmp_path / f"a{suffix}")
    assert [f.mode for f in taken(open_source(tmp_path / f"a{suffix}"))] == ["image"]
    video(tmp_path / "v.avi", frames=2).rename(tmp_path / f"v{suffix}")
    assert [f.mode for f in taken(open_source(tmp_path / f"v{suffix}"))] == ["video"] * 2
    (tmp_path / f"t{suffix}").write_text("text")
    with pytest.raises(FileNotFoundError, match="neither a picture nor a video"):
        open_source(tmp_path / f"t{suffix}")


def test_home_and_video_devices(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_source(f"~/{save(tmp_path / 'a.png').name}").images == [str(tmp_path / "a.png")]
    monkeypatch.setattr(sources.cv2, "VideoCapture", FakeCapture)
    source = open_source("/dev/video4")
    assert isinstance(source, StreamSource) and source._streams[0].video.capture.address == 4
    source.__exit__()
    monkeypatch.setattr(FakeCapture, "isOpened", lambda self: False)
    with pytest.raises(ConnectionError, match="webcam /dev/video4 cannot be opened"):
        open_source("/dev/video4")


def test_list_of_streams_reads_files_side_by_side(tmp_path):
    a, b = video(tmp_path / "a.avi", frames=5), video(tmp_path / "b.avi", frames=3)
    (tmp_path / "all.streams").write_text(f"{a}\n\n{b}\n{tmp_path / 'none.avi'}\n")
    source = open_source(tmp_path / "all.streams")
    frames = taken(source)
    assert [f.number for f in frames if f.path == str(a)] == [1, 2, 3, 4, 5]  # none lost
    assert [f.number for f in frames if f.path == str(b)] == [1, 2, 3]
    assert len(source.problems) == 1 and "none.avi cannot be opened" in source.problems[0]


def test_list_file_of_streams_alone_is_a_list_of_streams(tmp_path, monkeypatch, capsys):
    """As until YOLOv5 v6.2; `.streams` came with v7.0."""
    monkeypatch.setattr(sources.cv2, "VideoCapture", FakeCapture)
    file = tmp_path / "streams.txt"
    file.write_text("rtsp://a/1\n# my webcam\n0\n\nhttp://b/live\n")
    source = open_source(file)
    assert isinstance(source, StreamSource)
    assert [s.name for s in source._streams] == ["rtsp://a/1", "0", "http://b/live"]
    source.__exit__()
    assert f"{file}: every line of it is a stream" in capsys.readouterr().out
    picture_file = save(tmp_path / "a.png")
    file.write_text(f"{picture_file}\nrtsp://me:secret@a/1\n")
    source = open_source(file)
    assert source.images == [str(picture_file)]
    assert source.problems == [f"{file}:2: rtsp://a/1 is a stream; streams need a list of their own"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0").mkdir()
    save(tmp_path / "0" / "b.png")
    file.write_text("0\n")  # a folder of that name is there
    assert len(open_source(file).images) == 1


def test_a_file_at_an_address_ends(tmp_path, monkeypatch):
    """It is opened as a stream where its address has no suffix of videos, and says how many frames it has."""
    file = str(video(tmp_path / "a.avi", frames=8))
    monkeypatch.setattr(streams, "is_url", lambda address: True)
    with StreamSource([file], pause=0.01) as source:
        numbers = [frame.number for frames in itertools.islice(source, 50) for frame in frames]
    assert numbers[-1] == 8 and len(numbers) <= 8 and not source.problems


def test_no_part_of_a_password_is_shown():
    assert public_name("rtsp://u:p@ss@host:554/1") == "rtsp://host:554/1"
    assert public_name("http://host/a@b.mp4") == "http://host/a@b.mp4"


def test_closing_a_stream_early_ends_its_threads(tmp_path):
    source = StreamSource([str(video(tmp_path / "a.avi", frames=8))])
    with source:
        next(iter(source))
    assert not any(t.is_alive() for t in source._threads)


class Camera(http.server.BaseHTTPRequestHandler):
    """A camera that serves MJPEG and hangs up after a few frames."""

    frames, connections = 12, 0

    def do_GET(self):  # noqa: N802 - the name is the library's
        Camera.connections += 1
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        jpeg = cv2.imencode(".jpg", picture())[1].tobytes()
        for _ in range(self.frames):
            self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg))
            self.wfile.write(jpeg + b"\r\n")
            time.sleep(0.01)

    def log_message(self, *args):
        pass


@pytest.fixture
def camera():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Camera.connections = 0
    yield f"http://127.0.0.1:{server.server_address[1]}/live"
    server.shutdown()
    server.server_close()


def test_http_stream_reconnects_and_keeps_time(camera, capsys):
    try:
        source = StreamSource([camera], pause=0.01)
    except ConnectionError:
        pytest.skip("this OpenCV reads no MJPEG over http")
    seen = []
    with source:
        for batch in source:
            seen += batch
            if Camera.connections >= 2 and len(seen) > 12:
                break
    assert "reconnecting (1 of 6)" in capsys.readouterr().out
    assert all(f.image.shape == (48, 64, 3) and f.mode == "stream" for f in seen)
    times = [f.seconds for f in seen]
    assert times[0] == pytest.approx(0, abs=0.05) and times == sorted(times)


class FakeCapture:
    """A camera that gives two frames, then nothing."""

    def __init__(self, address):
        self.left, self.address = 2, address

    def isOpened(self):  # noqa: N802
        return True

    def get(self, key):
        return float("nan")

    def grab(self):
        self.left -= 1
        return self.left >= 0

    def retrieve(self):
        return True, picture()

    def open(self, address):
        return False

    def release(self):
        pass


def test_lost_stream_ends_with_a_message(monkeypatch):
    monkeypatch.setattr(sources.cv2, "VideoCapture", FakeCapture)
    source = StreamSource(["rtsp://me:secret@camera/1"], retries=3, pause=0.001)
    frames = taken(source)
    assert 1 <= len(frames) <= 2  # the newest only
    assert frames[0].fps == 30  # unknown
    assert source.problems == ["stream rtsp://camera/1: reconnecting failed 3 times, it ends here"]
    assert "secret" not in frames[0].title + frames[0].path


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("97", "webcam 97"),
        ("https://www.youtube.com/watch?v=x", "web page"),
        ("rtsp://127.0.0.1:9/x", "cannot be opened"),
    ],
)
def test_stream_that_cannot_be_opened(monkeypatch, source, message):
    monkeypatch.setattr(FakeCapture, "isOpened", lambda self: False)
    monkeypatch.setattr(sources.cv2, "VideoCapture", FakeCapture)
    with pytest.raises(ConnectionError, match=message):
        open_source(source)


def test_webcam_id_is_passed_as_a_number(monkeypatch):
    monkeypatch.setattr(sources.cv2, "VideoCapture", FakeCapture)
    source = open_source("0")
    assert isinstance(source, StreamSource) and source._streams[0].video.capture.address == 0
    source.__exit__()


def test_picture_and_video_addresses_are_files_not_streams():
    source = FileSource("https://example.org/a/b.jpg?size=1")
    assert source.images == ["https://example.org/a/b.jpg?size=1"]
    assert FileSource("http://example.org/c.mp4").videos == ["http://example.org/c.mp4"]


def test_screen_needs_mss(monkeypatch):
    monkeypatch.setitem(sys.modules, "mss", None)
    with pytest.raises(ModuleNotFoundError, match="pip install mss"):
        open_source("screen")


class FakeScreens:
    monitors = [
        {"left": 0, "top": 0, "width": 200, "height": 100},
        {"left": 100, "top": 0, "width": 100, "height": 100},
    ]

    def grab(self, area):
        return np.full((area["height"], area["width"], 4), 7, np.uint8)

    def close(self):
        pass


def test_screen(monkeypatch):
    monkeypatch.setitem(sys.modules, "mss", types.SimpleNamespace(mss=FakeScreens))
    frame = next(iter(open_source("screen 1")))[0]
    assert frame.image.shape == (100, 100, 3) and frame.mode == "stream" and frame.number == 1
    assert ScreenSource("screen 1 5 6 70 80").area == {"left": 105, "top": 6, "width": 70, "height": 80}
    for text in ("screen 2", "screen 1 2 3", "screen x"):
        with pytest.raises(ValueError, match="screen"):
            open_source(text)
