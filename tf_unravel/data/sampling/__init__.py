"""Batches from the images of a split: class pairs, episodes, batches of inner loops, augmentation."""
