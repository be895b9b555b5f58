"""Modal dialogs: what is asked before something changes, and what explains a failure."""
