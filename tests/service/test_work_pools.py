"""The job templates of deploy/: a real server takes them, and they resolve to what docs/deployment.md says."""

import asyncio
import json
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.service


async def job(api, kind, configuration, job_variables):
    """What a worker starts for a run, all of it by way of the server, as far as Prefect alone decides it."""
    from prefect import flow
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.actions import WorkPoolCreate

    name = f"{kind}-{uuid.uuid4().hex[:8]}"
    template = json.loads((ROOT / "deploy" / f"{kind}-pool.json").read_text())
    async with PrefectClient(api=api) as client:
        pool = await client.create_work_pool(
            WorkPoolCreate(name=name, type=kind, base_job_template=template, concurrency_limit=1)
        )
        flow_id = await client.create_flow(flow(lambda: None, name=f"on-{kind}"))
        deployment_id = await client.create_deployment(
            flow_id, name=kind, work_pool_name=name, job_variables=job_variables
        )
        deployment = await client.read_deployment(deployment_id)
        run = await client.create_flow_run_from_deployment(deployment_id, name="nightly")
        result = await configuration.from_template_and_values(
            pool.base_job_template, deployment.job_variables, client=client
        )
        result.prepare_for_flow_run(run, deployment=deployment, work_pool=pool)
        return pool, result


def test_docker(prefect_server):
    from prefect.workers.base import BaseJobConfiguration

    class Container(BaseJobConfiguration):
        image: str
        networks: list
        volumes: list
        container_create_kwargs: dict

    variables = {"env": {"GRPO_RM_REPOSITORY": "https://example.com/clone.git"}, "volumes": ["/data/clone:/workspace"]}
    pool, container = asyncio.run(job(prefect_server, "docker", Container, variables))

    assert pool.concurrency_limit == 1
    assert container.command == "prefect flow-run execute"
    assert container.image == "grpo-rm-train"
    assert container.volumes == ["/data/clone:/workspace"]
    assert container.networks == ["grpo-rm_default"]
    assert container.env["GRPO_RM_REPOSITORY"] == "https://example.com/clone.git"
    assert container.env["PREFECT_API_URL"] == "http://prefect:4200/api"
    assert container.env["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert container.container_create_kwargs["device_requests"][0]["capabilities"] == [["gpu"]]
    assert container.container_create_kwargs["init"] is True


@pytest.mark.parametrize("gpus", [0, 2])
def test_kubernetes(prefect_server, gpus):
    from prefect.workers.base import BaseJobConfiguration

    class Job(BaseJobConfiguration):
        namespace: str
        job_manifest: dict

    variables = {"image": "registry.example.com/grpo-rm-train:1", "gpus": gpus, "workspace_claim": "clone"}
    _, kubernetes = asyncio.run(job(prefect_server, "kubernetes", Job, variables))

    assert (kubernetes.namespace, kubernetes.command) == ("grpo-rm", "prefect flow-run execute")
    spec = kubernetes.job_manifest["spec"]
    assert (spec["parallelism"], spec["completions"], spec["backoffLimit"]) == (1, 1, 0)
    pod = spec["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 90
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    assert container["image"] == "registry.example.com/grpo-rm-train:1"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == gpus
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"workspace": "/workspace", "shm": "/dev/shm"}
    assert pod["volumes"][0] == {"name": "workspace", "persistentVolumeClaim": {"claimName": "clone"}}


def test_a_wrong_variable_is_refused(prefect_server):
    """The server holds job variables against the schema of the template: not only our own reading of it counts."""
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.workers.base import BaseJobConfiguration

    with pytest.raises(PrefectHTTPStatusError, match="field 'gpus'"):
        asyncio.run(job(prefect_server, "kubernetes", BaseJobConfiguration, {"gpus": "many"}))
