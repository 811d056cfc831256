"""`tf-unravel evaluate`, for a checkout that is not installed: python scripts/evaluate.py --help."""

import sys

from tf_unravel.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
