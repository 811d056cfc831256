"""The datasets: one module each, with a function load(split, root, **options); `data.load` finds them by name."""
