"""Named scenarios: one TOML file each."""
