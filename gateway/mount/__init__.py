"""Volumes as file systems, mounted on this host.

Each mount is two processes and a directory of notes (``record.py``). The *keeper* owns the block device: a
FUSE session with the volume as one file, and a loop device on it. It is small, never needs an upgrade, and
parks what the kernel asks while the *daemon* behind its unix socket restarts. The daemon holds the volume,
serves it over NBD on that socket, and carries out what the record asks for: format, mount, grow.

Files: ``record.py`` the notes; ``mounting.py`` and ``unmounting.py`` what a command or a driver calls;
``keeper.py`` and ``daemon.py`` the processes; ``volume_file.py`` what FUSE shows; ``filesystem.py`` and
``system.py`` the programs of the system that are run.
"""
