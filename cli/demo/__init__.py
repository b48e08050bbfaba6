"""`moorage demo`: what Moorage promises, shown on real processes on this machine."""
