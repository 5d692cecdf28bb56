"""The `flow` command."""
