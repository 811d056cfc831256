"""The tables and figures of the paper as data: what is published, what must be measured, what is claimed."""
