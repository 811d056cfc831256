"""The exhibits as pages, tables and figures."""
