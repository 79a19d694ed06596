"""A Kubernetes Pod file becomes a `PodSpec`: `pyrun pod create -f pod.yaml`.

The file is the one kubectl takes (apiVersion v1, kind Pod), read as the API server and the
kubelet read it, with one difference: nothing is silently ignored. A field that pyrun cannot
honour is a fault with its path and line, and all faults of a file are told together.

`yamltree` turns text into nodes, `yamlfields` checks types, this module knows the Pod and its
volumes, `kubecontainer` its containers.
"""

from __future__ import annotations

import os
import sys

from pyrun.errors import BadInput
from pyrun.pod import model
from pyrun.pod.kubecontainer import read_containers, read_quantity
from pyrun.pod.yamlfields import Fields, Problems
from pyrun.pod.yamltree import MAX_BYTES, read_documents, shown

MAX_SECONDS = 2**31 - 1

NO_RESTART = (
    "restartPolicy is absent: Kubernetes would restart the containers (Always); pyrun does not "
    "restart containers yet"
)


def load(source: str) -> model.PodSpec:
    """The pod in the file `source`, or on standard input where that is `-`. Raises BadInput."""
    name = "standard input" if source == "-" else source
    try:
        if source == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with open(source, "rb") as file:
                data = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise BadInput(f"cannot read the Pod file {source!r}: {reason}") from None
    try:
        return parse(data.decode("utf-8-sig"), name)
    except UnicodeDecodeError as error:
        raise BadInput(f"{name}: not UTF-8 text (byte {error.start + 1})") from None


def parse(text: str, source: str) -> model.PodSpec:
    """The pod that `text` describes; `source` names it in messages.

    Raises BadInput, telling every fault with its path, line and column.
    """
    problems = Problems(source)
    documents = read_documents(text, source, lambda node, fault: problems.note("", node, fault))
    if not documents:
        raise BadInput(f"{source}: the document is empty; a Pod was expected")
    if len(documents) > 1:
        raise BadInput(
            f"{source}: {len(documents)} documents (the second on line {documents[1].line}); "
            "pyrun takes one Pod per file for now"
        )
    root = documents[0]
    if root.kind != "map":
        raise BadInput(f"{source}: a Pod was expected, but the document is a {root.kind}")
    top = Fields(root, "Pod", "", problems)
    _check_kind(top, source)
    pod = _pod(top)
    problems.raise_if_any()
    return pod


def _check_kind(top: Fields, source: str) -> None:
    """Another kind of object is told at once: faults of its fields would only be noise."""
    kind = top.required("kind")
    if kind not in ("", "Pod"):
        line = top.node.fields["kind"][1].line
        near = "; did you mean Pod?" if kind.lower() in ("pod", "pods") else ""
        raise BadInput(
            f"{source}: kind (line {line}): {shown(kind)} is not supported{near}",
            hint="pyrun takes objects of apiVersion v1, kind Pod",
        )
    version = top.required("apiVersion")
    if version not in ("", "v1"):
        top.problem("apiVersion", f"a Pod is of apiVersion v1; got {shown(version)}")


def _pod(top: Fields) -> model.PodSpec:
    name, namespace = "", ""
    labels: tuple[tuple[str, str], ...] = ()
    annotations: tuple[tuple[str, str], ...] = ()
    if meta := _needed(top, "metadata", "ObjectMeta"):
        name = meta.required("name", model.wrong_subdomain)
        namespace = meta.string("namespace", model.wrong_label)
        labels = meta.pairs("labels", model.wrong_label_key, model.wrong_label_value)
        annotations = meta.pairs("annotations", model.wrong_label_key)
        meta.close()
    pod = model.PodSpec(
        name=name,
        hostname=model.default_hostname(name),
        containers=(),
        namespace=namespace or model.DEFAULT_NAMESPACE,
        labels=labels,
        annotations=annotations,
    )
    if spec := _needed(top, "spec", "PodSpec"):
        pod = _spec(spec, pod)
        spec.close()
    top.close()
    return pod


def _needed(parent: Fields, name: str, kind: str) -> Fields | None:
    if not parent.has(name):
        parent.asked.add(name)
        parent.problem(name, "missing; this field is required")
    return parent.child(name, kind)


def _spec(spec: Fields, pod: model.PodSpec) -> model.PodSpec:
    grace = spec.integer("terminationGracePeriodSeconds", 0, MAX_SECONDS)
    volumes = _volumes(spec)
    return pod._replace(
        hostname=spec.string("hostname", model.wrong_label) or pod.hostname,
        volumes=volumes,
        containers=read_containers(spec, {volume.name for volume in volumes}),
        host_aliases=tuple(
            _host_alias(alias) for alias in spec.children("hostAliases", "HostAlias")
        ),
        grace_seconds=model.DEFAULT_GRACE_SECONDS if grace is None else grace,
        notes=_restart_policy(spec),
    )


def _restart_policy(spec: Fields) -> tuple[str, ...]:
    policy = spec.choice("restartPolicy", ("Always", "OnFailure", "Never"))
    if policy in ("Always", "OnFailure"):
        spec.problem(
            "restartPolicy", f"{policy} is not supported yet: pyrun restarts nothing; say Never"
        )
    return () if spec.has("restartPolicy") else (NO_RESTART,)


def _host_alias(fields: Fields) -> model.HostAlias:
    alias = model.HostAlias(
        ip=fields.required("ip", model.wrong_address),
        hostnames=fields.strings("hostnames", model.wrong_subdomain),
    )
    fields.close()
    return alias


# volumes


def _volumes(spec: Fields) -> tuple[model.Volume, ...]:
    volumes: list[model.Volume] = []
    names: set[str] = set()
    for fields in spec.children("volumes", "Volume"):
        volume = _volume(fields)
        fields.unique("name", volume.name, names, "two volumes have this name")
        volumes.append(volume)
    return tuple(volumes)


def _volume(fields: Fields) -> model.Volume:
    """A volume that names no source is an emptyDir, by Kubernetes' own default."""
    name = fields.required("name", model.wrong_label)
    empty = fields.child("emptyDir", "EmptyDirVolumeSource")
    host = fields.child("hostPath", "HostPathVolumeSource")
    fields.close()
    if empty and host:
        fields.problem("hostPath", "a volume has one source, and this one is an emptyDir already")
    return _host_path(host, name) if host else _empty_dir(empty, name)


def _empty_dir(fields: Fields | None, name: str) -> model.EmptyDir:
    if fields is None:
        return model.EmptyDir(name)
    medium = fields.string("medium")
    if medium.startswith("HugePages"):
        fields.problem("medium", "Kubernetes has huge pages here, pyrun does not support them yet")
    elif medium not in ("", "Memory"):
        fields.problem("medium", f'must be "" or Memory; got {shown(medium)}')
    size = read_quantity(fields, "sizeLimit")
    if size is not None and medium == "":
        fields.problem(
            "sizeLimit",
            "pyrun cannot limit an emptyDir on disk; leave the limit out, or use medium: Memory",
        )
    fields.close()
    return model.EmptyDir(name, memory=medium == "Memory", size=size or None)


def _host_path(fields: Fields, name: str) -> model.HostPath:
    path = fields.required("path", model.wrong_path)
    kind = fields.choice("type", model.HOST_PATH_TYPES)
    fields.close()
    return model.HostPath(name, model.normal_path(path), kind)
