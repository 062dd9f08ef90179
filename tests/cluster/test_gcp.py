"""The Ray cluster on Google Cloud: what Ray itself accepts, and what keeps it private."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.facts import CLUSTER, IMAGE, documents

(CONFIG,) = documents(CLUSTER / "gcp.yaml")
TYPES: dict[str, dict[str, Any]] = CONFIG["available_node_types"]
HEAD = TYPES[CONFIG["head_node_type"]]
WORKERS = [kind for name, kind in TYPES.items() if name != CONFIG["head_node_type"]]

# Ray's schema looks at nothing below node_config: the fields of compute's instances.insert that this project uses.
INSTANCE = {"machineType", "disks", "networkInterfaces", "tags", "scheduling", "serviceAccounts"}
SCHEDULING = {"provisioningModel", "instanceTerminationAction", "onHostMaintenance", "automaticRestart"}


def accept(config: dict[str, Any]) -> dict[str, Any]:
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_ray_accepts_it() -> None:
    prepared = accept(CONFIG)
    # Ray's defaults would install other versions over the image's.
    assert [prepared[name] for name in ("setup_commands", "head_setup_commands", "worker_setup_commands")] == [[]] * 3
    assert HEAD["max_workers"] == 0 and sum(kind["max_workers"] for kind in WORKERS) == CONFIG["max_workers"]


def test_ray_refuses_a_misspelt_field() -> None:
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minute"):
        accept({"idle_timeout_minute": 10} | CONFIG)


def test_every_node_is_of_known_fields() -> None:
    for kind in TYPES.values():
        node = kind["node_config"]
        assert node.keys() <= INSTANCE and node.get("scheduling", {}).keys() <= SCHEDULING
        (boot,) = node["disks"]
        assert boot["boot"] and boot["autoDelete"] and boot["initializeParams"]["diskSizeGb"] >= 100


def test_no_node_has_a_public_address() -> None:
    assert CONFIG["provider"]["use_internal_ips"] is True
    assert CONFIG["auth"]["ssh_proxy_use_node_id"] is True
    assert "start-iap-tunnel %h %p" in CONFIG["auth"]["ssh_proxy_command"]
    for kind in TYPES.values():
        (interface,) = kind["node_config"]["networkInterfaces"]
        # Without an interface of its own, Ray would give the node a public address.
        assert interface.keys() == {"subnetwork"} and interface["subnetwork"].endswith("/subnetworks/drl")
        assert kind["node_config"]["tags"] == {"items": ["drl"]}


def test_the_dashboard_listens_on_loopback_and_asks_for_the_token() -> None:
    (start,) = [command for command in CONFIG["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start.split()
    assert CONFIG["docker"]["run_options"][-1] == "--env-file /home/ubuntu/drl.env"
    (environment,) = [command for command in CONFIG["initialization_commands"] if "drl.env" in command]
    assert "RAY_AUTH_MODE=token" in environment and "--secret=drl-ray-token" in environment
    # Readable by its owner alone, and never made when a secret could not be read.
    assert environment.startswith("umask 077 &&") and environment.count(") &&") == 2


def test_workers_are_spot_machines_with_gpus_and_the_head_is_not() -> None:
    assert "scheduling" not in HEAD["node_config"] and HEAD["resources"] == {"CPU": 0}
    assert WORKERS
    for kind in WORKERS:
        scheduling = kind["node_config"]["scheduling"]
        assert scheduling["provisioningModel"] == "SPOT" and scheduling["instanceTerminationAction"] == "DELETE"
        # A machine with a GPU cannot be moved, and one on spot cannot be restarted.
        assert scheduling["onHostMaintenance"] == "TERMINATE" and scheduling["automaticRestart"] is False
        assert kind["resources"]["GPU"] >= 1 and kind["min_workers"] == 0


def test_each_kind_of_node_has_a_service_account_of_its_own() -> None:
    accounts = [kind["node_config"]["serviceAccounts"][0]["email"] for kind in TYPES.values()]
    assert len(set(accounts)) == len(TYPES)
    assert all(email.endswith("@my-project.iam.gserviceaccount.com") for email in accounts)


def test_the_image_is_pinned_to_this_version() -> None:
    assert IMAGE.fullmatch(CONFIG["docker"]["image"])
