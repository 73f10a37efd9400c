"""Seeded simulation: the whole pipeline under faults, with the provider simulator as the judge."""
