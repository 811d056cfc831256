"""`tf-unravel measure`, for a checkout that is not installed: python scripts/measure.py --help."""

import sys

from tf_unravel.cli import main

if __name__ == "__main__":
    sys.exit(main(["measure", *sys.argv[1:]]))
