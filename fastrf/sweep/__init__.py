"""Sweeps over many networks: spaces of networks, running them, the store, pictures of the table."""
