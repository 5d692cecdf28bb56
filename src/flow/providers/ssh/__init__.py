"""The SSH provider: tasks run on any hosts that the user can reach by ssh."""
