"""Many devices and many processes that work on one run."""
