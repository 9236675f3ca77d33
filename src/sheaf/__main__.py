"""`python -m sheaf` is `sheaf`."""

import sys

from sheaf.cli import main

if __name__ == "__main__":
    sys.exit(main())
