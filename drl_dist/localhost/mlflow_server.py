"""An MLflow server on this machine alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from drl_dist.localhost.server import HOST, LocalServer, ask, free_ports


class MlflowServer(LocalServer):
    """An MLflow server over SQLite; what it holds stays in its folder and is there again at the next start.

    Args:
        folder: holds the database, the artifacts and the log.
        port: a free one by default. Artifact addresses do not contain it, so it may change between starts.
        start_seconds: time it has to become ready.
    """

    def __init__(self, folder: str | Path, *, port: int | None = None, start_seconds: float = 300) -> None:
        self.folder = Path(folder).resolve()
        super().__init__("MLflow server", self.folder / "server.log", start_seconds)
        self.port = port or free_ports(1)[0]

    @property
    def uri(self) -> str:
        """Tracking URI; also the address of the page."""
        return f"http://{HOST}:{self.port}"

    def environment(self) -> dict[str, str]:
        """What a client's environment needs."""
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
            # Of the whole path SQLAlchemy would read ? as the beginning of options, and %20 as a space.
            "--backend-store-uri=sqlite:///mlflow.db",
            # MLflow decodes %20 in a path too.
            f"--artifacts-destination={(self.folder / 'artifacts').as_uri()}",
        ]

    @property
    def working_directory(self) -> Path:
        return self.folder

    def server_environment(self) -> dict[str, str]:
        # What the user set is for a client, or for another server. Job execution would add eight idle processes.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "_MLFLOW_"))}
        return inherited | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}

    def is_ready(self) -> bool:
        try:
            ask(f"{self.uri}/health")
        except OSError:
            return False
        return True
