"""The corpora of the training's tests and the bad networks of the sources' tests serve here too."""

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("train", "sources")]
