"""What server and client share: knowledge, algorithms, tasks, models, data, configuration."""

__version__ = "0.1.0"

PROTOCOL = 5
"""Version of the messages between server and clients; both sides compare it before they work."""
