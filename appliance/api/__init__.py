"""Thin Litestar handlers of the management API, guards, and the mount of the gateway."""
