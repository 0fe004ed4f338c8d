"""`train_joint.py` under YOLOv5's name, for commands and notebooks written for YOLOv5.

python train.py --data coco128.yaml --weights yolov5s.pt --img 640
"""

import runpy
from pathlib import Path

__all__ = ["main", "parse_opt", "run"]

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_name("train_joint.py")), run_name="__main__")
else:
    from train_joint import main, parse_opt, run
