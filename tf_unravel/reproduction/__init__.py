"""The reproduction of the paper, and the benchmark: built on the library, and no part of it."""
