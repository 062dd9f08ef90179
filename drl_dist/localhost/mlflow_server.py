"""An MLflow server that listens only on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from drl_dist.localhost.server import HOST, LocalServer, fetch, free_ports


class MlflowServer(LocalServer):
    """An MLflow server over SQLite; its data stay in its folder for the next start.

    Args:
        folder: folder of the database, the artifacts and the log.
        port: port to listen on, by default a free one. Artifact addresses do not contain it, so it may change between
            starts.
        start_seconds: seconds within which it must be ready.
    """

    def __init__(self, folder: str | Path, *, port: int | None = None, start_seconds: float = 300) -> None:
        self.folder = Path(folder).resolve()
        super().__init__("MLflow server", self.folder / "server.log", start_seconds)
        self.port = port or free_ports(1)[0]

    @property
    def uri(self) -> str:
        """Tracking URI; also the address of the web page."""
        return f"http://{HOST}:{self.port}"

    def environment(self) -> dict[str, str]:
        """Environment variables for clients of this server."""
        return {"MLFLOW_TRACKING_URI": self.uri}

    def command(self) -> list[str]:
        return [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            f"--host={HOST}",
            f"--port={self.port}",
            "--workers=1",
            # A relative path, because SQLAlchemy reads ? as the beginning of options, and %20 as a space.
            "--backend-store-uri=sqlite:///mlflow.db",
            # As a URI, because MLflow decodes %20 even in a path.
            f"--artifacts-destination={(self.folder / 'artifacts').as_uri()}",
        ]

    @property
    def working_directory(self) -> Path:
        return self.folder

    def server_environment(self) -> dict[str, str]:
        # The user's variables are for clients, or for another server. Job execution would start eight idle processes.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "_MLFLOW_"))}
        return inherited | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}

    def is_ready(self) -> bool:
        try:
            fetch(f"{self.uri}/health")
        except OSError:
            return False
        return True
