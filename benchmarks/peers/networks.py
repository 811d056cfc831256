"""The two networks of the classical step in PyTorch, channels_last, and that step.

conv4  4 x [conv3x3 without bias, BatchNorm, ReLU, max-pool 2]
r2d2   4 x [conv3x3 with bias, BatchNorm, max-pool 2, LeakyReLU 0.1 except in the last], dropout 0.1 after block 3 and
       0.3 after block 4; the features of both, side by side
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Conv4(nn.Module):
    """ProtoNet's network with `filters` filters in every block."""

    def __init__(self, filters: int):
        super().__init__()
        blocks = []
        for channels in (3, filters, filters, filters):
            convolution = nn.Conv2d(channels, filters, 3, padding=1, bias=False)
            blocks += [convolution, nn.BatchNorm2d(filters), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.blocks(images).flatten(1)  # [B, D]


class R2D2(nn.Module):
    """R2-D2's network as MetaOptNet has it, with the filters of its four blocks."""

    def __init__(self, filters: Sequence[int]):
        super().__init__()
        before = (3, *filters[:3])
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(before, filters, strict=True))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in filters)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs = []
        for block, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True), start=1):
            images = functional.max_pool2d(norm(convolution(images)), 2)
            if block < 4:
                images = functional.leaky_relu(images, 0.1, inplace=True)
            if block >= 3:
                images = functional.dropout(images, 0.1 if block == 3 else 0.3, self.training)
                outputs.append(images.flatten(1))
        return torch.cat(outputs, 1)  # [B, D]


def classical_step(
    network: nn.Module, images: np.ndarray, class_ids: np.ndarray, num_classes: int
) -> Callable[[], float]:
    """A training step on one batch: cross-entropy, SGD with Nesterov momentum and weight decay; channels_last.

    The batch is normalised and laid out beforehand: the step is charged with neither.

    Args:
        network: images -> features.
        images: uint8 [B, H, W, 3].
        class_ids: int [B].
        num_classes: outputs of the classifier.

    Returns:
        A function that takes one step and returns the loss.
    """
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)  # [B, 3, H, W]
    batch = batch.contiguous(memory_format=torch.channels_last)
    targets = torch.from_numpy(np.asarray(class_ids, np.int64))
    with torch.no_grad():
        dimension = network.eval()(batch[:1]).shape[1]
    model = nn.Sequential(network, nn.Linear(dimension, num_classes))
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(model(batch), targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step
