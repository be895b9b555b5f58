"""Pure state of the interface: what the server told, the link to it, histories, log lines."""
