"""Composition root: builds every object in one visible order, runs uvicorn, stops in order."""
