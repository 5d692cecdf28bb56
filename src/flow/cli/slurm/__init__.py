"""Slurm's commands, for tasks of any provider."""
