"""The paper's tables and figures: what it printed, what to run, how to draw."""
