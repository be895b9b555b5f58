"""One module per screen; each is a Textual mode and keeps its own state."""
