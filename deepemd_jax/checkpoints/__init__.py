"""What a run keeps: orbax checkpoints, and encoders made of other files."""
