"""One deployment as Ray Serve's controller tells of it. No Ray is started."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray Serve's own, when it is imported
    from ray.serve._private.common import ReplicaState
    from ray.serve.schema import DeploymentStatus

    from serve.serve_look import deployment_state

from serve.pool_watch import DeploymentState


def test_replicas_are_counted_by_what_they_can_do():
    states = (ReplicaState.RUNNING, ReplicaState.RUNNING, ReplicaState.STARTING, ReplicaState.STOPPING)
    details = {
        "status": DeploymentStatus.UPSCALING,
        "message": "one more",
        "replicas": [{"state": each} for each in states],
    }
    assert deployment_state(details) == DeploymentState(status="UPSCALING", running=2, coming=1, message="one more")


def test_a_deployment_that_sleeps_has_none():
    details = {"status": DeploymentStatus.HEALTHY, "message": "", "replicas": []}
    assert deployment_state(details) == DeploymentState(status="HEALTHY", running=0, coming=0, message="")
