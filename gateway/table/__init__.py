"""The mount table on one host: ``rendering.py`` says by which command a line of foreign storage is mounted,
``notes.py`` remembers what this host mounted for it, ``applying.py`` makes it so, and ``resolving.py`` finds
where a name lives. What a line means is read in ``client/mount_table.py``.
"""
