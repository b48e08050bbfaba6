"""The metadata service: what exists, where it is, and who may write to it now (docs/metadata.md)."""
