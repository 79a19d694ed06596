"""The containers of a Kubernetes Pod file: one `ContainerSpec` for each.

Defaults and rules are those of the API server's validation and of the kubelet: how `$(NAME)` is
expanded, which names must be unique, what 0 means. See `kubeyaml` for the Pod around them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pyrun.errors import BadInput
from pyrun.image import reference
from pyrun.kernel import caps
from pyrun.pod import model
from pyrun.pod.quantity import parse_quantity
from pyrun.pod.yamlfields import Fields
from pyrun.pod.yamltree import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    Published = dict[tuple[int, str], list[tuple[model.PortSpec, str]]]

MAX_ID = 2**31 - 1
"""Kubernetes' upper bound of user and group ids."""

MAX_STRING = 128 * 1024
"""MAX_ARG_STRLEN of execve(2): no argument and no NAME=VALUE may be longer, its NUL included."""

REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")
"""`$(NAME)`, or the `$$` that escapes it."""


def read_containers(spec: Fields, volumes: set[str]) -> tuple[model.ContainerSpec, ...]:
    shared = spec.child("securityContext", "PodSecurityContext")
    user, group = _ids(shared) if shared else (None, None)
    if shared:
        shared.close()
    containers: list[model.ContainerSpec] = []
    names: set[str] = set()
    published: Published = {}
    for fields in spec.children("containers", "Container"):
        container = _container(fields, volumes, model.Security(user=user, group=group), published)
        fields.unique("name", container.name, names, "two containers have this name")
        containers.append(container)
    node = spec.node.fields.get("containers")
    if node is None or node[1].kind == "null" or (node[1].kind == "list" and not node[1].items):
        spec.problem("containers", "missing; a Pod needs at least one container")
    return tuple(containers)


def _container(
    fields: Fields,
    volumes: set[str],
    security: model.Security,
    published: Published,
) -> model.ContainerSpec:
    env = _environment(fields)
    container = model.ContainerSpec(
        name=fields.required("name", model.wrong_label),
        image=_image(fields),
        command=_words(fields, "command", env),
        args=_words(fields, "args", env),
        env=tuple(model.EnvVar(name, value) for name, value in env.items()),
        workdir=fields.string("workingDir", _wrong_workdir),
        ports=_ports(fields, published),
        mounts=_mounts(fields, volumes),
        resources=_resources(fields),
        security=_security(fields, security),
        pull=_pull_policy(fields),
        stdin=fields.boolean("stdin"),
        tty=fields.boolean("tty"),
    )
    fields.close()
    return container


def _image(fields: Fields) -> str:
    text = fields.required("image")
    try:
        if text:
            reference.parse(text[:1000])  # a longer one is wrong too, and would fill the screen
    except BadInput as error:
        fields.problem("image", error.message)
    return text


def _wrong_workdir(text: str) -> str:
    return "must be an absolute path" if text and not text.startswith("/") else ""


def _pull_policy(fields: Fields) -> str:
    # Absent means Always to Kubernetes where the tag is :latest. Taking that as a request would
    # refuse most Pod files; pyrun uses the image it has.
    policy = fields.choice("imagePullPolicy", ("Always", "IfNotPresent", "Never"))
    if policy == "Always":
        fields.problem(
            "imagePullPolicy",
            "Always is not supported yet: pyrun cannot pull; say IfNotPresent or Never",
        )
    return policy


def _environment(fields: Fields) -> dict[str, str]:
    """The variables in order; a name given twice keeps its last value, as in Kubernetes."""
    env: dict[str, str] = {}
    for variable in fields.children("env", "EnvVar"):
        name = variable.required("name", model.wrong_variable_name)
        env[name] = _expanded(variable, "value", variable.string("value"), env, len(name) + 1)
        variable.close()
    return env


def _words(fields: Fields, name: str, env: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(_expanded(fields, name, word, env) for word in fields.strings(name))


def _expanded(fields: Fields, name: str, text: str, env: Mapping[str, str], beside: int = 0) -> str:
    """`text` expanded; `beside` bytes stand in the same string of execve(2)."""
    try:
        full = expand(text, env)
        if len(full.encode(errors="replace")) + beside < MAX_STRING:
            return full
    except OverflowError:
        pass
    fields.problem(name, f"longer than the {MAX_STRING} bytes the kernel takes in one string")
    return ""


def expand(text: str, env: Mapping[str, str]) -> str:
    """Replace `$(NAME)` by its value, once. `$$` is one dollar, so `$$(NAME)` stays `$(NAME)`;
    a reference to an unknown name stays as it is.

    Raises OverflowError as soon as the result outgrows MAX_STRING: a chain of variables, each
    holding the last one twice, doubles at every link.
    """
    length = 0

    def value(match: re.Match[str]) -> str:
        nonlocal length
        name = match[1]
        found = "$" if name is None else env.get(name, match[0])
        length += len(found)
        if length > MAX_STRING:
            raise OverflowError
        return found

    return REFERENCE.sub(value, text)


def _ports(fields: Fields, published: Published) -> tuple[model.PortSpec, ...]:
    ports: list[model.PortSpec] = []
    names: set[str] = set()
    for entry in fields.children("ports", "ContainerPort"):
        port = _port(entry)
        entry.unique("name", port.name, names, "two ports of this container have this name")
        same = published.setdefault((port.host_port, port.protocol), [])
        for other, path in same if port.host_port else ():
            if model.ports_clash(port, other):
                entry.problem("hostPort", f"{port.host_port} is already taken by {path}")
                break
        same.append((port, entry.path))
        ports.append(port)
    return tuple(ports)


def _port(fields: Fields) -> model.PortSpec:
    if not fields.has("containerPort"):
        fields.problem("containerPort", "missing; this field is required")
    port = model.PortSpec(
        container_port=fields.integer("containerPort", 1, 65535) or 0,
        host_port=fields.integer("hostPort", 0, 65535) or 0,  # 0 is Kubernetes' "not published"
        host_ip=model.normal_address(fields.string("hostIP", _wrong_host_ip)),
        protocol=fields.choice("protocol", model.PROTOCOLS, "TCP"),
        name=fields.string("name", lambda text: model.wrong_port_name(text) if text else ""),
    )
    if port.host_port and port.protocol == "SCTP":
        fields.problem("protocol", "pyrun cannot publish SCTP yet")
    fields.close()
    return port


def _wrong_host_ip(text: str) -> str:
    if model.normal_address(text) == "::1":
        return "the kernel lets no packet from ::1 out to a pod; use 127.0.0.1"
    return model.wrong_address(text) if text else ""


def _mounts(fields: Fields, volumes: set[str]) -> tuple[model.Mount, ...]:
    mounts: list[model.Mount] = []
    paths: set[str] = set()
    for entry in fields.children("volumeMounts", "VolumeMount"):
        volume = entry.required("name")
        if volume and volume not in volumes:
            entry.problem("name", f"the pod has no volume {shown(volume)}{_list(volumes)}")
        written = entry.required("mountPath", _wrong_mount_path)
        path = model.normal_path(written) if written else ""
        entry.unique("mountPath", path, paths, "another volume is mounted on this path")
        mounts.append(model.Mount(volume, path, entry.boolean("readOnly")))
        entry.close()
    return tuple(mounts)


def _wrong_mount_path(text: str) -> str:
    if fault := model.wrong_path(text):
        return fault
    if ":" in text:
        return "must not contain ':'"
    return "must not be the root directory" if model.normal_path(text) == "/" else ""


def _list(names: set[str]) -> str:
    return f"; it has {', '.join(sorted(map(shown, names)))}" if names else "; it has no volumes"


def _resources(fields: Fields) -> model.Resources:
    entry = fields.child("resources", "ResourceRequirements")
    if entry is None:
        return model.Resources()
    memory = cpu = None
    if node := entry.take("limits", "map"):
        limits = Fields(node, "Limits", entry.path_of("limits"), entry.problems)
        memory = read_quantity(limits, "memory")
        cpu = read_quantity(limits, "cpu", 1000)
        limits.close()
    entry.close()
    # 0 is Kubernetes' "no limit".
    return model.Resources(memory=memory or None, cpu=cpu or None)


def read_quantity(fields: Fields, name: str, unit: int = 1) -> int | None:
    """A quantity may be written as a string or as a number: what counts is how it was written."""
    node = fields.take(name, "string", "integer", "number")
    if node is None:
        return None
    try:
        value = parse_quantity(node.text, unit)
    except ValueError as error:
        fields.problem(name, f"{shown(node.text)} {error}")
        return None
    if unit == 1 and node.text.endswith(("m", "u", "n")):
        fields.problem(
            name, f"{shown(node.text)} is in parts of a byte; did you mean {node.text[:-1]}Mi?"
        )
    return value


def _security(fields: Fields, security: model.Security) -> model.Security:
    """A container's own user and group win over the pod's."""
    context = fields.child("securityContext", "SecurityContext")
    if context is None:
        return security
    user, group = _ids(context)
    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    if capabilities := context.child("capabilities", "Capabilities"):
        add, drop = _capabilities(capabilities, "add"), _capabilities(capabilities, "drop")
        capabilities.close()
    security = model.Security(
        privileged=context.boolean("privileged"),
        user=security.user if user is None else user,
        group=security.group if group is None else group,
        read_only_rootfs=context.boolean("readOnlyRootFilesystem"),
        cap_add=add,
        cap_drop=drop,
    )
    context.close()
    return security


def _ids(context: Fields) -> tuple[int | None, int | None]:
    return context.integer("runAsUser", 0, MAX_ID), context.integer("runAsGroup", 0, MAX_ID)


def _capabilities(fields: Fields, name: str) -> tuple[str, ...]:
    return tuple(text.removeprefix("CAP_") for text in fields.strings(name, _wrong_capability))


def _wrong_capability(text: str) -> str:
    if text == "ALL" or text.removeprefix("CAP_") in caps.NAMES:
        return ""
    return "must be a capability such as NET_ADMIN, or ALL"
