"""What `tf-unravel benchmark` compares with, in plain PyTorch, written for it: idiomatic, batched where the peer is.

They need PyTorch and a clone of the repository; neither is a requirement of the package.
"""
