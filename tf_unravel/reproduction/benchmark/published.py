"""Figures of peers that were measured on another machine, for where they cannot be run beside ours.

Two AVX2 cores without AVX-512, float32 matrix product of 2048^3 at 144 GFLOP/s in NumPy, PyTorch 2.13 on two threads,
medians of five or more repeats with nothing else running. They are shown as they are, scaled by nothing: compare the
GFLOP/s of your machine before reading anything into a ratio.

Tasks are 5-way with 15 queries a class, episodes 5-way 1-shot with 15 queries out of 100 classes of 500 images 32x32.
"""

NAME = "published, another machine"
NOTE = (
    "Peer figures marked 'published' come from another machine (144 GFLOP/s in the matrix product) and are not scaled."
)

# Tasks a second by (D, shots). MetaOptNet: the head alone on features in memory, the best of batches of 1, 16 and 64
# tasks; of its two ridge heads (closed form, quadratic programme) the better one; its SVM stops after 3 iterations.
# EasyFSL: its `evaluate` with its sampler and loader, one task at a time.
TASKS_PER_SECOND = {
    "EasyFSL evaluate, prototypes": {(8192, 1): 348.0, (8192, 5): 399.0, (640, 1): 975.0, (640, 5): 884.0},
    "MetaOptNet prototypes": {(8192, 1): 1750.0, (8192, 5): 1565.0, (640, 1): 33592.0, (640, 5): 30280.0},
    "MetaOptNet ridge": {(8192, 1): 2715.0, (8192, 5): 991.0, (640, 1): 16620.0, (640, 5): 10172.0},
    "MetaOptNet SVM": {(8192, 1): 1949.0, (8192, 5): 415.0, (640, 1): 4200.0, (640, 5): 529.0},
}

# learn2learn, its fused sampler: episodes sampled and stacked a second.
EPISODES_PER_SECOND = 739.0

# learn2learn, seconds a meta-step (MAML, conv4-32, 4 tasks, 5 inner steps, 15 queries) by (order, side, shots).
META_STEP_SECONDS = {
    ("MAML second order", 84, 1): 3.21, ("MAML second order", 84, 5): 8.33,
    ("MAML second order", 32, 1): 0.50, ("MAML second order", 32, 5): 1.04,
    ("MAML first order", 84, 1): 2.27, ("MAML first order", 84, 5): 3.80,
    ("MAML first order", 32, 1): 0.34, ("MAML first order", 32, 5): 0.58,
}  # fmt: skip
