"""Talking to the server: typed calls, the event stream with resume and back-off. No drawing."""
