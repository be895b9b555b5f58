"""The data plane of /v1: raw ASGI in front of the engines' sockets."""
