"""Puts this folder on the path, because tests below it use its modules."""
