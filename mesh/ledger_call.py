"""Calls of the running mesh's ledger from a command on its machine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mesh.errors import MeshError
from mesh.ray_session import join_ray
from mesh.run_state import DataFolder
from receipts.errors import ReceiptsError

_ANSWER_WITHIN_S = 30.0


def call_ledger(data_dir: Path, call: Callable[[Any], Any]) -> Any:  # noqa: ANN401 - whatever that method answers
    """What the ledger actor of the mesh that runs on this data folder answers; ``call`` gets its handle.

    Raises:
        NotRunning: no mesh runs there.
        ReceiptsError: the ledger refuses it.
        MeshError: the ledger does not answer.
    """
    state = DataFolder(data_dir).running()
    join_ray(state, data_dir)
    import ray
    from ray.exceptions import RayError, RayTaskError

    from receipts.ledger_actor import ledger_of

    try:
        return ray.get(call(ledger_of(state.namespace)), timeout=_ANSWER_WITHIN_S)
    except RayTaskError as failure:
        if isinstance(failure.cause, ReceiptsError):
            raise failure.cause from None
        raise
    except RayError as away:
        raise MeshError(f"the ledger does not answer: {type(away).__name__}") from away
    finally:
        ray.shutdown()
