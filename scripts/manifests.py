"""Checks the Kubernetes manifests against the schemas of Kubernetes and against each other, and that the
workflows are YAML of the shape that is expected. Ends with a sentence for the first mistake."""

import pathlib
import sys

import kubernetes_validate
import yaml

# The oldest one that has `preStop.sleep` without a feature gate, and a newer one.
VERSIONS = ["1.30", "1.34"]
TEMPLATED = ("Deployment", "StatefulSet")


def fail(path, message):
    sys.exit(f"{path}: {message}")


def check(truth, path, message):
    if not truth:
        fail(path, message)


def documents(path):
    with open(path) as file:
        return [document for document in yaml.safe_load_all(file) if document]


def resources(kustomization):
    """All documents of a kustomization, and the names of ConfigMaps and Secrets that it generates."""
    (top,) = documents(kustomization)
    found, generated = [], set()
    listed = set()
    for name in top["resources"]:
        path = (kustomization.parent / name).resolve()
        check(path.exists(), kustomization, f"there is no {name}")
        if path.is_dir():
            more, names = resources(path / "kustomization.yaml")
            found += more
            generated |= names
        else:
            listed.add(path)
            found += [(path, document) for document in documents(path)]
    for path in kustomization.parent.glob("*.yaml"):
        check(path == kustomization or path.resolve() in listed, kustomization, f"{path.name} is not listed")
    for kind in "configMapGenerator", "secretGenerator":
        for entry in top.get(kind, []):
            generated.add((kind[: -len("Generator")].lower(), entry["name"]))
            for name in entry["files"]:
                there = (kustomization.parent / name).exists() or kind == "secretGenerator"
                check(there, kustomization, f"there is no {name}")
    return found, generated


def validate(path, document):
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            fail(path, f"{document['kind']} {'.'.join(map(str, error.path))}: {error.message}")


def consistent(found, generated):
    """Selectors find pods, ports have names, volumes have sources."""
    templates = [d["spec"]["template"] for _, d in found if d["kind"] in TEMPLATED]
    labels = [template["metadata"]["labels"] for template in templates]
    claims = {d["metadata"]["name"] for _, d in found if d["kind"] == "PersistentVolumeClaim"}

    def selected(path, selector):
        check(any(selector.items() <= pod.items() for pod in labels), path, f"{selector} selects nothing")

    for path, document in found:
        kind, spec = document["kind"], document.get("spec", {})
        if kind == "Service":
            selected(path, spec["selector"])
        elif kind in ("PodDisruptionBudget", *TEMPLATED):
            selected(path, spec["selector"]["matchLabels"])
        elif kind == "NetworkPolicy" and spec["podSelector"]["matchLabels"] != {"taglock.behind": "true"}:
            selected(path, spec["podSelector"]["matchLabels"])
        if kind not in TEMPLATED:
            continue
        pod = spec["template"]["spec"]
        check(pod["securityContext"]["runAsNonRoot"] is True, path, "may run as root")
        check(pod["automountServiceAccountToken"] is False, path, "has a token of the cluster")
        names = {volume["name"] for volume in pod["volumes"]}
        names |= {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])}
        for volume in pod["volumes"]:
            if "configMap" in volume:
                check(("configmap", volume["configMap"]["name"]) in generated, path, "unknown ConfigMap")
            elif "secret" in volume:
                check(("secret", volume["secret"]["secretName"]) in generated, path, "unknown Secret")
            else:
                check(volume["persistentVolumeClaim"]["claimName"] in claims, path, "unknown claim")
        for container in pod["containers"]:
            context = container["securityContext"]
            check(context["readOnlyRootFilesystem"] is True, path, "may write to its root")
            check(context["allowPrivilegeEscalation"] is False, path, "may gain privileges")
            check(context["capabilities"]["drop"] == ["ALL"], path, "keeps capabilities")
            for mount in container["volumeMounts"]:
                check(mount["name"] in names, path, f"no volume {mount['name']}")
                check("subPath" not in mount, path, "a subPath never changes")
            ports = {port["name"] for port in container["ports"]}
            for probe in "startupProbe", "readinessProbe", "livenessProbe":
                for action in container.get(probe, {}).values():
                    if isinstance(action, dict):
                        check(action["port"] in ports, path, f"{probe} asks an unknown port")


def main():
    root = pathlib.Path(__file__).parent.parent
    for name in "base", "try":
        found, generated = resources(root / "deploy/kubernetes" / name / "kustomization.yaml")
        for path, document in found:
            validate(path, document)
        consistent(found, generated)
        print(f"{name}: {len(found)} objects")
    for path in sorted((root / ".github/workflows").glob("*.yml")):
        (workflow,) = documents(path)
        # YAML 1.1 reads the key `on` as a truth value.
        check(workflow.get("on", workflow.get(True)), path, "never runs")
        check("permissions" in workflow, path, "has all permissions")
        for name, job in workflow["jobs"].items():
            check("runs-on" in job and "timeout-minutes" in job, path, f"{name} lacks a runner or a bound")
            for needed in job.get("needs", []):
                check(needed in workflow["jobs"], path, f"{name} needs {needed}, which is not there")
            for step in job["steps"]:
                check(("run" in step) != ("uses" in step), path, f"{name} has a step that does nothing")


main()
