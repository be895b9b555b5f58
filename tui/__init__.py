"""The terminal UI: a client of the management API, built with Textual."""
