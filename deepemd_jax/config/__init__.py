"""What a run is: its fields, their defaults, legal values, and variants."""
