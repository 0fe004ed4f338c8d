"""Every command line: numbers out of their range, folders for files, broken places end in one sentence."""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tad_set import make_set, save_new_network
from tiny_weights import save_weights

import check_data
import compare_joint
import detect
import detect_tad
import export
import export_tad
import train_joint
import train_tad
import val_joint
import val_tad
from tad import convert
from utils.system.arguments import BY_ITSELF, MEASURED, RANGES, Range, check_ranges, parse_words
from utils.system.command_line import one_sentence, told
from utils.system.devices import select_device

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {
    s.__name__: s
    for s in (
        train_joint, val_joint, detect, export, check_data, compare_joint, train_tad, val_tad, detect_tad, export_tad,
        convert,
    )
}  # fmt: skip
REQUIRED = {
    "check_data": ["--data", "x.yaml"],
    "compare_joint": ["--data", "x.yaml"],
    "detect_tad": ["--weights", "x.pt", "--source", "x.mp4"],
    "export_tad": ["--weights", "x.pt"],
    "tad.convert": ["--from", "x.csv", "--videos", "x", "--out", "x.json"],
}
OWN = {train_joint: MEASURED, detect: MEASURED, train_tad: BY_ITSELF, val_tad: BY_ITSELF, export_tad: export_tad.OPSETS}


def parsed(name: str, *words: str) -> argparse.Namespace:
    """Options of a script, with words that let it begin."""
    opt = SCRIPTS[name].parse_opt([*REQUIRED.get(name, []), *words])
    return opt[0] if isinstance(opt, tuple) else opt


def run_main(name: str, opt: argparse.Namespace) -> None:
    SCRIPTS[name].main(opt, *([[]] if name == "compare_joint" else []))


def flags(script) -> dict[str, tuple[str, Range]]:
    """Flag and range of each option that has one, by its name."""
    ranges = {**RANGES, **OWN.get(script, {})}
    return {n: (f"--{n.replace('_', '-')}", ranges[n]) for n in vars(parsed(script.__name__)) if n in ranges}


WALK = [(name, option) for name, script in SCRIPTS.items() for option in flags(script)]


@pytest.mark.parametrize(("name", "option"), WALK)
def test_every_number_is_checked_at_its_ends(name, option, capsys):
    flag, allowed = flags(SCRIPTS[name])[option]
    beyond = [math.nextafter(allowed.low, -math.inf), math.nextafter(allowed.high, math.inf), "nan", -1e30, 1e30]
    beyond += [int(allowed.low) - 1, int(allowed.high) + 1]
    for value in (v for v in beyond if v != allowed.special):
        with pytest.raises((SystemExit, ValueError)) as end:  # argparse refuses what is no number of the type
            run_main(name, parsed(name, flag, str(value)))
        assert flag in str(end.value) + capsys.readouterr().err
    ranges = OWN.get(SCRIPTS[name], {})
    check_ranges({option: allowed.low}, ranges), check_ranges({option: allowed.high}, ranges)


@pytest.mark.parametrize("name", SCRIPTS)
def test_numbers_without_a_range_are_known(name):
    """A new number needs a range, or a reason here."""
    parser_less = {"local_rank", "bbox_interval", "opset"}  # of export.py: only onnx and openvino care
    options = vars(parsed(name))
    numbers = {n for n, v in options.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    assert numbers <= set(flags(SCRIPTS[name])) | parser_less


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_tells_the_ranges(name, capsys):
    with pytest.raises(SystemExit):
        SCRIPTS[name].parse_opt(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(str(allowed) in text for _, allowed in flags(SCRIPTS[name]).values())


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: train_joint.run(epochs=0), "--epochs 0: must be 1 or more"),
        (lambda: train_joint.run(fitness_weight=2.0), "--fitness-weight 2.0: must lie between 0 and 1"),
        (lambda: train_joint.run(batch_size=0), "--batch-size 0: must be -1, or 1 or more"),
        (lambda: val_joint.run("none.yaml", iou_thres=math.nan), "--iou-thres nan"),
        (lambda: detect.run("none.pt", imgsz=(640, 0)), "--imgsz 0: must lie between 1 and 16384"),
        (lambda: detect.run("none.pt", classes=[-1]), "--classes -1"),
        (lambda: export.run(weights="none.pt", topk_all=0), "--topk-all 0"),
    ],
)
def test_callers_from_python_are_checked_before_a_file_is_opened(run, message):
    with pytest.raises(ValueError, match=message):
        run()


@pytest.mark.parametrize("device", ["-1", "0,-1", ",", "nan", "1e30", "9" * 30])
def test_a_device_that_is_none_is_said(device):
    with pytest.raises(ValueError, match=f"^--device {device}: (expected cpu|PyTorch sees)"):
        select_device(device)


def test_ranges():
    check_ranges({"epochs": 1, "batch_size": None, "unknown": -5, "imgsz": [640, 320]})
    for wrong in (0, -1, math.nan, math.inf, True, "1"):
        with pytest.raises(ValueError, match="--epochs"):
            check_ranges({"epochs": wrong})
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    assert parse_words(parser, []).epochs == 3 and "1 or more" in parser.format_help()


# --- what is imported ------------------------------------------------------------------------------------------------

HEAVY = ["cv2", "matplotlib", "numpy", "pandas", "scipy", "sklearn", "torch", "torchvision"]


def imported(program: str, *args: object) -> set[str]:
    """Which of `HEAVY` a program imports, run in a process of its own."""
    tail = f"\nimport sys\nprint('imported:', *set({HEAVY}) & sys.modules.keys())"
    answer = subprocess.run(
        [sys.executable, "-c", program + tail, *map(str, args)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(answer.stdout.rpartition("imported:")[2].split())


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(f.name for f in ROOT.glob("*.py") if f.name != "hubconf.py"))
def test_help_is_answered_before_anything_large_is_imported(script):
    program = (
        "import contextlib, runpy, sys\n"
        "sys.argv = [sys.argv[1], '--help']\n"
        "with contextlib.suppress(SystemExit):\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    assert imported(program, script) == set()


@pytest.mark.slow
def test_a_picture_is_detected_on_without_all_of_torchvision(tmp_path):
    from coloured_pictures import write_folder
    from tiny_weights import save_weights

    source = write_folder(tmp_path / "set") / "images"
    program = "import sys, detect\ndetect.run(sys.argv[1], sys.argv[2], imgsz=64, project=sys.argv[3])"
    needed = imported(program, save_weights(tmp_path / "w.pt"), source, tmp_path / "runs")
    assert needed == {"cv2", "numpy", "torch"}


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PermissionError(13, "Permission denied", "/x/y"), "a.py: /x/y: Permission denied"),
        (OSError(28, "No space left on device"), r"a.py: \[Errno 28\] No space left on device"),
        (ValueError("no such class"), "a.py: no such class"),
        (ModuleNotFoundError("pip install x"), "a.py: pip install x"),
        (KeyError("own"), "a.py: 'own'"),
    ],
)
def test_an_error_of_the_users_is_one_sentence(error, text):
    with pytest.raises(SystemExit, match=text), one_sentence("a.py", KeyError):
        raise error
    assert "\n" not in told(error)


def test_a_fault_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), one_sentence("a.py"):
        raise ZeroDivisionError


def test_interrupts_and_codes(capsys):
    with pytest.raises(SystemExit) as end, one_sentence("a.py"):
        raise KeyboardInterrupt
    assert end.value.code == 130
    with pytest.raises(SystemExit) as end, one_sentence("a.py", code=2):
        raise ValueError("no")
    assert end.value.code == 2 and "a.py: no" in capsys.readouterr().err


def test_a_console_that_lacks_the_characters_gets_them_escaped():
    program = (
        "from utils.system.command_line import one_sentence\nwith one_sentence('a.py'):\n    print('猫 \\udce9')\n"
    )
    for encoding in ("cp1252", "ascii", "utf-8"):
        answer = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )
        assert answer.returncode == 0 and b"\\udce9" in answer.stdout


def broken_places(tmp_path: Path) -> dict[str, Path]:
    """Paths that cannot be opened, each in its own way."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("text")
    (tmp_path / "latin1.yaml").write_bytes(b"names: [caf\xe9]")
    names = {n: tmp_path / n for n in ("loop", "dangling", "folder", "latin1.yaml", "none")}
    return names | {"below a file": tmp_path / "file" / "x", "long": tmp_path / ("x" * 300), "empty": Path("")}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return make_set(tmp_path_factory.mktemp("clips") / "set", 1, 1)


READS = [  # files that a script opens
    *(("train_joint", option) for option in ("--data", "--weights", "--cfg", "--hyp", "--resume")),
    *(("val_joint", option) for option in ("--data", "--weights")),
    *(("detect", option) for option in ("--weights", "--source")),
    ("export", "--weights"),
    *(("check_data", option) for option in ("--data", "--hyp")),
    ("compare_joint", "--data"),
    *(("train_tad", option) for option in ("--data", "--cfg", "--weights", "--resume")),
    *(("val_tad", option) for option in ("--data", "--cfg", "--weights", "--detections")),
    *(("detect_tad", option) for option in ("--data", "--cfg", "--weights", "--source")),
    *(("export_tad", option) for option in ("--data", "--cfg", "--weights")),
    *(("tad.convert", option) for option in ("--from", "--videos")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "option"), READS)
def test_every_script_ends_in_a_sentence_at_broken_places(name, option, clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # which the empty place is
    for place in broken_places(tmp_path).values():
        opt = parsed(name, option, str(place))
        if hasattr(opt, "project"):
            opt.project = tmp_path / "runs"
        if name.endswith("_tad") and option != "--data":
            opt.data = clips
        if option == "--source":
            save = save_new_network if name == "detect_tad" else save_weights
            opt.weights = str(save(tmp_path / "w.pt"))
        with pytest.raises((SystemExit, OSError, ValueError)) as end:
            run_main(name, opt)
        assert "\n  File" not in str(end.value)
    assert not (tmp_path / "x.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_tad", "val_tad", "detect_tad", "tad.convert"])
@pytest.mark.parametrize("place", ["below a file", "loop"])
def test_results_of_clips_that_cannot_be_written_are_said(name, place, clips, tmp_path):
    video, folder = next((clips.parent / "videos").glob("*.mp4")), broken_places(tmp_path)[place]
    weights = str(save_new_network(tmp_path / "w.pt"))
    words = {
        "train_tad": ["--data", str(clips), "--workers", "0", "--project", str(folder)],
        "val_tad": ["--data", str(clips), "--weights", weights, "--workers", "0", "--project", str(folder)],
        "detect_tad": ["--weights", weights, "--source", str(video), "--project", str(folder)],
        "tad.convert": ["--from", str(tmp_path / "e.csv"), "--videos", str(video.parent), "--out", str(folder / "x")],
    }[name]
    (tmp_path / "e.csv").write_text(f"video,start,end,label\n{video.stem},0,1,red\n")
    with pytest.raises((OSError, ValueError)) as end:
        run_main(name, SCRIPTS[name].parse_opt(words))
    assert str(folder) in told(end.value)


@pytest.mark.parametrize("project", ["below a file", "loop"])
def test_results_that_cannot_be_written_are_said(project, tmp_path):
    from coloured_pictures import write_folder

    pictures = write_folder(tmp_path / "set") / "images"
    place = broken_places(tmp_path)[project]
    opt = detect.parse_opt(["--weights", str(save_weights(tmp_path / "w.pt")), "--source", str(pictures)])
    opt.project = place
    with pytest.raises(SystemExit, match=str(place)):
        detect.main(opt)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="asks the list of users")
@pytest.mark.parametrize("home", ["", "/nonexistent"])
def test_a_user_without_a_home_folder_trains_and_detects(home, tmp_path, monkeypatch):
    import pwd

    from tiny_data import make_data

    def unknown(number: int):
        raise KeyError(number)  # `docker --user`: a number that is not in the list

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    if home:
        monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    data = make_data(tmp_path / "set")
    words = {"data": data, "cfg": "yolov5n_cls.yaml", "imgsz": 64, "epochs": 1, "batch_size": 4, "workers": 0}
    train_joint.run(**words, cache="disk", noplots=True, project=tmp_path / "runs", device="cpu")
    weights = tmp_path / "runs/exp/weights/best.pt"
    detect.run(weights=weights, source=data.parent / "valid/images", imgsz=64, project=tmp_path / "runs", name="det")
    assert weights.is_file() and any((tmp_path / "runs/det").iterdir())
    assert not (tmp_path / "~").exists()
