"""Choosing a platform; reading JSON with distrust."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrun.errors import BadInput, PyrunError, Unsupported
from pyrun.image import manifest
from pyrun.image.rootfs import apply_changes

DIGEST = "sha256:" + "a" * 64
NAME, VARIANTS = manifest.architecture()


def entry(architecture: str, variant: str = "", system: str = "linux", **rest: Any) -> Any:
    platform = {"os": system, "architecture": architecture}
    if variant:
        platform["variant"] = variant
    value = {"digest": DIGEST, "size": 1, "platform": platform, **rest}
    return manifest.Descriptor(value, "test")


def test_this_platform_is_chosen_among_others() -> None:
    entries = [entry("s390x"), entry(NAME, system="windows"), entry(NAME), entry("mips")]
    assert manifest.choose(entries) is entries[2]


def test_the_best_variant_this_machine_runs_is_chosen() -> None:
    entries = [entry(NAME), *(entry(NAME, v) for v in reversed(VARIANTS)), entry(NAME, "v99")]
    best = manifest.choose(entries)
    assert best.platform.get("variant", "") == (VARIANTS[0] if VARIANTS else "")


def test_the_first_of_equals_is_chosen() -> None:
    entries = [entry(NAME), entry(NAME)]
    assert manifest.choose(entries) is entries[0]


def test_an_entry_without_platform_is_taken_and_an_attestation_is_not() -> None:
    plain = manifest.Descriptor({"digest": DIGEST, "size": 1}, "test")
    attestation = entry("unknown", annotations={"vnd.docker.reference.type": "attestation"})
    assert manifest.choose([attestation, plain]) is plain
    with pytest.raises(Unsupported, match="it has linux/unknown"):
        manifest.choose([attestation])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["config", "layers", "manifests", "digest", "size", "rootfs", "diff_ids", "Env", "Cmd",
             "mediaType", "platform", "os", "architecture", "annotations", "history", "Labels"]
        ),
        inner, max_size=5,
    ),
    max_leaves=30,
)  # fmt: skip


@given(json_values)
def test_any_json_is_understood_or_refused(value: Any) -> None:
    import json

    try:
        document = manifest.parse(json.dumps(value).encode(), "it")
        if manifest.is_index(document):
            manifest.choose(manifest.descriptors(document, "manifests", "it"))
        elif "layers" in document:
            manifest.check_layers(manifest.descriptors(document, "layers", "it"))
        manifest.check_config(document, 0)
    except PyrunError:
        pass


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_as_json(data: bytes) -> None:
    try:
        assert isinstance(manifest.parse(data, "it"), dict)
    except BadInput:
        pass


@pytest.mark.parametrize(
    "line",
    ["RUN x", "CMD", "", "ENV", "ENV =x", 'CMD ["a", 1]', 'CMD ["a"', 'LABEL a="b', "COPY a b"],
)
def test_change_lines_that_are_not_understood(line: str) -> None:
    with pytest.raises(BadInput, match="--change"):
        apply_changes([line])


def test_the_old_form_of_env() -> None:
    assert apply_changes(["env A the rest = of it"]) == {"Env": ["A=the rest = of it"]}
