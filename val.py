"""`val_joint.py` under YOLOv5's name, for commands and notebooks written for YOLOv5.

python val.py --data coco128.yaml --weights yolov5s.pt --img 640
"""

from val_joint import main, parse_opt, run

__all__ = ["main", "parse_opt", "run"]

if __name__ == "__main__":
    main(parse_opt())
