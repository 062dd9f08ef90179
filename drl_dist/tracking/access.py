"""What lets this process into the MLflow server, for processes on other machines that speak to it too."""

from __future__ import annotations

import os
from collections.abc import Mapping

USERNAME, PASSWORD, TOKEN = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"
_LOGIN = (USERNAME, PASSWORD, TOKEN, "MLFLOW_TRACKING_AUTH")
_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def access() -> dict[str, str]:
    """The variables of MLflow's client that are set here, with the login of ~/.mlflow/credentials if there is one.

    They hold secrets: hand them over as an argument of a remote function, which Ray keeps in memory, and not as
    variables of a runtime environment, which its dashboard shows and its logs repeat.
    """
    from mlflow.utils.credentials import read_mlflow_creds

    found = {
        name: value
        for name, value in os.environ.items()
        # Where the server is goes along with the config; a run is the driver's choice.
        if (name.startswith("MLFLOW_") or name in _BUNDLES) and name not in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID")
    }
    user, password = read_mlflow_creds()
    return found | ({USERNAME: user} if user else {}) | ({PASSWORD: password} if password else {})


def take_access(variables: Mapping[str, str]) -> None:
    """Set what `access` gave on another machine.

    The login is that machine's and no other. Files are where this machine says, if it says anything: a certificate may
    lie elsewhere here.
    """
    for name in _LOGIN:
        os.environ.pop(name, None)
    for name, value in variables.items():
        if name.endswith("_PATH") or name in _BUNDLES:
            os.environ.setdefault(name, value)
        else:
            os.environ[name] = value
