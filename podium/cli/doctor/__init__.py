"""`podium doctor`: checks every setting and server."""
