"""A service that asks the hub for text."""
