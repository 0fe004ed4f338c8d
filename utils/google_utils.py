"""The name that `utils.downloads` had until YOLOv5 v5.0."""

from utils.downloads import attempt_download

__all__ = ["attempt_download"]
