"""The KubeRay manifests: known fields only, private services, a token, pinned images, spot workers."""

from __future__ import annotations

import copy
import json
import os
import shlex
import subprocess
import sys
from typing import Any

import jsonschema
import pytest
import yaml

from tests.cluster.facts import CLUSTER, CONSTRAINTS, IMAGE, USER_ID, documents
from tests.cluster.kuberay_schema import RAY_CLUSTER, RAY_JOB, RAY_SERVICE
from tests.support import ROOT, subprocess_environment

FOLDER = CLUSTER / "kuberay"
(RAYCLUSTER,) = documents(FOLDER / "raycluster.yaml")
(RAYJOB,) = documents(FOLDER / "rayjob.yaml")
(RAYSERVICE,) = documents(FOLDER / "rayservice.yaml")
MLFLOW = {document["kind"]: document for document in documents(FOLDER / "mlflow.yaml")}
SPECS: dict[str, dict[str, Any]] = {
    "cluster": RAYCLUSTER["spec"],
    "job": RAYJOB["spec"]["rayClusterSpec"],
    "service": RAYSERVICE["spec"]["rayClusterConfig"],
}
SPOT = "cloud.google.com/gke-spot"


def pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


ALL_PODS = [*(pod for spec in SPECS.values() for pod in pods(spec)), MLFLOW["Deployment"]["spec"]["template"]["spec"]]


def avoids_spot(pod: dict[str, Any]) -> bool:
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return all({"key": SPOT, "operator": "DoesNotExist"} in term["matchExpressions"] for term in terms)


def test_they_hold_known_fields_only() -> None:
    jsonschema.validate(RAYCLUSTER, RAY_CLUSTER)
    jsonschema.validate(RAYJOB, RAY_JOB)
    jsonschema.validate(RAYSERVICE, RAY_SERVICE)


@pytest.mark.parametrize("path", ["spec", "spec/headGroupSpec", "spec/headGroupSpec/template/spec", "spec/authOptions"])
def test_a_misspelt_field_is_refused(path: str) -> None:
    manifest = copy.deepcopy(RAYCLUSTER)
    place = manifest
    for name in path.split("/"):
        place = place[name]
    place["nodeSelectors"] = {}
    with pytest.raises(jsonschema.ValidationError, match="nodeSelectors"):
        jsonschema.validate(manifest, RAY_CLUSTER)


def test_no_service_leaves_the_kubernetes_cluster() -> None:
    for spec in SPECS.values():
        assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert MLFLOW["Service"]["spec"]["type"] == "ClusterIP"
    for path in FOLDER.glob("*.yaml"):
        kinds = {document["kind"] for document in documents(path)}
        assert not kinds & {"Ingress", "Gateway", "HTTPRoute"}, path
        assert not any(word in path.read_text() for word in ("NodePort", "LoadBalancer", "hostNetwork", "hostPort"))


@pytest.mark.parametrize("name", SPECS)
def test_ray_asks_for_the_token_of_a_secret(name: str) -> None:
    assert SPECS[name]["authOptions"] == {"mode": "token", "secretName": "drl-ray-token"}
    for pod in pods(SPECS[name]):
        # KubeRay leaves a variable that is set already as it is.
        names = {variable["name"] for variable in pod["containers"][0]["env"]}
        assert not any(variable.startswith("RAY_AUTH") for variable in names)


def test_no_secret_is_in_the_manifests() -> None:
    for pod in ALL_PODS:
        for variable in pod["containers"][0]["env"]:
            if any(word in variable["name"] for word in ("PASSWORD", "TOKEN", "KEY", "SECRET")):
                assert variable.keys() == {"name", "valueFrom"}, variable["name"]
    assert not any(document["kind"] == "Secret" for path in FOLDER.glob("*.yaml") for document in documents(path))


@pytest.mark.parametrize("name", SPECS)
def test_ray_is_of_the_version_of_the_constraints(name: str) -> None:
    assert SPECS[name]["rayVersion"] == CONSTRAINTS["ray"]


def test_every_container_is_pinned_bounded_and_without_privileges() -> None:
    for pod in ALL_PODS:
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] == USER_ID
        for container in pod["containers"]:
            assert IMAGE.fullmatch(container["image"])
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False and security["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("name", SPECS)
def test_workers_are_on_spot_nodes_with_gpus_and_the_head_is_not(name: str) -> None:
    head, *workers = pods(SPECS[name])
    assert avoids_spot(head) and SPECS[name]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert workers
    for pod in workers:
        assert pod["nodeSelector"][SPOT] == "true"
        tolerated = {toleration["key"] for toleration in pod["tolerations"]}
        assert tolerated == {SPOT, "nvidia.com/gpu"}
        assert int(pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) == 1
        assert pod["automountServiceAccountToken"] is False
        # The autoscaler's rights over pods go to the head's account.
        assert pod["serviceAccountName"] != head["serviceAccountName"]


def test_jobs_and_mlflow_know_each_other() -> None:
    service, deployment = MLFLOW["Service"], MLFLOW["Deployment"]
    pod = deployment["spec"]["template"]
    (server,) = pod["spec"]["containers"]
    assert service["spec"]["selector"] == pod["metadata"]["labels"] == deployment["spec"]["selector"]["matchLabels"]
    assert server["command"][:3] == ["mlflow", "server", "--app-name=basic-auth"]
    assert avoids_spot(pod["spec"])
    (port,) = [entry["port"] for entry in service["spec"]["ports"]]
    address = f"{service['metadata']['name']}:{port}"
    (hosts,) = [word for word in server["command"] if word.startswith("--allowed-hosts=")]
    assert address in hosts.partition("=")[2].split(",")
    for spec in SPECS.values():
        for ray_pod in pods(spec):
            variables = {variable["name"]: variable for variable in ray_pod["containers"][0]["env"]}
            assert variables["MLFLOW_TRACKING_URI"]["value"] == f"http://{address}"
            (password,) = [entry for entry in server["env"] if entry["name"] == "MLFLOW_AUTH_ADMIN_PASSWORD"]
            assert variables["MLFLOW_TRACKING_PASSWORD"]["valueFrom"] == password["valueFrom"]


def test_the_job_is_a_training_run_that_fits_its_cluster() -> None:
    spec, (group,) = RAYJOB["spec"], SPECS["job"]["workerGroupSpecs"]
    program, script, *options = shlex.split(spec["entrypoint"])
    copied = script.removeprefix("/opt/drl_dist/")
    assert program == "python" and copied != script
    done = subprocess.run(
        [sys.executable, copied, *options, "--dry-run"],
        cwd=ROOT,
        env=subprocess_environment({"PATH": os.environ["PATH"]}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    assert run["use_gpu"] is True and run["num_workers"] == group["replicas"] == group["maxReplicas"]
    assert run["cpus_per_worker"] <= int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert run["run_name"] == RAYJOB["metadata"]["name"]
    # A submission id is taken once, so a retry could not use it.
    assert spec["backoffLimit"] > 0 and "jobId" not in spec
    assert int(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 30
