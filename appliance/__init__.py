"""vLLM Appliance: a headless server that owns the GPUs and runs vLLM engines on demand."""

__version__ = "0.1.0"
