"""Validation beside YOLOv5's: its checkpoint on its data in the modes that it was measured in, as a table.

    python benchmarks/parity.py --reference ../shared/golden --data ../shared/heart

The reference folder holds `checkpoint_expected.json` with the settings and metrics, and the checkpoint that it names.
P is compared by our rule: a class without a detection at the chosen confidence counts 0, where YOLOv5 counts 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import val_joint
from utils.system.devices import use_machine

METRICS = {"P": "precision", "R": "recall", "mAP50": "map50", "mAP50_95": "map50_95"}


def compare(expected: dict, weights: Path, data: dict) -> dict[str, tuple[float, float]]:
    """(ours, YOLOv5's) of each metric and of the number of boxes, for one entry of the reference."""
    settings = {k: v for k, v in expected["settings"].items() if k not in ("device", "half")}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        results = val_joint.run(
            data, weights, device="cpu", plots=False, save_dir=folder, save_json=True, workers=0, **settings
        )
        boxes = len(json.loads((Path(folder) / f"{weights.stem}_predictions.json").read_text(encoding="utf-8")))
    theirs = {k: expected[k] for k in METRICS}
    theirs["P"] = sum(0.0 if c["R"] == 0 else c["P"] for c in expected["per_class"]) / len(expected["per_class"])
    rows = {k: (results["detection"][ours], theirs[k]) for k, ours in METRICS.items()}
    return rows | {"boxes": (boxes, expected["n_predictions_total"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help="folder of the reference numbers")
    parser.add_argument("--data", type=Path, required=True, help="folder with train/images and valid/images")
    parser.add_argument("--modes", nargs="+", help="some of the modes only, by their tags")
    opt = parser.parse_args()
    use_machine()
    content = json.loads((opt.reference / "checkpoint_expected.json").read_text(encoding="utf-8"))
    names = {int(k): v for k, v in content["loaded"]["names"].items()}
    data = {"path": str(opt.data.absolute()), "train": "train/images", "val": "valid/images", "names": names}
    data["cls_nc"] = 3  # the label files have an image row, which YOLOv5 was not given
    print(f"| mode | {' | '.join(METRICS)} | boxes | largest difference |\n" + "| --- " * 7 + "|")
    worst = 0.0
    for expected in content["val"]:
        if opt.modes and expected["tag"] not in opt.modes:
            continue
        row = compare(expected, opt.reference / content["file"], data)
        difference = max(abs(ours - theirs) for key, (ours, theirs) in row.items() if key != "boxes")
        worst = max(worst, difference)
        cells = [f"{ours:.4f} ({theirs:.4f})" for key, (ours, theirs) in row.items() if key != "boxes"]
        print(f"| {expected['tag']} | {' | '.join(cells)} | {row['boxes'][0]} ({row['boxes'][1]}) | {difference:.1e} |")
    print(f"\nOurs (YOLOv5's). Largest difference of a metric: {worst:.1e}")


if __name__ == "__main__":
    main()
