"""Utilities for all other packages: files, progress, the terminal."""
