"""``python -m ncg_cuda``: the same as ``ncg-cuda``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
