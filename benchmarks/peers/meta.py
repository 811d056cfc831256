"""Meta-training steps in PyTorch: MAML by a loop over tasks and by vmap, Reptile's loop, episodes, fine-tuning.

The network is conv4 of 32 filters with a linear layer, as one function of a dictionary of weights; BatchNorm takes the
statistics of the images at hand and keeps none. The loop is what learn2learn does (a copy of the weights for each
task, `create_graph=True`); vmap is the fastest known form on a GPU.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, grad_and_value, vmap
from torch.nn import functional


class Conv4WithHead(nn.Module):
    """4 x [conv3x3 with bias, BatchNorm on the batch, ReLU, max-pool 2], then a linear layer."""

    def __init__(self, filters: int, size: int, ways: int):
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, filters, 3, padding=1) for channels in (3, filters, filters, filters)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(filters, track_running_stats=False) for _ in range(4))
        self.linear = nn.Linear(filters * (size // 16) ** 2, ways)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            images = functional.max_pool2d(functional.relu(norm(convolution(images))), 2)
        return self.linear(images.flatten(1))


def tensors(images: np.ndarray) -> torch.Tensor:
    """uint8 [..., H, W, 3] -> float [..., 3, H, W] in -1..1."""
    return torch.from_numpy(images).movedim(-1, -3).float().div(127.5).sub(1.0).contiguous()


def maml_step(
    network: nn.Module, episodes: tuple[np.ndarray, ...], inner_steps: int, rate: float, first_order: bool, by: str
) -> Callable[[], float]:
    """A meta-step of MAML, Adam outside.

    Args:
        network: images -> logits.
        episodes: support images [T, S, ...], labels [T, S], query images, labels.
        inner_steps, rate: of the inner loop.
        first_order: leave out second derivatives.
        by: "loop" over tasks, or "vmap".

    Returns:
        A function that takes one step and returns the loss.
    """
    support, query = tensors(episodes[0]), tensors(episodes[2])
    labels, targets = (torch.from_numpy(np.asarray(e, np.int64)) for e in (episodes[1], episodes[3]))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    names = [name for name, _ in network.named_parameters()]

    def loss_of(weights: dict[str, torch.Tensor], images: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(functional_call(network, weights, (images,)), known)

    def task_loss(weights: dict[str, torch.Tensor], *task: torch.Tensor) -> torch.Tensor:
        for _ in range(inner_steps):
            gradients = grad(loss_of)(weights, task[0], task[1])
            if first_order:
                gradients = {name: g.detach() for name, g in gradients.items()}
            weights = {name: w - rate * gradients[name] for name, w in weights.items()}
        return loss_of(weights, task[2], task[3])

    def looped() -> torch.Tensor:
        total = 0.0
        for task in zip(support, labels, query, targets, strict=True):
            fast = list(network.parameters())
            for _ in range(inner_steps):
                loss = loss_of(dict(zip(names, fast, strict=True)), task[0], task[1])
                gradients = torch.autograd.grad(loss, fast, create_graph=not first_order)
                fast = [w - rate * g for w, g in zip(fast, gradients, strict=True)]
            loss = loss_of(dict(zip(names, fast, strict=True)), task[2], task[3]) / len(support)
            loss.backward()
            total += loss.item()
        return total

    def mapped() -> torch.Tensor:
        weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
        each = vmap(grad_and_value(task_loss), in_dims=(None, 0, 0, 0, 0))
        gradients, losses = each(weights, support, labels, query, targets)
        for name, parameter in network.named_parameters():
            parameter.grad = gradients[name].mean(0)
        return losses.mean().item()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = {"loop": looped, "vmap": mapped}[by]()
        optimizer.step()
        return loss

    return step


def reptile_step(network: nn.Module, images: np.ndarray, labels: np.ndarray) -> Callable[[], None]:
    """A meta-step of Reptile: each task in turn by Adam without momentum, then a step towards the mean.

    Args:
        network: images -> logits.
        images: uint8 [T, k, B, H, W, 3].
        labels: int [T, k, B].
    """
    batches, known = tensors(images), torch.from_numpy(np.asarray(labels, np.int64))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, betas=(0.0, 0.999))

    def step() -> None:
        start = [parameter.detach().clone() for parameter in network.parameters()]
        ends = [torch.zeros_like(parameter) for parameter in start]
        for task, truth in zip(batches, known, strict=True):
            with torch.no_grad():
                for parameter, value in zip(network.parameters(), start, strict=True):
                    parameter.copy_(value)
            for batch, targets in zip(task, truth, strict=True):
                optimizer.zero_grad(set_to_none=True)
                functional.cross_entropy(network(batch), targets).backward()
                optimizer.step()
            for end, parameter in zip(ends, network.parameters(), strict=True):
                end += parameter.detach() / len(batches)
        with torch.no_grad():
            for parameter, value, end in zip(network.parameters(), start, ends, strict=True):
                parameter.copy_(value + 0.5 * (end - value))

    return step


def fine_tune(
    network: nn.Module, episodes: tuple[np.ndarray, ...], steps: int, batch: int
) -> Callable[[], None]:
    """Answers tasks one after the other: a copy adapted by Adam, each query then normalised with the support set."""
    support, query = tensors(episodes[0]), tensors(episodes[2])
    labels = torch.from_numpy(np.asarray(episodes[1], np.int64))
    generator = torch.Generator().manual_seed(0)

    def run() -> None:
        start = [parameter.detach().clone() for parameter in network.parameters()]
        for images, known, wanted in zip(support, labels, query, strict=True):
            optimizer = torch.optim.Adam(network.parameters(), 1e-3, betas=(0.0, 0.999))
            rounds = -(-steps * batch // len(images))
            order = torch.cat([torch.randperm(len(images), generator=generator) for _ in range(rounds)])
            for chosen in order[: steps * batch].split(batch):
                optimizer.zero_grad(set_to_none=True)
                functional.cross_entropy(network(images[chosen]), known[chosen]).backward()
                optimizer.step()
            with torch.no_grad():
                for image in wanted:
                    network(torch.cat([images, image[None]]))[-1].argmax()
                for parameter, value in zip(network.parameters(), start, strict=True):
                    parameter.copy_(value)

    return run


def episodic_step(
    network: nn.Module, head: Callable[..., torch.Tensor], episodes: tuple[np.ndarray, ...], ways: int
) -> Callable[[], float]:
    """A step of ProtoNet, R2-D2 or MetaOptNet by autograd, support and query in one pass, channels_last."""
    support, query = tensors(episodes[0]), tensors(episodes[2])
    tasks, count = support.shape[:2]
    images = torch.cat([support, query], 1).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    targets = functional.one_hot(torch.from_numpy(np.asarray(episodes[1], np.int64)), ways).float()
    wanted = torch.from_numpy(np.asarray(episodes[3], np.int64))
    network = network.to(memory_format=torch.channels_last).train()
    scale = torch.ones((), requires_grad=True)
    optimizer = torch.optim.SGD([*network.parameters(), scale], 0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        features = network(images).unflatten(0, (tasks, -1))  # [T, S + WQ, D]
        logits = scale * head(features[:, :count], targets, features[:, count:])  # [T, WQ, W]
        loss = functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        loss.backward()
        optimizer.step()
        return loss.item()

    return step
