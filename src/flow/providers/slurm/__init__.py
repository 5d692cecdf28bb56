"""The Slurm provider: tasks as jobs of a Slurm cluster, here or from afar."""
