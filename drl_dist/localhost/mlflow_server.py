"""An MLflow server on this machine alone."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

from drl_dist.localhost.server import HOST, LocalServer, free_ports


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
        # Job execution would add eight idle processes; the tracking URI of a client means nothing to the server.
        inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        return inherited | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
