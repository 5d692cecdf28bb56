"""What Flow costs, measured beside the floor of the same machine in the same run: `python -m bench`."""
