"""What runs on the machines: standard library only, read as text by boot."""
