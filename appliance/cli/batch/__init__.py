"""`appliance batch`: submit files of requests, follow them, get and compare the answers."""
