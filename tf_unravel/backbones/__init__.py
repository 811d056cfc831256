"""Backbones: `keras.Model`s from raw images [B, H, W, C] (uint8, or float 0..255) to features [B, D]."""

from tf_unravel.backbones.batch_norm import FusedBatchNormalization
from tf_unravel.backbones.conv4 import conv4
from tf_unravel.backbones.dropout import DropBlock, Dropout
from tf_unravel.backbones.layers import Normalization, Normalize
from tf_unravel.backbones.max_pool import MaxPool
from tf_unravel.backbones.pretrained import applications, freeze, pretrained
from tf_unravel.backbones.r2d2 import r2d2
from tf_unravel.backbones.resnet12 import resnet12
from tf_unravel.backbones.wrap import wrap

by_name = {"conv4": conv4, "r2d2": r2d2, "resnet12": resnet12}

__all__ = [
    "DropBlock", "Dropout", "FusedBatchNormalization", "MaxPool", "Normalization", "Normalize", "applications",
    "by_name", "conv4", "freeze", "pretrained", "r2d2", "resnet12", "wrap",
]
