"""Pod files: what is read, and that every fault is told with its path and line."""

import io
import os
import sys
from pathlib import Path

import pytest

from pyrun.errors import BadInput
from pyrun.pod import kubeyaml, model
from pyrun.pod.kubecontainer import expand

DATA = Path(__file__).parents[2] / "data"

HEAD = """\
apiVersion: v1
kind: Pod
metadata:
  name: web
spec:
  restartPolicy: Never
"""


def pod(container: str = "", spec: str = "") -> model.PodSpec:
    """The pod with one container; both texts are flow mappings' insides."""
    inside = f"name: a, image: b{', ' if container else ''}{container}"
    return kubeyaml.parse(f"{HEAD}  containers: [{{{inside}}}]\n{spec}", "pod.yaml")


def only(container: str, spec: str = "") -> model.ContainerSpec:
    return pod(container, spec).containers[0]


def fault(container: str = "", spec: str = "") -> str:
    with pytest.raises(BadInput) as caught:
        pod(container, spec)
    return caught.value.message


def fault_of(text: str) -> str:
    with pytest.raises(BadInput) as caught:
        kubeyaml.parse(text, "pod.yaml")
    return caught.value.message


# the textbook pod


def test_textbook_pod() -> None:
    spec = kubeyaml.load(str(DATA / "multi-container-pod.yaml"))
    assert (spec.name, spec.namespace) == ("multi-container-pod", "multi-container")
    assert spec.labels == (("app", "multi-container-pod"),)
    assert spec.volumes == (model.EmptyDir("html"), model.EmptyDir("storage"))
    nginx, mysql, minio = spec.containers
    assert (nginx.image, mysql.image, minio.image) == ("nginx", "mysql", "minio/minio")
    assert nginx.mounts == (model.Mount("html", "/usr/share/nginx"),)
    assert mysql.env == (model.EnvVar("MYSQL_ROOT_PASSWORD", "root"),)
    assert minio.args == ("server", "--console-address", ":9001", "/storage")
    assert dict(minio.env) == {
        "MINIO_ACCESS_KEY": "minio",
        "MINIO_SECRET_KEY": "minio123",
        "TZ": "Asia/Seoul",
        "LANG": "ko_KR.utf8",
    }
    assert [port.container_port for port in minio.ports] == [9000, 9001]
    assert minio.mounts == (model.Mount("storage", "/storage"),)
    assert "restartPolicy is absent" in spec.notes[0]


# what is read


def test_defaults() -> None:
    spec = pod()
    assert spec == model.PodSpec("web", "web", (model.ContainerSpec("a", "b"),))
    assert (spec.namespace, spec.grace_seconds, spec.notes) == ("default", 30, ())


def test_pod_fields() -> None:
    spec = kubeyaml.parse(
        """\
apiVersion: v1
kind: Pod
metadata:
  name: web.one
  annotations: {example.com/note: "any text: even this"}
spec:
  hostname: front
  terminationGracePeriodSeconds: 0
  hostAliases: [{ip: 10.0.0.1, hostnames: [db, db.local]}]
  restartPolicy: Never
  securityContext: {runAsUser: 5, runAsGroup: 6}
  containers:
    - {name: a, image: b}
    - {name: c, image: d, securityContext: {runAsUser: 0}}
status: {}
""",
        "pod.yaml",
    )
    assert (spec.name, spec.hostname, spec.grace_seconds) == ("web.one", "front", 0)
    assert spec.annotations == (("example.com/note", "any text: even this"),)
    assert spec.host_aliases == (model.HostAlias("10.0.0.1", ("db", "db.local")),)
    assert [(c.security.user, c.security.group) for c in spec.containers] == [(5, 6), (0, 6)]


def test_container_fields() -> None:
    container = only(
        "command: [sh, -c], args: [exit], workingDir: /srv, stdin: true, tty: yes, "
        "imagePullPolicy: IfNotPresent, ports: [{containerPort: 53, hostPort: 5353, "
        "hostIP: 127.0.0.1, protocol: UDP, name: dns}]"
    )
    assert (container.command, container.args) == (("sh", "-c"), ("exit",))
    assert (container.workdir, container.stdin, container.tty) == ("/srv", True, True)
    assert container.pull == "IfNotPresent"
    assert container.ports == (model.PortSpec(53, 5353, "127.0.0.1", "UDP", "dns"),)


def test_security_context() -> None:
    container = only(
        "securityContext: {privileged: false, runAsUser: 1000, runAsGroup: 0, "
        "readOnlyRootFilesystem: true, capabilities: {add: [NET_ADMIN, CAP_SYS_TIME], drop: [ALL]}}"
    )
    assert container.security == model.Security(
        user=1000,
        group=0,
        read_only_rootfs=True,
        cap_add=("NET_ADMIN", "SYS_TIME"),
        cap_drop=("ALL",),
    )


def test_limits_may_be_strings_or_numbers() -> None:
    for memory, cpu in (("128Mi", "500m"), ('"134217728"', "0.5"), ("134217728", '"5e-1"')):
        container = only(f"resources: {{limits: {{memory: {memory}, cpu: {cpu}}}}}")
        assert container.resources == model.Resources(memory=128 << 20, cpu=500)
    assert only("resources: {limits: {memory: 1e6}}").resources.memory == 10**6


def test_a_limit_of_zero_is_no_limit() -> None:
    assert only("resources: {limits: {memory: 0, cpu: 0}}").resources == model.Resources()


def test_volumes() -> None:
    spec = pod(
        "volumeMounts: [{name: tmp, mountPath: /x//y/, readOnly: true}]",
        """\
  volumes:
    - name: nothing
    - {name: empty, emptyDir: }
    - {name: tmp, emptyDir: {medium: Memory, sizeLimit: 64Mi}}
    - {name: disk, emptyDir: {medium: ""}}
    - {name: host, hostPath: {path: /srv/}}
    - {name: sock, hostPath: {path: /run/a.sock, type: Socket}}
""",
    )
    assert spec.volumes == (
        model.EmptyDir("nothing"),
        model.EmptyDir("empty"),
        model.EmptyDir("tmp", memory=True, size=64 << 20),
        model.EmptyDir("disk"),
        model.HostPath("host", "/srv"),
        model.HostPath("sock", "/run/a.sock", "Socket"),
    )
    assert spec.containers[0].mounts == (model.Mount("tmp", "/x/y", True),)


def test_two_containers_may_name_the_same_container_port() -> None:
    text = f"{HEAD}  containers:\n"
    for name in "ab":
        text += f"    - {{name: {name}, image: x, ports: [{{containerPort: 80}}]}}\n"
    assert len(kubeyaml.parse(text, "pod.yaml").containers) == 2


def test_json_is_yaml_too() -> None:
    text = (
        '{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "w"},\n'
        '\t"spec": {"containers": [{"name": "a", "image": "b"}]}}'
    )
    assert kubeyaml.parse(text, "pod.json").name == "w"


def test_empty_documents_around_the_pod_are_skipped() -> None:
    assert kubeyaml.parse(
        f"---\n# nothing\n---\n{HEAD}  containers: [{{name: a, image: b}}]\n---\n", "p"
    )


def test_anchors_and_aliases_work() -> None:
    spec = pod("env: &e [{name: A, value: x}], command: &c [sh], args: *c")
    assert spec.containers[0].args == ("sh",)


def test_fields_that_ask_for_nothing_are_accepted() -> None:
    """`kubectl run --dry-run=client -o yaml` writes such fields into every file."""
    spec = pod(
        "resources: {}, livenessProbe: null, envFrom: []",
        "  hostNetwork: false\n  nodeSelector: {}\n  nodeName: ''\nstatus: {}\n",
    )
    assert spec.containers == (model.ContainerSpec("a", "b"),)


# $(VARIABLES)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)", "1"),
        ("x$(A)y$(B)z", "x1y2z"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$$$$(A)", "$$(A)"),
        ("$(NONE)", "$(NONE)"),
        ("$A ${A} $", "$A ${A} $"),
        ("$(A", "$(A"),
        ("$($(A))", "$($(A))"),
        ("$(C)", "$(A)"),
        ("$()", "$()"),
        ("$(A)\n$(A)", "1\n1"),
    ],
)
def test_references(text: str, expanded: str) -> None:
    assert expand(text, {"A": "1", "B": "2", "C": "$(A)"}) == expanded


def test_variables_refer_to_earlier_ones_only() -> None:
    container = only(
        'command: ["$(B)"], args: ["$(A)$(C)"], env: [{name: A, value: $(B)}, '
        "{name: B, value: b}, {name: C, value: $(B)$(A)}]"
    )
    assert container.env == (("A", "$(B)"), ("B", "b"), ("C", "b$(B)"))
    assert (container.command, container.args) == (("b",), ("$(B)b$(B)",))


def test_a_variable_given_twice_keeps_the_last_value() -> None:
    container = only("env: [{name: A, value: x}, {name: B}, {name: A, value: $(A)y}]")
    assert container.env == (("A", "xy"), ("B", ""))


def test_variables_that_double_are_stopped_at_the_kernels_limit() -> None:
    links = "".join(f", {{name: V{i}, value: $(V{i - 1})$(V{i - 1})}}" for i in range(1, 60))
    message = fault(f"env: [{{name: V0, value: xx}}{links}]")
    assert "spec.containers[0].env[16].value (line 7" in message
    assert "131072 bytes" in message


# faults


@pytest.mark.parametrize(
    ("container", "message"),
    [
        ("imagee: x", "imagee (line 7, column 36): unknown field; did you mean image?"),
        ("workingdir: /", "(line 7, column 36): unknown field; did you mean workingDir?"),
        ("hostname: x", "unknown field here; hostname belongs in spec"),
        ("zzz: 1", "zzz (line 7, column 36): unknown field"),
        ("lifecycle: {preStop: x}", "Kubernetes has this field, but pyrun does not support it yet"),
        ("command: sh", "command (line 7, column 45): expected a list, got the string sh"),
        ("command: [1]", "command[0] (line 7, column 46): expected a string, got the integer 1"),
        ("env: [{name: A, value: yes}]", "expected a string, got the boolean yes; put"),
        ("env: [{name: A, value: 8080}]", "got the integer 8080; put it in quotes"),
        ("env: {A: x}", "expected a list, got a mapping"),
        ("env: [{name: A=B}]", "must be printable ASCII without '='"),
        ('args: ["a\\0b"]', "args[0] (line 7, column 43): must not contain a NUL"),
        ("stdin: 1", "expected true or false, got the integer 1"),
        ("stdin: 'true'", "expected true or false, got the string true"),
        ("tty: [", "not valid YAML (line"),
        ("imagePullPolicy: Always", "Always is not supported yet"),
        ("imagePullPolicy: Sometimes", "must be one of Always, IfNotPresent, Never; got Sometimes"),
        ("workingDir: srv", "must be an absolute path; got srv"),
        ("ports: [{}]", "ports[0].containerPort (line 7, column 44): missing"),
        ("ports: [{containerPort: 0}]", "must be between 1 and 65535; got 0"),
        ("ports: [{containerPort: 65536}]", "must be between 1 and 65535; got 65536"),
        ("ports: [{containerPort: http}]", "expected an integer, got the string http"),
        ("ports: [{containerPort: 1, protocol: tcp}]", "must be one of TCP, UDP, SCTP; got tcp"),
        ("ports: [{containerPort: 1, hostIP: localhost}]", "must be an IPv4 or IPv6 address"),
        ("ports: [{containerPort: 1, name: A}]", "must be a service name"),
        (
            "ports: [{containerPort: 1, hostPort: 9}, {containerPort: 2, hostPort: 9}]",
            "(line 7, column 106): 9 is already taken by spec.containers[0].ports[0]",
        ),
        ("resources: {limits: {memory: 100m}}", "did you mean 100Mi?"),
        ("resources: {limits: {cpu: -1}}", "-1 must not be negative"),
        ("resources: {limits: {cpu: 0x10}}", "cpu (line 7, column 62): 0x10 has the unknown"),
        ("resources: {limits: {hugepages-2Mi: 1}}", "pyrun can limit cpu and memory only"),
        ("resources: {requests: {cpu: 1}}", "requests (line 7, column 48): Kubernetes has"),
        ("securityContext: {seccompProfile: {type: Unconfined}}", "does not support it yet"),
        ("securityContext: {runAsUser: -1}", "must be between 0 and 2147483647; got -1"),
        ("securityContext: {capabilities: {add: [net_admin]}}", "must be a capability such as"),
        ("securityContext: {capabilities: {drop: [NET_ADMINS]}}", "must be a capability such as"),
        ("ports: [{containerPort: 1, hostPort: 1, protocol: SCTP}]", "cannot publish SCTP yet"),
        ("ports: [{containerPort: 1, hostIP: '0:0::1'}]", "lets no packet from ::1 out"),
        ("volumeMounts: [{name: v, mountPath: /v}]", "the pod has no volume v; it has no volumes"),
    ],
)  # fmt: skip
def test_container_faults(container: str, message: str) -> None:
    assert message in fault(container)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("  hostUsers: false", "spec.hostUsers (line 8, column 3): Kubernetes has this field, but"),
        ("  hostNetwork: true", "does not support it yet"),
        ("  initContainers: [{name: x}]", "does not support it yet"),
        ("  hostname: A", "must be a DNS label"),
        ("  terminationGracePeriodSeconds: -1", "must be between 0"),
        ("  terminationGracePeriodSeconds: 1.5", "expected an integer, got the number 1.5"),
        ("  hostAliases: [{ip: x, hostnames: [a]}]", "must be an IPv4 or IPv6 address; got x"),
        ("  hostAliases: [{hostnames: [a]}]", "hostAliases[0].ip (line 8, column 17): missing"),
        ("  volumes: [{emptyDir: {}}]", "volumes[0].name (line 8, column 13): missing"),
        ("  volumes: [{name: v, configMap: {}}]", "configMap (line 8, column 23): Kubernetes has"),
        ("  volumes: [{name: v, hostpath: {}}]", "did you mean hostPath?"),
        ("  volumes: [{name: v}, {name: v}]", "two volumes have this name: v"),
        ("  volumes: [{name: v, emptyDir: {sizeLimit: 1Gi}}]", "cannot limit an emptyDir on disk"),
        ("  volumes: [{name: v, emptyDir: {medium: HugePages}}]", "Kubernetes has huge pages here"),
        ("  volumes: [{name: v, emptyDir: {medium: Disk}}]", 'must be "" or Memory; got Disk'),
        ("  volumes: [{name: v, hostPath: {}}]", "hostPath.path (line 8, column 33): missing"),
        ("  volumes: [{name: v, hostPath: {path: /a/../b}}]", "must not contain '..'"),
        ("  volumes: [{name: v, hostPath: {path: /a, type: Dir}}]", "must be one of"),
        ("  volumes: [{name: v, emptyDir: {}, hostPath: {path: /a}}]", "has one source"),
        ("  restartPolicy: Never", "(line 8, column 3): the field restartPolicy appears twice"),
        ("  nodeName: !!python/name:os.system x", "is refused: a Pod file holds plain values only"),
        ("  nodeSelector: !!python/object:a.B {}", "is refused"),
        ("  ? [a]\n  : b", "a field name must be a string, not a list"),
        ("  hostname: *none", "the alias *none (line 8) stands for nothing"),
        ("  volumes: &v [*v]", "the alias *v (line 8) stands for nothing"),
        ("  <<: {hostname: x}", "merge keys (<<) are not supported"),
        ("  \x1b[31m: x", "not valid YAML"),
        ('  "\\e[31m": x', "spec['\\x1b[31m'] (line 8, column 3): unknown field"),
    ],
)
def test_pod_faults(spec: str, message: str) -> None:
    assert message in fault(spec=spec)


@pytest.mark.parametrize("path", ["v", "/a/../b", "/a:b", "/", "//"])
def test_mount_paths_that_are_refused(path: str) -> None:
    mount = f"volumeMounts: [{{name: v, mountPath: '{path}'}}]"
    assert "volumeMounts[0].mountPath (line 7" in fault(mount, "  volumes: [{name: v}]")


def test_one_path_is_mounted_once_however_it_is_written() -> None:
    mounts = "volumeMounts: [{name: v, mountPath: /a/}, {name: v, mountPath: //a}]"
    message = fault(mounts, "  volumes: [{name: v}]")
    assert "volumeMounts[1].mountPath" in message
    assert "another volume is mounted on this path: /a" in message


@pytest.mark.parametrize("policy", ["Always", "OnFailure"])
def test_restart_policies_that_need_restarting_are_refused(policy: str) -> None:
    text = HEAD.replace("Never", policy) + "  containers: [{name: a, image: b}]\n"
    assert f"spec.restartPolicy (line 6, column 18): {policy} is not supported yet" in fault_of(
        text
    )


@pytest.mark.parametrize("image", ["' nginx'", "NGINX", "'nginx:'", "a//b", "nginx@sha256:12"])
def test_image_names_are_checked(image: str) -> None:
    text = f"{HEAD}  containers: [{{name: a, image: {image}}}]"
    assert "spec.containers[0].image (line 7, column 33): " in fault_of(text)


def test_container_names_are_unique() -> None:
    text = f"{HEAD}  containers: [{{name: a, image: b}}, {{name: a, image: c}}]"
    assert "spec.containers[1].name (line 7, column 44): two containers" in fault_of(text)


def test_host_ports_are_unique_in_the_pod() -> None:
    text = f"{HEAD}  containers:\n"
    for name in "ab":
        text += f"    - {{name: {name}, image: x, ports: [{{containerPort: 80, hostPort: 80}}]}}\n"
    assert "spec.containers[1].ports[0].hostPort (line 9" in fault_of(text)


@pytest.mark.parametrize("containers", ["", " []", " null"])
def test_a_pod_needs_a_container(containers: str) -> None:
    assert "a Pod needs at least one container" in fault_of(f"{HEAD}  containers:{containers}\n")


def test_every_fault_is_told_in_the_order_of_lines() -> None:
    message = fault_of(
        """\
apiVersion: v2
kind: Pod
metadata:
  nam: web
spec:
  restartPolicy: Never
  containers:
    - name: A
      imagee: nginx
      stdin: 5
"""
    )
    assert message.split("\n") == [
        "pod.yaml: 7 problems",
        "  apiVersion (line 1, column 13): a Pod is of apiVersion v1; got v2",
        "  metadata.name (line 4, column 3): missing; this field is required",
        "  metadata.nam (line 4, column 3): unknown field; did you mean name?",
        "  spec.containers[0].image (line 8, column 7): missing; this field is required",
        "  spec.containers[0].name (line 8, column 13): must be a DNS label: at most 63 lower-case "
        "letters, digits and '-', with a letter or digit at both ends; got A",
        "  spec.containers[0].imagee (line 9, column 7): unknown field; did you mean image?",
        "  spec.containers[0].stdin (line 10, column 14): expected true or false, "
        "got the integer 5",
    ]


def test_many_faults_are_counted_and_cut() -> None:
    fields = "".join(f"  x{i}: 1\n" for i in range(100))
    lines = fault(spec=fields).split("\n")
    assert lines[0] == "pod.yaml: 100 problems"
    assert lines[-1] == "  … and 60 more"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the document is empty"),
        ("# only a comment", "the document is empty"),
        ("just words", "the document is a string"),
        ("- 1", "the document is a list"),
        ("kind: Deployment\napiVersion: apps/v1", "kind (line 1): Deployment is not supported"),
        ("kind: pod\napiVersion: v1", "did you mean Pod?"),
        ("apiVersion: v1", "kind (line 1, column 1): missing"),
        ("kind: Pod\napiVersion: v1", "spec (line 1, column 1): missing"),
        ("a: b\n---\nc: d", "2 documents (the second on line 3)"),
        ("a: b: c", "not valid YAML (line 1, column 5): mapping values are not allowed"),
        ("a:\n\t- b", "not valid YAML (line 2, column 1)"),
        ("\ud800", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
        ("%YAML 9.9\n---\na: b", "not valid YAML"),
        ("[" * 100_000, "nested deeper than 40"),
        ("- " * 100_000, "nested deeper than 40"),
        ("[" + "," .join("a" * 30_000) + "]", "more than 20000 values"),
        ("a" * (1 << 21), "larger than 1 MiB"),
    ],
    ids=lambda value: value[:20],
)  # fmt: skip
def test_documents_that_are_no_pod(text: str, message: str) -> None:
    assert message in fault_of(text)


def test_a_billion_laughs_are_not_laughed() -> None:
    lines = ['a0: &a0 ["ha"]']
    for level in range(1, 12):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    assert "more than 20000 values, aliases followed" in fault_of("\n".join(lines))


def test_tabs_get_a_hint() -> None:
    with pytest.raises(BadInput) as caught:
        kubeyaml.parse("a:\n\t- b", "pod.yaml")
    assert "spaces, never with tabs" in caught.value.hint


# where the file comes from


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    data = (DATA / "multi-container-pod.yaml").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert kubeyaml.load("-").name == "multi-container-pod"


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "pod.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + (DATA / "multi-container-pod.yaml").read_bytes())
    assert kubeyaml.load(str(file)).name == "multi-container-pod"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none.yaml", "No such file"),
        (tmp_path, "Is a directory"),
        (Path("/dev/zero"), "larger than 1 MiB"),
    ):
        with pytest.raises(BadInput, match=message):
            kubeyaml.load(os.fspath(path))
    file = tmp_path / "latin1.yaml"
    file.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(BadInput, match="not UTF-8 text \\(byte 10\\)"):
        kubeyaml.load(str(file))
