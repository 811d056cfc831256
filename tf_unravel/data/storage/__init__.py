"""Image files and what is kept of them: decoding, digests, duplicates, the cache."""
