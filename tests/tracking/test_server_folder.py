"""A local MLflow server keeps everything in its own folder, whatever that is called."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from drl_dist.localhost import MlflowServer


@pytest.mark.integration
def test_its_files_lie_in_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "server" / "a%20b?c#d [x]::e"
    (tmp_path / "file.txt").write_text("hello")
    with MlflowServer(folder) as server:
        client = MlflowClient(server.uri)
        run = client.create_run("0").info.run_id
        client.log_artifact(run, str(tmp_path / "file.txt"), "sub")
        assert Path(client.download_artifacts(run, "sub/file.txt", str(tmp_path))).read_text() == "hello"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert (folder / "mlflow.db").is_file()
    assert len(list((folder / "artifacts").rglob("file.txt"))) == 1
