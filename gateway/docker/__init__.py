"""Volumes for programs that name one and ask for its path: Docker's volume driver, and `dvdcli`.

Whoever asks shares one mount of a volume on a host. Who they are is noted in the state directory, so that
an engine's plugin, `dvdcli` and `moorage dvdi run` may come and go beside each other; docs/docker.md.

Files: ``wish.py`` what names and options ask for; ``ledger.py`` the core, who uses a mount and what follows;
``notes.py`` its files; ``volumes.py`` carries it out; ``known.py`` what the cluster has, without asking it;
``plugin.py`` the protocol of Docker; ``discovery.py`` how engines find it; ``dvdi.py`` volumes of a task.
"""
