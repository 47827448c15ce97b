"""Clips -> shards: re-encoding, coverage, pushing to the Hub."""
