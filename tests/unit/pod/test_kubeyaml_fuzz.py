"""Whatever text comes in: a PodSpec or BadInput, and nothing else, in bounded time."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyrun.errors import BadInput
from pyrun.pod import kubeyaml, model
from pyrun.pod.kubefields import KNOWN

TEXTBOOK = (Path(__file__).parents[2] / "data" / "multi-container-pod.yaml").read_text()
NAMES = sorted(set().union(*KNOWN.values()))
SYNTAX = [
    *("- ", ": ", "\n", "  ", "[", "]", "{", "}", ",", "? ", "|", ">", "'", '"', "#", "<<", "\t"),
    *("&a ", "*a", "!!str ", "!!python/x ", "---\n", "...\n", "%YAML 1.1\n", "null", "yes", "1"),
    *("08", "0x1f", "1e3", ".inf", "$(A)", "é", "\0", "\ud800", "\x85", "\x1b"),
]

slow_data = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)


def parse_or_refuse(text: str) -> None:
    try:
        pod = kubeyaml.parse(text, "fuzz.yaml")
    except BadInput as error:
        assert error.message.startswith("fuzz.yaml: ")
        assert error.message.replace("\n", "").isprintable()
    else:
        check(pod)


def check(pod: model.PodSpec) -> None:
    """What every later stage relies on."""
    assert pod.containers
    assert not model.wrong_subdomain(pod.name)
    assert not model.wrong_label(pod.hostname)
    volumes = {volume.name for volume in pod.volumes}
    assert len(volumes) == len(pod.volumes)
    for container in pod.containers:
        assert not model.wrong_label(container.name)
        assert container.image
        for word in (*container.command, *container.args, *(v for _, v in container.env)):
            assert "\0" not in word
            word.encode()
        for mount in container.mounts:
            assert mount.volume in volumes
            assert not model.wrong_path(mount.path)


@slow_data
@given(st.text())
def test_any_text(text: str) -> None:
    parse_or_refuse(text)


@slow_data
@given(st.lists(st.sampled_from(SYNTAX + NAMES), max_size=60).map("".join))
def test_any_yaml_like_text(text: str) -> None:
    parse_or_refuse(text)


@slow_data
@given(st.data())
def test_a_pod_file_with_a_piece_exchanged(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(TEXTBOOK)))
    end = data.draw(st.integers(start, min(len(TEXTBOOK), start + 40)))
    piece = data.draw(st.sampled_from([*SYNTAX, *NAMES]) | st.text(max_size=5))
    parse_or_refuse(TEXTBOOK[:start] + piece + TEXTBOOK[end:])


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["a", "/a", "Memory", "Never", "v1", "Pod", "128Mi", "500m"])
)
structures = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), inner, max_size=6)
    ),
    max_leaves=30,
)


@slow_data
@given(structures)
def test_any_structure(structure: Any) -> None:
    parse_or_refuse(yaml.safe_dump(structure, allow_unicode=True))


@slow_data
@given(st.dictionaries(st.sampled_from(sorted(KNOWN["PodSpec"])), structures, max_size=4))
def test_any_structure_inside_a_pod(spec: dict[str, Any]) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}
    parse_or_refuse(yaml.safe_dump(pod | {"spec": spec}))


def _objects(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(sorted(KNOWN[kind])), structures, max_size=6)


@slow_data
@given(st.lists(_objects("Container"), max_size=3), st.lists(_objects("Volume"), max_size=3))
def test_any_structure_inside_containers_and_volumes(containers: Any, volumes: Any) -> None:
    for index, container in enumerate(containers):
        container |= {"name": f"c{index}", "image": "x"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}
    parse_or_refuse(yaml.safe_dump(pod | {"spec": {"containers": containers, "volumes": volumes}}))


@slow_data
@given(structures)
def test_json_is_read_as_well(structure: Any) -> None:
    import json

    parse_or_refuse(json.dumps(structure))


def test_without_libyaml_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = kubeyaml.parse(TEXTBOOK, "pod.yaml")
    monkeypatch.delattr(yaml, "CSafeLoader")
    assert kubeyaml.parse(TEXTBOOK, "pod.yaml") == fast
    for text in ("[" * 100_000, "- " * 5000, "a: b: c", "\0", "\ud800", "a: *b"):
        with pytest.raises(BadInput):
            kubeyaml.parse(text, "pod.yaml")
