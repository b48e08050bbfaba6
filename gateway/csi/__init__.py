"""A driver for the Container Storage Interface: volumes for orchestrators that speak it (docs/csi.md).

Built for callers that make the node's calls only, as Mesos's ``volume/csi`` isolator does: the first
publish creates the volume, and attaching fences the former holder. The controller's calls are there for those
who make them, and nothing depends on them.

Files: ``csi.proto`` the protocol, ``csi_pb2.py`` generated from it; ``terms.py`` what requests ask for
(pure); ``codes.py`` errors as status codes; ``identity.py``, ``controller.py`` and ``node.py`` the services;
``notes.py`` and ``publishing.py`` what is published on this node; ``server.py`` the socket.
"""

import os

# Programs are started from here, by fork and exec at once: gRPC has nothing to do in between.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
