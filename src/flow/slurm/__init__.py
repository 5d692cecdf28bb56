"""Slurm's words, for tasks of any provider."""
