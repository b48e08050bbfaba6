"""The one error of this tool: something that whoever runs it has to know, in words."""

from __future__ import annotations


class MesosError(Exception):
    pass
