"""Street scenes drawn on the spot, a stand-in for GTA5 -> Cityscapes when neither data set is at hand.

A pinhole camera looks down a street laid out in metres. Two looks share this geometry: `game` (saturated, sunny,
hard shadows, wide streets) and `camera` (hazy, noisy, pale, narrower and busier streets, lower eye, the car's own
hood in view). All 19 Cityscapes classes occur, in roughly the order of frequency that real streets have.

    python -m datasets.street_scenes --out data/scenes --layout cityscapes --look camera --count 200 --val 50
    python -m datasets.street_scenes --preview sheet.png
    python -m datasets.street_scenes --preview varied.png --variety 1         each scene in an appearance of its own

`layout.py` says where things stand, `things.py` draws them, `painter.py` holds the looks and the camera, `variety.py`
looks at random, `writer.py` makes files of scenes. Nothing here opens a data set; the loaders read what it wrote like
anything else on disk.
"""

from .writer import LOOKS, draw_scene, ensure, main, preview, write_cityscapes, write_gta5

__all__ = ["LOOKS", "draw_scene", "ensure", "main", "preview", "write_cityscapes", "write_gta5"]
