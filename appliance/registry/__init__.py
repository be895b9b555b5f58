"""Known models, their settings and the facts read from their files."""
