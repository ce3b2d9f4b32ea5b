"""The published data sets: their archives, downloads and preparation."""
