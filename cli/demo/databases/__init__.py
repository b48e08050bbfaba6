"""`moorage demo-mysql`: databases and a web site that lose their host, on real processes on this machine."""
