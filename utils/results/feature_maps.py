"""What each layer of a network makes of a picture, as pictures and as arrays (`detect.py --visualize`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor, nn

from utils.results.drawing import write_image

CHANNELS, COLUMNS = 32, 8  # shown at most; a row has
TILE, GAP = 160, 4  # longer side of a channel, and space around it, pixels


class FeatureMaps:
    """Keeps the output of every layer but Detect, of the first pass since `clear`.

    Args:
        networks: Models built from a yaml. Several have a folder each, `weights1`, `weights2` and so on.
    """

    def __init__(self, networks: Sequence[nn.Module]):
        self._maps: dict[str, Tensor] = {}
        for k, network in enumerate(networks, 1):
            folder = f"weights{k}/" if len(networks) > 1 else ""
            for layer in network.model:
                if layer is not network.detect:
                    name = f"{folder}stage{layer.i}_{layer.type.split('.')[-1]}"
                    layer.register_forward_hook(partial(self._keep, name))

    def _keep(self, name: str, layer: nn.Module, inputs, output) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and min(output.shape[2:]) > 1:
            self._maps.setdefault(name, output)  # test-time augmentation passes more than once

    def clear(self) -> None:
        """Forget the maps: the next pass is of other pictures."""
        self._maps.clear()

    def save(self, i: int, folder: Path) -> int:
        """Writes the maps of picture `i` of the batch: `stage<layer>_<type>_features.png`, and all channels as .npy.

        Returns:
            The number of layers.

        Raises:
            OSError: They cannot be written.
        """
        for name, maps in self._maps.items():
            array = maps[i].detach().float().cpu().numpy()
            file = folder / f"{name}_features.png"
            write_image(file, channel_grid(array))
            np.save(file.with_suffix(".npy"), array)
        return len(self._maps)


def channel_grid(maps: np.ndarray) -> np.ndarray:
    """The first channels [c,h,w] side by side, each from its darkest to its brightest value; BGR uint8."""
    shown = np.nan_to_num(maps[:CHANNELS].astype(np.float32))
    height, width = (max(1, round(side * TILE / max(shown.shape[1:]))) for side in shown.shape[1:])
    rows = -(-len(shown) // COLUMNS)
    grid = np.full((GAP + rows * (height + GAP), GAP + min(len(shown), COLUMNS) * (width + GAP), 3), 255, np.uint8)
    way = cv2.INTER_AREA if max(shown.shape[1:]) > TILE else cv2.INTER_NEAREST
    for k, channel in enumerate(shown):
        low, high = channel.min(), channel.max()
        grey = ((channel - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)
        y, x = GAP + k // COLUMNS * (height + GAP), GAP + k % COLUMNS * (width + GAP)
        tile = cv2.resize(grey, (width, height), interpolation=way)
        grid[y : y + height, x : x + width] = cv2.applyColorMap(tile, cv2.COLORMAP_VIRIDIS)
    return grid
