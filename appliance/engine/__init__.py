"""One vLLM engine: environment, command line, process tree, logs, readiness, progress, end."""
