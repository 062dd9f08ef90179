"""The Serve configs: understood by Ray Serve, options of the server, and no way in without a token."""

from __future__ import annotations

import pkgutil
from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter
from ray.serve.schema import HTTPOptionsSchema, LoggingConfig, ServeApplicationSchema, ServeDeploySchema

from drl_dist.common.validation import refuse_broken
from drl_dist.jobs.serve.application import LOGGING, build
from drl_dist.jobs.serve.driver import NAME
from drl_dist.jobs.serve.options import LOOPBACK_HOSTS, ReplicaOptions, replica_rules
from drl_dist.jobs.serve.token import read_token
from tests.cluster.facts import CLUSTER, documents

(ALONE,) = documents(CLUSTER / "serve.yaml")
(SERVICE,) = documents(CLUSTER / "kuberay" / "rayservice.yaml")
CONFIGS: dict[str, dict[str, Any]] = {"alone": ALONE, "service": yaml.safe_load(SERVICE["spec"]["serveConfigV2"])}
RAY_CLUSTER: dict[str, Any] = SERVICE["spec"]["rayClusterConfig"]


def check_known(fields: dict[str, Any], schema: type[BaseModel]) -> None:
    """Ray Serve itself overlooks a misspelt field."""
    assert fields.keys() <= schema.model_fields.keys()


def options_of(config: dict[str, Any]) -> ReplicaOptions:
    (application,) = config["applications"]
    args = application["args"]
    assert args.keys() <= ReplicaOptions.__dataclass_fields__.keys()
    return TypeAdapter(ReplicaOptions).validate_python(args)


@pytest.mark.parametrize("name", CONFIGS)
def test_ray_serve_understands_all_of_it(name: str) -> None:
    config = CONFIGS[name]
    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    check_known(config, ServeDeploySchema)
    check_known(config["http_options"], HTTPOptionsSchema)
    check_known(config["logging_config"], LoggingConfig)
    check_known(application, ServeApplicationSchema)
    assert application["name"] == NAME and application["route_prefix"] == "/"
    assert pkgutil.resolve_name(application["import_path"]) is build


@pytest.mark.parametrize("name", CONFIGS)
def test_addresses_which_may_hold_a_token_are_not_logged(name: str) -> None:
    config = CONFIGS[name]
    assert config["applications"][0]["logging_config"] == config["logging_config"]
    given = LoggingConfig.model_validate(config["logging_config"])
    assert (given.enable_access_log, given.log_level) == (False, LOGGING.log_level)


@pytest.mark.parametrize("name", CONFIGS)
def test_args_are_options_of_a_server(name: str) -> None:
    refuse_broken(replica_rules(options_of(CONFIGS[name])))


@pytest.mark.parametrize("name", CONFIGS)
def test_whoever_comes_from_elsewhere_needs_a_token(name: str) -> None:
    is_own = CONFIGS[name]["http_options"]["host"] in LOOPBACK_HOSTS
    assert is_own == (options_of(CONFIGS[name]).token_file is None)


def test_every_pod_of_the_service_has_the_token_of_a_secret() -> None:
    place = options_of(CONFIGS["service"]).token_file
    assert place is not None
    for group in [RAY_CLUSTER["headGroupSpec"], *RAY_CLUSTER["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        (mount,), (volume,) = pod["containers"][0]["volumeMounts"], pod["volumes"]
        assert mount["mountPath"] == str(PurePosixPath(place).parent) and mount["readOnly"] is True
        assert mount["name"] == volume["name"] and volume["secret"]["secretName"] == "drl-serve-token"
        # Kubernetes gives the files to the group.
        assert volume["secret"]["defaultMode"] == 0o440 and pod["securityContext"]["fsGroup"] > 0


def test_replicas_fit_the_workers_of_the_service() -> None:
    options, (group,) = options_of(CONFIGS["service"]), RAY_CLUSTER["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert options.use_gpu and limits["nvidia.com/gpu"] == "1"
    assert options.cpus_per_replica <= int(limits["cpu"])
    assert (options.min_replicas, options.max_replicas) == (group["minReplicas"], group["maxReplicas"])
    assert RAY_CLUSTER["enableInTreeAutoscaling"] is True
    # Visitors of an old cluster get their images.
    assert SERVICE["spec"]["rayClusterDeletionDelaySeconds"] >= options.max_seconds


def test_visitors_reach_the_head_which_is_no_spot_machine() -> None:
    (container,) = RAY_CLUSTER["headGroupSpec"]["template"]["spec"]["containers"]
    ports = {port["containerPort"] for port in container["ports"]}
    assert CONFIGS["service"]["http_options"]["port"] in ports


def test_a_token_file_of_kubernetes_is_read(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A link to a link, without an end of line."""
    folder = tmp_path_factory.mktemp("mounted")
    (folder / "..data").mkdir()
    (folder / "..data" / "token").write_text("a" * 64)
    (folder / "token").symlink_to("..data/token")
    assert read_token(str(folder / "token"), create=False) == "a" * 64
