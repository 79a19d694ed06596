"""The field names of a Kubernetes Pod (API v1, release 1.33), object by object.

They serve two messages: "Kubernetes has this field, pyrun does not support it yet" and "did you
mean …". What pyrun does support is decided by what `kubeyaml` reads, not here.
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


KNOWN: dict[str, frozenset[str]] = {
    "Pod": _names("apiVersion kind metadata spec status"),
    "ObjectMeta": _names(
        "annotations creationTimestamp deletionGracePeriodSeconds deletionTimestamp finalizers "
        "generateName generation labels managedFields name namespace ownerReferences "
        "resourceVersion selfLink uid"
    ),
    "PodSpec": _names(
        "activeDeadlineSeconds affinity automountServiceAccountToken containers dnsConfig "
        "dnsPolicy enableServiceLinks ephemeralContainers hostAliases hostIPC hostNetwork hostPID "
        "hostUsers hostname hostnameOverride imagePullSecrets initContainers nodeName "
        "nodeSelector os overhead preemptionPolicy priority priorityClassName readinessGates "
        "resourceClaims resources restartPolicy runtimeClassName schedulerName schedulingGates "
        "securityContext serviceAccount serviceAccountName setHostnameAsFQDN "
        "shareProcessNamespace subdomain terminationGracePeriodSeconds tolerations "
        "topologySpreadConstraints volumes"
    ),
    "Container": _names(
        "args command env envFrom image imagePullPolicy lifecycle livenessProbe name ports "
        "readinessProbe resizePolicy resources restartPolicy restartPolicyRules securityContext "
        "startupProbe stdin stdinOnce terminationMessagePath terminationMessagePolicy tty "
        "volumeDevices volumeMounts workingDir"
    ),
    "EnvVar": _names("name value valueFrom"),
    "ContainerPort": _names("containerPort hostIP hostPort name protocol"),
    "VolumeMount": _names(
        "mountPath mountPropagation name readOnly recursiveReadOnly subPath subPathExpr"
    ),
    "ResourceRequirements": _names("claims limits requests"),
    "Limits": _names("cpu ephemeral-storage memory"),
    "SecurityContext": _names(
        "allowPrivilegeEscalation appArmorProfile capabilities privileged procMount "
        "readOnlyRootFilesystem runAsGroup runAsNonRoot runAsUser seLinuxOptions seccompProfile "
        "windowsOptions"
    ),
    "PodSecurityContext": _names(
        "appArmorProfile fsGroup fsGroupChangePolicy runAsGroup runAsNonRoot runAsUser "
        "seLinuxChangePolicy seLinuxOptions seccompProfile supplementalGroups "
        "supplementalGroupsPolicy sysctls windowsOptions"
    ),
    "Capabilities": _names("add drop"),
    "HostAlias": _names("hostnames ip"),
    "Volume": _names(
        "awsElasticBlockStore azureDisk azureFile cephfs cinder configMap csi downwardAPI "
        "emptyDir ephemeral fc flexVolume flocker gcePersistentDisk gitRepo glusterfs hostPath "
        "image iscsi name nfs persistentVolumeClaim photonPersistentDisk portworxVolume projected "
        "quobyte rbd scaleIO secret storageos vsphereVolume"
    ),
    "EmptyDirVolumeSource": _names("medium sizeLimit"),
    "HostPathVolumeSource": _names("path type"),
}

FALSE_IS_NOTHING = _names(
    "automountServiceAccountToken enableServiceLinks hostIPC hostNetwork hostPID runAsNonRoot "
    "setHostnameAsFQDN shareProcessNamespace stdinOnce"
)
"""Fields pyrun does not support, whose `false` describes what pyrun does anyway."""

HOME = {
    "PodSpec": "spec",
    "Container": "spec.containers[]",
    "ObjectMeta": "metadata",
    "VolumeMount": "spec.containers[].volumeMounts[]",
    "ContainerPort": "spec.containers[].ports[]",
    "ResourceRequirements": "spec.containers[].resources",
    "SecurityContext": "spec.containers[].securityContext",
    "Volume": "spec.volumes[]",
}
"""Where the objects live whose fields are often written one level too high or too low."""


def why_unknown(kind: str, name: str) -> str:
    """What to say about the field `name`, which no object of `kind` has."""
    import difflib

    if kind == "Limits" and ("/" in name or name.startswith("hugepages-")):
        return "pyrun can limit cpu and memory only"
    known = sorted(KNOWN[kind])
    lower = {field.lower(): field for field in known}
    near = difflib.get_close_matches(name.lower()[:60], lower, 1, 0.7)
    if near:
        return f"unknown field; did you mean {lower[near[0]]}?"
    homes = [home for other, home in HOME.items() if name in KNOWN[other]]
    if homes:
        return f"unknown field here; {name} belongs in {' or '.join(homes)}"
    if name == "<<":
        return "YAML merge keys (<<) are not supported; write the fields out"
    return "unknown field"
