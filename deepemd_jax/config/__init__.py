"""The config of a run: its fields, their defaults, legal values, variants."""
