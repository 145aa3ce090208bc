"""The chart of deploy/helm, rendered by Helm itself as a library."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import pytest
import yaml

from tests.deploy.shipped import ROOT

CHART = ROOT / "deploy" / "helm"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
RELEASE, NAMESPACE = "sid", "images"
DIGEST = "0123456789abcdef" * 4
# Each way to install it that the chart has a file for, and those that only values make.
WAYS: dict[str, list[str | dict[str, Any]]] = {
    "default": [],
    "triton": ["values-triton.yaml"],
    "triton-gpu": ["values-triton-gpu.yaml"],
    "hpa": ["values-hpa.yaml"],
    "keda": ["values-keda.yaml"],
    "triton-hpa": ["values-triton.yaml", "values-hpa.yaml"],
    "triton-gpu-keda": ["values-triton-gpu.yaml", "values-keda.yaml"],
    "models-image": [
        {"models": {"source": "image", "image": {"reference": f"r/m@sha256:{DIGEST}"}}}
    ],
    "models-claim": [
        "values-triton-gpu.yaml",
        {"models": {"source": "claim", "claim": "models"}, "triton": {"cacheClaim": "tensorrt"}},
    ],
    "models-bundles": [
        "values-triton.yaml",
        {
            "models": {
                "source": "bundles",
                "bundles": [
                    {"name": "fashion", "url": "https://files.example/f.tar.gz", "sha256": DIGEST},
                    {"name": "tiny", "url": "http://files.example:8080/t.tgz", "sha256": DIGEST},
                ],
            },
        },
    ],
    "all-else": [
        {
            "imagePullSecrets": [{"name": "registry"}],
            "gateway": {
                "image": {"repository": "registry.example/sid", "digest": f"sha256:{DIGEST}"},
                "settings": {
                    "SID_TRACES": "http://collector:4317",
                    "SID_QUEUE_SIZE": "64",
                    "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
                },
                "keysSecret": "keys",
                "trustedKeysConfigMap": "publishers",
                "nodeSelector": {"disk": "fast"},
                "tolerations": [{"key": "images", "operator": "Exists"}],
            },
            "service": {"type": "LoadBalancer", "annotations": {"cloud.example/internal": "true"}},
            "networkPolicy": {
                "clients": [{"namespaceSelector": {"matchLabels": {"name": "shop"}}}],
                "egress": [{"ports": [{"port": 443, "protocol": "TCP"}]}],
            },
        }
    ],
}


def values(way: str) -> dict[str, Any]:
    """What a way gives to Helm beside values.yaml."""
    merged: dict[str, Any] = {}
    for source in WAYS[way]:
        given = yaml.safe_load((CHART / source).read_text()) if isinstance(source, str) else source
        _merge(merged, deepcopy(given))
    return merged


def _merge(into: dict[str, Any], given: Mapping[str, Any]) -> None:
    """As Helm does with several files of values."""
    for key, value in given.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


class Rendered:
    """The manifests that Helm makes of the chart."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        helm = pytest.importorskip(
            "helm_python", reason="Helm is not installed (pip install helm-python-sdk)"
        )
        with helm.Chart.load(CHART) as chart:
            texts = chart.render(dict(given), name=RELEASE, namespace=NAMESPACE)
        self.notes = texts.pop("sid-serve/templates/NOTES.txt")
        self.manifests: list[dict[str, Any]] = [
            manifest
            for path, text in texts.items()
            if path.endswith(".yaml")
            for manifest in yaml.safe_load_all(text)
            if manifest
        ]

    def kind(self, kind: str) -> list[dict[str, Any]]:
        return [one for one in self.manifests if one["kind"] == kind]

    def one(self, kind: str, part: str) -> dict[str, Any]:
        name = f"{RELEASE}-{part}"
        (found,) = (one for one in self.kind(kind) if one["metadata"]["name"] == name)
        return found

    def pod(self, part: str) -> dict[str, Any]:
        """The specification of a Deployment's pods."""
        return self.one("Deployment", part)["spec"]["template"]["spec"]

    def containers(self) -> Iterator[dict[str, Any]]:
        """All of all pods."""
        for deployment in self.kind("Deployment"):
            spec = deployment["spec"]["template"]["spec"]
            yield from spec.get("initContainers", [])
            yield from spec["containers"]


_rendered: dict[str, Rendered] = {}


def rendered(way: str) -> Rendered:
    """The chart in one of the WAYS; rendered once, so nobody may change it."""
    if way not in _rendered:
        _rendered[way] = Rendered(values(way))
    return _rendered[way]


def settings(container: Mapping[str, Any]) -> dict[str, str]:
    """A gateway's variables, as fields of Settings."""
    return {
        one["name"].removeprefix("SID_").lower(): one["value"]
        for one in container["env"]
        if one["name"].startswith("SID_")
    }
