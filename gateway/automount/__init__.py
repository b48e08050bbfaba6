"""A directory that shows every volume, each mounted when somebody goes there: ``autofs.py`` is the kernel's
side of it, ``namespace.py`` the service, ``guard.py`` what is left to do when it was killed, ``elsewhere.py``
tells who else uses a mounted volume. Why it is autofs: ``docs/decisions/0004-automount-by-autofs.md``.
"""
