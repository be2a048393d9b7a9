"""Sinks: receivers of a run's events."""
