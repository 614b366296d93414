"""The recipes that come with cnsn, one TOML file each."""
