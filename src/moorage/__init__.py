"""Moorage: replicated block and object storage for tasks on Mesos clusters."""

from __future__ import annotations

from moorage.wire import errors

__version__ = "0.1.0"

__all__ = ["__version__", "errors"]
