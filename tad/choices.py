"""What options may be chosen among, without an import of PyTorch: --help is quick."""

MEMORY = ("auto", "16", "32", "64")  # GiB of the device
THRESHOLDS = {  # tIoU from which a prediction is right, by protocol
    "thumos": (0.3, 0.4, 0.5, 0.6, 0.7),
    "activitynet": tuple(round(0.5 + 0.05 * i, 2) for i in range(10)),
    "multithumos": tuple(round(0.1 * i, 1) for i in range(1, 10)),
    "epic": (0.1, 0.2, 0.3, 0.4, 0.5),
}
