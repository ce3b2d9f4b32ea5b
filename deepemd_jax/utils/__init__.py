"""What every room may use: files, progress, the terminal."""
