"""The fields of KubeRay 1.6 that the manifests may use, as closed JSON schemas.

Written from KubeRay's API reference (https://docs.ray.io/en/latest/cluster/kubernetes/references/api.html) and that of
Kubernetes; not the CRD itself, whose OpenAPI schema is a megabyte and in no package. What is not listed here is
refused, a misspelt field above all: a field that is added to a manifest must be looked up and added here.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def closed(required: str = "", **properties: Schema) -> Schema:
    """An object with these properties and no others; `required` names some, separated by spaces."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def listed(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def text(pattern: str = ".") -> Schema:
    return {"type": "string", "pattern": pattern}


TEXT, FLAG = text(), {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
QUANTITIES: Schema = {"type": "object", "additionalProperties": text(r"^\d+(m|Mi|Gi)?$")}
METADATA = closed("name namespace", name=text("^[a-z0-9-]{1,40}$"), namespace=TEXT, labels=TEXTS)

RESOURCES = closed("requests limits", requests=QUANTITIES, limits=QUANTITIES)
CONTAINER_SECURITY = closed(
    "allowPrivilegeEscalation capabilities",
    allowPrivilegeEscalation=FLAG,
    capabilities=closed("drop", drop=listed(TEXT)),
)
POD_SECURITY = closed(
    "runAsNonRoot runAsUser seccompProfile",
    runAsNonRoot=FLAG,
    runAsUser=COUNT,
    runAsGroup=COUNT,
    fsGroup=COUNT,
    seccompProfile=closed("type", type=one_of("RuntimeDefault", "Localhost")),
)
VARIABLE = closed(
    "name",
    name=text("^[A-Z][A-Z0-9_]*$"),
    value=TEXT,
    valueFrom=closed("secretKeyRef", secretKeyRef=closed("name key", name=TEXT, key=TEXT)),
)
CONTAINER = closed(
    "name image resources securityContext",
    name=TEXT,
    image=TEXT,
    securityContext=CONTAINER_SECURITY,
    env=listed(VARIABLE),
    ports=listed(closed("containerPort", name=TEXT, containerPort=COUNT)),
    volumeMounts=listed(closed("name mountPath", name=TEXT, mountPath=text("^/"), readOnly=FLAG)),
    resources=RESOURCES,
)
EXPRESSION = closed(
    "key operator", key=TEXT, operator=one_of("In", "NotIn", "Exists", "DoesNotExist"), values=listed(TEXT)
)
NODE_TERMS = closed("nodeSelectorTerms", nodeSelectorTerms=listed(closed(matchExpressions=listed(EXPRESSION))))
TOLERATION = closed(
    "operator effect",
    key=TEXT,
    operator=one_of("Equal", "Exists"),
    value=TEXT,
    effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
)
SECRET_VOLUME = closed("secretName", secretName=TEXT, defaultMode=COUNT)
POD = closed(
    "containers securityContext serviceAccountName",
    serviceAccountName=TEXT,
    automountServiceAccountToken=FLAG,
    nodeSelector=TEXTS,
    affinity=closed(nodeAffinity=closed(requiredDuringSchedulingIgnoredDuringExecution=NODE_TERMS)),
    tolerations=listed(TOLERATION),
    securityContext=POD_SECURITY,
    containers=listed(CONTAINER),
    volumes=listed(closed("name secret", name=TEXT, secret=SECRET_VOLUME)),
)
TEMPLATE = closed("spec", spec=POD)

HEAD_GROUP = closed(
    "rayStartParams serviceType template",
    rayStartParams=TEXTS,
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
    template=TEMPLATE,
)
WORKER_GROUP = closed(
    "groupName rayStartParams template",
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=TEXTS,
    template=TEMPLATE,
)
RAY_CLUSTER_SPEC = closed(
    "rayVersion authOptions headGroupSpec workerGroupSpecs",
    rayVersion=TEXT,
    authOptions=closed("mode", mode=one_of("disabled", "token"), secretName=TEXT),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=closed(idleTimeoutSeconds=COUNT, resources=RESOURCES, securityContext=CONTAINER_SECURITY),
    headGroupSpec=HEAD_GROUP,
    workerGroupSpecs=listed(WORKER_GROUP),
)
RAY_JOB_SPEC = closed(
    "entrypoint rayClusterSpec",
    entrypoint=TEXT,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    runtimeEnvYAML=TEXT,
    backoffLimit=COUNT,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    rayClusterSpec=RAY_CLUSTER_SPEC,
)
# Its two thresholds of unhealthiness are not used any more, so they are left out.
RAY_SERVICE_SPEC = closed(
    "serveConfigV2 rayClusterConfig",
    serveConfigV2=TEXT,
    rayClusterConfig=RAY_CLUSTER_SPEC,
    rayClusterDeletionDelaySeconds=COUNT,
    upgradeStrategy=closed("type", type=one_of("NewCluster", "NewClusterWithIncrementalUpgrade", "None")),
    excludeHeadPodFromServeSvc=FLAG,
)


def resource(kind: str, spec: Schema) -> Schema:
    return closed(
        "apiVersion kind metadata spec",
        apiVersion=one_of("ray.io/v1"),
        kind=one_of(kind),
        metadata=METADATA,
        spec=spec,
    )


RAY_CLUSTER = resource("RayCluster", RAY_CLUSTER_SPEC)
RAY_JOB = resource("RayJob", RAY_JOB_SPEC)
RAY_SERVICE = resource("RayService", RAY_SERVICE_SPEC)
