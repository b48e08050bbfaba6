"""Volumes as file systems, mounted on this host.

Each mount is two processes and a directory of notes (``record.py``). The *keeper* owns the block device: the
kernel's nbd driver where there is one, else a FUSE session with the volume as one file, and a loop device on
it. It is small, never needs an upgrade, and what the kernel asks is parked while the *daemon* behind its unix
socket restarts. The daemon holds the volume, serves it over NBD on that socket, and carries out what the
record asks for: format, mount, grow.

Files: ``record.py`` the notes; ``mounting.py`` and ``unmounting.py`` what a command or a driver calls;
``keeper.py`` and ``daemon.py`` the processes; ``ways.py`` the two ways to a block device: ``nbd_device.py``
with ``kernel_nbd.py`` and ``netlink.py``, and ``fuse_device.py`` with ``volume_file.py``; ``filesystem.py``
and ``system.py`` the programs of the system that are run.
"""
