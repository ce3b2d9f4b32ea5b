"""Puts this folder on the path: tests below it use `crashes` and `forked`."""
