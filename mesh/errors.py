"""What a user of `jc` can get wrong or meet.

MeshError
├── BadSettings      mesh.yaml is malformed; the message names the file and the place
├── StartFailed      the mesh could not start; the message is the reason of what failed
├── NotRunning       a command needs a running mesh and finds none
└── MeshAway         the mesh cannot answer just now; the same call may be made again
"""


class MeshError(Exception):
    """Root of this room's errors; the command prints the message and exits 2."""


class BadSettings(MeshError):
    """The settings file is missing, malformed or contradicts itself."""


class StartFailed(MeshError):
    """A part of the mesh could not start."""


class NotRunning(MeshError):
    """No running mesh was found where one is needed."""


class MeshAway(MeshError):
    """The mesh does not answer just now: a connection that broke, signers or a ledger that are away. Try again."""
