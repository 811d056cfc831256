"""`tf-unravel benchmark`, for a checkout that is not installed: python scripts/benchmark.py --help."""

import sys

from tf_unravel.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
