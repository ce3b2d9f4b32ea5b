"""Checkpoints of a run, in orbax's format, and encoders from other files."""
