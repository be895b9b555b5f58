"""The wire format of the management API and of the OpenAI errors: msgspec structs, nothing else."""
