"""`tf-unravel train`, for a checkout that is not installed: python scripts/train.py --help."""

import sys

from tf_unravel.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
