"""Settings: structs with defaults, their sources (TOML, environment, flags), and the paths."""
