"""k8s/ and the Jobs without a cluster: valid for two Kubernetes versions, restricted pods, least privilege, no dangling names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from components.core.config import RunConfig
from components.core.config.cluster import ClusterConfig, StepsConfig
from components.core.storage.opening import CLUSTER_BUCKET
from pipelines.cluster.jobs import ACCOUNT
from pipelines.cluster.pod_settings import resources_of
from tests.k8s.manifests import K8S, OVERLAYS, OWN, SINGLE_USER, built, demo_jobs, one, pods
from tests.k8s.pod_security import violations

VERSIONS = ("1.34", "1.37")
KUEUE = "kueue.x-k8s.io/v1beta2"
CLUSTER = ClusterConfig()
ALL = [*OVERLAYS, "jobs"]


def documents(which: str) -> list[dict[str, Any]]:
    if which == "jobs":
        return [document for file in demo_jobs().values() for document in file]
    return list(built(which))


@pytest.mark.parametrize("which", ALL)
@pytest.mark.parametrize("version", VERSIONS)
def test_objects_fit_the_schemas_of_two_versions(which: str, version: str):
    """Strictly: a field that the version does not know is an error. Kueue has no schemas there; its objects are checked below."""
    own = [document for document in documents(which) if document["apiVersion"] != KUEUE]
    assert len(own) >= (5 if which == SINGLE_USER else 8)
    for document in own:
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("which", ALL)
def test_every_pod_is_restricted(which: str):
    found = [pod for document in documents(which) for pod in pods(document)]
    assert len(found) == {"overlays/dev": 1, "jobs": 9}.get(which, 0)
    for pod in found:
        assert violations(pod) == []
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}


def test_our_check_of_the_restricted_standard_rejects_violations():
    (pod,) = pods(demo_jobs()["normalize"][0])
    for change, message in (
        ({"hostNetwork": True}, "hostNetwork is set"),
        ({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}, "volume v is a hostPath"),
        ({"securityContext": {"runAsNonRoot": True}}, "step has no seccomp profile"),
        ({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}, "step may run as root"),
        ({"containers": [{"name": "step"}]}, "step keeps capabilities"),
        ({"containers": [{"name": "step"}]}, "step may escalate privileges"),
    ):
        assert message in violations({**pod, **change})


def test_the_namespace_enforces_the_restricted_standard():
    for overlay in OWN:
        labels = one(built(overlay), "Namespace", CLUSTER.namespace)["metadata"]["labels"]
        assert {labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "audit", "warn")} == {"restricted"}


def launcher(overlay: str) -> dict[str, str]:
    """An overlay's data of Kubeflow's ConfigMap kfp-launcher."""
    if overlay == SINGLE_USER:
        data: dict[str, str] = yaml.safe_load((K8S / SINGLE_USER / "kfp-launcher.patch.yaml").read_text())["data"]
        return data
    return dict(one(built(overlay), "ConfigMap", "kfp-launcher")["data"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_names_are_those_of_the_configuration(overlay: str):
    objects = built(overlay)
    namespace = "kubeflow" if overlay == SINGLE_USER else CLUSTER.namespace
    for document in objects:
        assert document["metadata"].get("namespace", namespace) == namespace
    for account in (CLUSTER.service_account, ACCOUNT):
        one(objects, "ServiceAccount", account)
    reference = yaml.safe_load(launcher(overlay)["providers"])["s3"]["default"]["credentials"]["secretRef"]
    keys = {"accessKeyKey": "AWS_ACCESS_KEY_ID", "secretKeyKey": "AWS_SECRET_ACCESS_KEY"}
    assert reference == {"secretName": CLUSTER.store_secret, **keys}
    root = launcher(overlay).get("defaultPipelineRoot")
    assert root is None if overlay == SINGLE_USER else root.startswith(f"s3://{CLUSTER_BUCKET}/")


def test_kubeflows_own_namespace_stays_as_its_other_pods_need_it():
    """No label that restricts them, no quota or limits that they did not ask for, and their kfp-launcher is not replaced."""
    objects = built(SINGLE_USER)
    own = {"ServiceAccount", "Role", "RoleBinding", "NetworkPolicy", "ClusterQueue", "LocalQueue", "ResourceFlavor"}
    assert {document["kind"] for document in objects} == own
    assert launcher(SINGLE_USER) == {"providers": launcher("base")["providers"]}
    left = {"Namespace", "ResourceQuota", "LimitRange", "ConfigMap"}
    assert len(objects) == len([document for document in built("overlays/gpu") if document["kind"] not in left])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_network_policy_selects_steps_and_nothing_of_kubeflow(overlay: str):
    policy = one(built(overlay), "NetworkPolicy", "no-ingress")["spec"]
    assert (policy["policyTypes"], policy.get("ingress")) == (["Ingress"], None)
    closed = policy["podSelector"]["matchLabels"].items()
    for step in StepsConfig.model_fields:
        assert closed <= resources_of(RunConfig(), step).labels.items()
    assert not closed <= {"app": "ml-pipeline-ui-artifact"}.items()


@pytest.mark.parametrize("which", ALL)
def test_no_manifest_contains_a_secret_and_all_refer_to_the_users(which: str):
    for document in documents(which):
        assert document["kind"] != "Secret"
        for pod in pods(document):
            keys = [v for container in pod["containers"] for v in container["env"] if "KEY" in v["name"]]
            assert all(key["valueFrom"]["secretKeyRef"]["name"] == CLUSTER.store_secret for key in keys)
            accounts = {d["metadata"]["name"] for d in built("base") if d["kind"] == "ServiceAccount"}
            assert pod.get("serviceAccountName", ACCOUNT) in accounts


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_permissions_are_listed_one_by_one_and_bound_to_the_runs_account(overlay: str):
    objects = built(overlay)
    assert not [d for d in objects if d["kind"].startswith("ClusterRole")]
    role = one(objects, "Role", CLUSTER.service_account)
    for rule in role["rules"]:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        if set(rule["resources"]) & {"secrets", "configmaps"}:
            assert (rule["verbs"], len(rule["resourceNames"])) == (["get"], 1)
    (secrets,) = (rule["resourceNames"] for rule in role["rules"] if rule["resources"] == ["secrets"])
    assert secrets == [CLUSTER.store_secret]
    written = {r for rule in role["rules"] for r in rule["resources"] if set(rule["verbs"]) - {"get", "list", "watch"}}
    assert written == {"workflowtaskresults", "workflowtasksets/status"}
    binding = one(objects, "RoleBinding", CLUSTER.service_account)
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    (subject,) = binding["subjects"]
    assert (subject["name"], subject["namespace"]) == (CLUSTER.service_account, binding["metadata"]["namespace"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_account_that_follows_runs_reads_pods_and_nothing_else(overlay: str):
    objects = built(overlay)
    assert one(objects, "Role", "cellsignal-follow")["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}
    ]
    binding = one(objects, "RoleBinding", "cellsignal-follow")
    assert binding["roleRef"]["name"] == "cellsignal-follow"
    account = one(objects, "ServiceAccount", "cellsignal-follow")["metadata"]
    (subject,) = binding["subjects"]
    assert (subject["name"], subject["namespace"]) == (account["name"], account["namespace"])


def test_argo_can_be_made_to_retry_failed_processes(tmp_path: Path):
    """The component on Kubeflow's own ConfigMap, and the same patch for kubectl."""
    name = {"name": "workflow-controller-configmap", "namespace": "kubeflow"}
    defaults = "spec: {templateDefaults: {retryStrategy: {limit: 2, retryPolicy: OnError}}}"
    theirs = {"artifactRepository": "archiveLogs: true", "workflowDefaults": defaults}
    (tmp_path / "kubeflow.yaml").write_text(
        yaml.safe_dump({"apiVersion": "v1", "kind": "ConfigMap", "metadata": name, "data": theirs})
    )
    component = os.path.relpath(K8S / "retry-always", tmp_path.resolve())
    kustomization = {"resources": ["kubeflow.yaml"], "components": [component]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    (found,) = built(str(tmp_path))
    assert found["data"]["artifactRepository"] == "archiveLogs: true"
    ours = yaml.safe_load(found["data"]["workflowDefaults"])
    assert ours == {"spec": {"templateDefaults": {"retryStrategy": {"limit": 2, "retryPolicy": "Always"}}}}
    patch = yaml.safe_load((K8S / "retry-always" / "workflow-controller.patch.yaml").read_text())
    assert (patch["metadata"], yaml.safe_load(patch["data"]["workflowDefaults"])) == (name, ours)


@pytest.mark.parametrize("overlay", ["base", "overlays/gpu", SINGLE_USER])
def test_the_queue_covers_gpus(overlay: str):
    """kubernetes-validate has no schemas of Kueue's CRDs."""
    objects = built(overlay)
    kueue = [d for d in objects if d["apiVersion"] == KUEUE]
    assert [d["kind"] for d in kueue] == ["ClusterQueue", "LocalQueue", "ResourceFlavor"]
    cluster_queue, local, flavor = kueue
    assert local["metadata"]["name"] == CLUSTER.queue
    assert local["spec"] == {"clusterQueue": cluster_queue["metadata"]["name"]}
    namespace = "kubeflow" if overlay == SINGLE_USER else CLUSTER.namespace
    assert local["metadata"]["namespace"] == namespace
    assert not {"namespace"} & (cluster_queue["metadata"].keys() | flavor["metadata"].keys()), "of the cluster"
    selected = cluster_queue["spec"]["namespaceSelector"]["matchLabels"]
    assert selected == {"kubernetes.io/metadata.name": namespace}
    (group,) = cluster_queue["spec"]["resourceGroups"]
    (given,) = group["flavors"]
    assert given["name"] == flavor["metadata"]["name"]
    assert [r["name"] for r in given["resources"]] == group["coveredResources"]
    # A pod that requests a resource which no flavor covers waits forever; the LimitRange adds ephemeral-storage.
    requested = {"cpu", "memory", CLUSTER.gpu_resource}
    (limits,) = one(built("base"), "LimitRange", "cellsignal")["spec"]["limits"]
    assert set(group["coveredResources"]) == requested | limits["defaultRequest"].keys()
    assert set(flavor["spec"]) <= {"nodeLabels", "tolerations", "nodeTaints", "topologyName"}


def test_the_development_overlay_needs_neither_kueue_nor_gpus_nor_another_store():
    objects = built("overlays/dev")
    assert not [d for d in objects if d["apiVersion"] == KUEUE]
    endpoint = yaml.safe_load(launcher("overlays/dev")["providers"])["s3"]["default"]["endpoint"]
    service = one(objects, "Service", "seaweedfs")
    assert endpoint == f"seaweedfs.{CLUSTER.namespace}.svc:{service['spec']['ports'][0]['port']}"
    server = one(objects, "StatefulSet", "seaweedfs")
    assert server["spec"]["template"]["metadata"]["labels"].items() >= service["spec"]["selector"].items()
    assert server["spec"]["serviceName"] == "seaweedfs"
    (container,) = server["spec"]["template"]["spec"]["containers"]
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
    demo = RunConfig.load("demo").cluster
    assert demo.queue is None
    assert {getattr(demo.steps, step).gpus for step in type(demo.steps).model_fields} == {0}
