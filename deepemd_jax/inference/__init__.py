"""A trained encoder at work on a person's own images."""
