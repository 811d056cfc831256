"""Episodes of images in PyTorch, as learn2learn draws them: image by image from a data set, then stacked."""

import random

import numpy as np
import torch
from torch.utils.data import TensorDataset


class EpisodeSampler:
    """Draws episodes one at a time.

    Args:
        images: uint8 [N, H, W, C]; kept as float32 [N, C, H, W], what a loader of images gives.
        class_ids: int [N].
    """

    def __init__(self, images: np.ndarray, class_ids: np.ndarray):
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255.0).contiguous()  # [N, C, H, W]
        self._dataset = TensorDataset(pixels, torch.from_numpy(np.asarray(class_ids, np.int64)))
        self._members = {int(c): np.flatnonzero(class_ids == c).tolist() for c in np.unique(class_ids)}
        self._random = random.Random(0)

    def sample(self, ways: int, per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One episode: images float32 [W * per_class, C, H, W] and labels [W * per_class]."""
        images, labels = [], []
        for label, class_id in enumerate(self._random.sample(sorted(self._members), ways)):
            for index in self._random.sample(self._members[class_id], per_class):
                image, _ = self._dataset[index]
                images.append(image)
                labels.append(label)
        return torch.stack(images), torch.tensor(labels)
