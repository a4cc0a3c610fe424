"""From a file on disk to a batch. Does not import `models`."""

from .cityscapes import cityscapes
from .gta5 import gta5
from .segmentation import SegmentationSet

__all__ = ["SegmentationSet", "cityscapes", "gta5"]
