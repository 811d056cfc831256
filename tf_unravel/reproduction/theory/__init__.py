"""Theorem 1 and Figure 1: what clustered features promise for one-shot classification."""
