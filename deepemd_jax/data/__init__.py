"""Data sets, episodes, views and batches. Knows no model."""
