#!/usr/bin/env bash
# Startup script of the MLflow machine for cluster/gcp.yaml (Debian 12, no public address); runs at every boot.
# Replace my-project and my-bucket as in gcp.yaml.
set -euo pipefail

image=us-central1-docker.pkg.dev/my-project/drl/drl_dist:0.1.0
export HOME=/root DEBIAN_FRONTEND=noninteractive

command -v docker >/dev/null || { apt-get update --quiet && apt-get install --yes --quiet docker.io; }
gcloud auth configure-docker us-central1-docker.pkg.dev --quiet

secret() { gcloud secrets versions access latest --secret="$1" --project=my-project; }
umask 077
password=$(secret drl-mlflow-password)
key=$(secret drl-mlflow-key)
printf '%s\n' "MLFLOW_AUTH_ADMIN_PASSWORD=$password" "MLFLOW_FLASK_SERVER_SECRET_KEY=$key" \
  MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false >/run/mlflow.env

# Runs and users are stored in SQLite files on this machine's disk, artifacts in the bucket.
install --directory --owner=1000 --group=1000 --mode=700 /var/lib/mlflow
docker rm --force mlflow >/dev/null 2>&1 || true # none at the first boot
docker run --detach --restart=always --name mlflow --network host --env-file /run/mlflow.env \
  --volume /var/lib/mlflow:/data --workdir /data "$image" \
  mlflow server --app-name basic-auth --host 0.0.0.0 --port 5000 --workers 1 \
  --allowed-hosts 'drl-mlflow:5000,localhost:5000,127.0.0.1:5000' \
  --backend-store-uri sqlite:////data/mlflow.db --artifacts-destination gs://my-bucket/mlflow
