"""A local web page that classifies images dropped into it; see `__main__`."""
