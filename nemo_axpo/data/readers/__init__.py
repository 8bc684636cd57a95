"""Readers of published data sets: rows in their own layout to question records, a file per data set."""
