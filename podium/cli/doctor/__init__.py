"""`podium doctor`: check every setting and server."""
