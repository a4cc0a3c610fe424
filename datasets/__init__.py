"""From a file on disk to a batch, and how pictures look: finding, reading, label tables, geometry, loaders.

Networks and losses are not known here: `models` may not be imported. `street_scenes/` draws data of its own.
`domains.py` has the tables of sources and targets.
"""

from .cityscapes import cityscapes
from .gta5 import gta5
from .segmentation import SegmentationSet

__all__ = ["SegmentationSet", "cityscapes", "gta5"]
