"""The published data sets: archives, downloads, preparation."""
