"""Data sets, episodes, views and batches, independent of any model."""
