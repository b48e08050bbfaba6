"""`moorage drill`: the failures that Moorage promises to survive, tried on the user's own cluster."""
