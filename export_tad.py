"""Write a temporal detector as an ONNX file, compared with PyTorch before it gets its name.

python export_tad.py --weights runs/tad/exp/weights/best.pt
python export_tad.py --weights epoch_59.pth --cfg adatad_s.yaml --data thumos14.yaml     # a public AdaTAD checkpoint
"""

from __future__ import annotations

import argparse
from pathlib import Path

from utils.system.arguments import Range, check_ranges, parse_words

FORMATS = ("onnx",)
OPSETS = {"opset": Range(14, 20)}  # from the first with the operators that attention is written in


def parse_opt(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--weights", required=True, help="checkpoint: of train_tad.py, or a public AdaTAD one")
    add("--cfg", default="", help="model yaml, for a public checkpoint")
    add("--data", default="", help="data yaml with the classes, for a public checkpoint")
    add("--include", nargs="+", choices=FORMATS, default=list(FORMATS), help="formats")
    add("--opset", type=int, default=17, help="version of the operators")
    return parse_words(parser, args, ranges=OPSETS)


if __name__ == "__main__":
    parse_opt()  # --help and mistyped words are answered before the imports below, which take seconds


from tad.config import load_config
from tad.data import load_data
from tad.export import export_onnx
from tad.load import load_model
from utils.system.command_line import one_sentence
from utils.system.devices import use_machine
from utils.system.voice import say


def main(opt: argparse.Namespace) -> Path:
    """Export as the options say; returns the file.

    Raises:
        FileNotFoundError, ModuleNotFoundError, ValueError: One sentence.
    """
    check_ranges(vars(opt), OPSETS)
    use_machine()
    names = load_data(opt.data).names if opt.data else None
    model = load_model(opt.weights, load_config(opt.cfg) if opt.cfg else None, names)
    file = Path(opt.weights).with_suffix(".onnx")
    apart = export_onnx(model, file, opt.opset)
    say(f"onnx: {file}, {file.stat().st_size / 1e6:.1f} MB", f"  largest relative difference from PyTorch: {apart:.1e}")
    return file


def command_line() -> None:
    """Run the command line; a problem that the user can solve ends in one sentence instead of a traceback."""
    with one_sentence("export_tad.py"):
        main(parse_opt())


if __name__ == "__main__":
    command_line()
