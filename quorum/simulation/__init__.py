"""Deterministic simulation of whole clusters of the sans-IO cores: one seed is one history."""
