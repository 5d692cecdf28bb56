"""Slurm's words, for tasks of any provider: its batch scripts, their options, and what these say."""
