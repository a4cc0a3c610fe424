"""python -m datasets.street_scenes"""

import sys

from .writer import main

if __name__ == "__main__":
    sys.exit(main())
