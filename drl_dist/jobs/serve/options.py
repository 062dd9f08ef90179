"""Options of ``jobs/serve.py``, and of a Serve config."""

from __future__ import annotations

from dataclasses import dataclass

from drl_dist.common.validation import Rule, model_rule, place_rule, refuse_broken, refuse_missing

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class ReplicaOptions:
    """What a replica is given: the fields of ``args`` in a Serve config too."""

    model: str = ""
    """models:/NAME@latest, models:/NAME/VERSION, or the URL of a checkpoint, of a run folder or of a saved
    model."""
    data: str | None = None
    """URL of image shards whose log-densities others are compared with."""
    min_replicas: int = 1
    """Processes that hold the model, at least."""
    max_replicas: int = 1
    """And at most: more are started while more visitors come than fit into a batch."""
    use_gpu: bool = False
    """Give each replica a GPU."""
    cpus_per_replica: int = 1
    """CPUs, and threads, of each replica."""
    max_batch: int = 16
    """Images that a replica gives the network at once."""
    max_waiting: int = 64
    """Requests that may wait for room in a replica; more are refused."""
    max_seconds: float = 600.0
    """Until an image is given up."""
    token_file: str | None = None
    """File that holds the token which visitors must have; it is created, with a new one, if it does not exist."""
    tracking_uri: str | None = None
    """MLflow server; by default the environment's MLFLOW_TRACKING_URI. Only models:/ addresses need it."""
    allow_code: tuple[str, ...] = ()
    """Import paths, MODULE:NAME, of a network, kernel or objective that is not part of drl_dist, which the model may
    import (docs/own_parts.md)."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ReplicaOptions):
    """Options of ``jobs/serve.py``."""

    host: str = "127.0.0.1"
    """Address to listen on; any other than this machine's own needs --token-file."""
    port: int = 8000
    """Port to listen on."""
    open_page: bool = False
    """Open the page in this machine's browser."""


def replica_rules(options: ReplicaOptions) -> list[Rule]:
    """Rules on what a replica is given."""
    return [
        ("--min-replicas", options.min_replicas, "at least 1", options.min_replicas >= 1),
        (
            "--max-replicas",
            options.max_replicas,
            f"at least --min-replicas, {options.min_replicas}",
            options.max_replicas >= options.min_replicas,
        ),
        ("--cpus-per-replica", options.cpus_per_replica, "at least 1", options.cpus_per_replica >= 1),
        ("--max-batch", options.max_batch, "at least 1", options.max_batch >= 1),
        ("--max-waiting", options.max_waiting, "at least 0", options.max_waiting >= 0),
        ("--max-seconds", options.max_seconds, "more than 0", options.max_seconds > 0),
        *([] if options.data is None else [place_rule("--data", options.data)]),
        model_rule(options.model),
    ]


def check_serve(options: ServeOptions) -> None:
    """Raise `UserError` for options that no server can have."""
    refuse_missing({"--model": options.model})
    is_own = options.host in LOOPBACK_HOSTS
    refuse_broken(
        [
            *replica_rules(options),
            ("--port", options.port, "1 to 65535", 1 <= options.port <= 65535),
            (
                "--host",
                f"{options.host} without --token-file",
                f"one of {', '.join(LOOPBACK_HOSTS)}, or a token that visitors must have",
                is_own or options.token_file is not None,
            ),
        ]
    )
