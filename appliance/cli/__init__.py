"""The appliance command; client verbs talk to the server's management socket."""
