"""Classification and search of a user's own images with a trained encoder."""
