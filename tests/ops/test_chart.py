"""The Helm chart, rendered by helm: what it sets, asks for and names exists; pods may do no more than they need."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from cli.app import app
from service.app import create_app
from service.settings.load import GROUP_OF, load_settings
from service.telemetry.metrics import Metrics

CHART = Path(__file__).parents[2] / "ops" / "helm" / "vlm2rec"
CUSTOM = {"ServiceMonitor"}
REDIS = {"redis.urlSecret.name": "redis"}
EVERYTHING = REDIS | {
    "secrets.apiKeys.name": "api",
    "secrets.adminKeys.name": "admin",
    "secrets.metricsKeys.name": "metrics",
    "redis.ports": "{6379,26379}",
    "service.workers": "3",
    "service.startupSeconds": "301",
    "service.settings.VLM2REC_LOG_LEVEL": "warning",
    "autoscaling.enabled": "true",
    "serviceMonitor.enabled": "true",
    "jobs.reindex.enabled": "true",
    "jobs.eventsExport.enabled": "true",
    "jobs.retrain.enabled": "true",
}
ON_S3 = EVERYTHING | {
    "retriever.url": "milvus+http://milvus:19531/shop",
    "retriever.port": "19531",
    "retriever.tokenSecret.name": "milvus",
    "jobs.milvusPush.enabled": "true",
    "jobs.milvusPush.tokenSecret.name": "milvus-writer",
    "service.extraEnv[0].name": "OTEL_EXPORTER_OTLP_ENDPOINT",
    "service.extraEnv[0].value": "http://collector:4318",
    "registry.kind": "s3",
    "registry.s3.url": "s3://bucket/bundles",
    "registry.s3.credentialsSecret": "s3",
    "registry.s3.endpoint": "https://store.example:9000",
    "registry.s3.region": "eu-central-1",
    "registry.s3.port": "9000",
    "networkPolicy.clients": "null",
    "networkPolicy.prometheus": "null",
}
SECRET_FILES = ("REDIS_URL", "API_KEYS", "ADMIN_KEYS", "METRICS_KEYS", "RETRIEVER_TOKEN")

pytestmark = pytest.mark.program("helm")


def template(
    values: dict[str, str], settings: dict[str, str] | None = None, release: str = "shop"
) -> subprocess.CompletedProcess[str]:
    given = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    command = ["helm", "template", release, str(CHART), "--kube-version", "1.29.0", "--values", "-", *given]
    read = yaml.safe_dump({"service": {"settings": settings or {}}})
    return subprocess.run(command, input=read, capture_output=True, text=True, check=False)


def rendered(
    values: dict[str, str], settings: dict[str, str] | None = None, release: str = "shop"
) -> list[dict[str, Any]]:
    ran = template(values, settings, release)
    assert ran.returncode == 0, ran.stderr
    return [document for document in yaml.safe_load_all(ran.stdout) if document]


@pytest.fixture(scope="module", params=[REDIS, EVERYTHING, ON_S3], ids=["default", "everything", "s3-milvus"])
def documents(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return rendered(request.param)


def of_kind(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in documents if document["kind"] == kind]


def pods(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, labels and specification of the pods of the service and of each job."""
    for document in documents:
        if document["kind"] == "Deployment":
            template_of_pod = document["spec"]["template"]
        elif document["kind"] == "CronJob":
            template_of_pod = document["spec"]["jobTemplate"]["spec"]["template"]
        else:
            continue
        yield document["metadata"]["name"], template_of_pod["metadata"]["labels"], template_of_pod["spec"]


def container(documents: list[dict[str, Any]]) -> dict[str, Any]:
    (deployment,) = of_kind(documents, "Deployment")
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(only)


def test_every_variable_is_a_setting_that_takes_its_value(
    documents: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for secret in SECRET_FILES:
        content = "redis://redis:6379/0" if secret == "REDIS_URL" else f"a-key-of-{secret.lower()}-0123456789"
        (tmp_path / secret).write_text(content)
    for _, _, pod in pods(documents):
        for variable in pod["containers"][0].get("env", []):
            name = variable["name"]
            if not name.startswith("VLM2REC_"):
                continue  # of libraries
            secret = name.removeprefix("VLM2REC_").removesuffix("_FILE")
            value = str(tmp_path / secret) if secret in SECRET_FILES else variable["value"]
            monkeypatch.setenv(name, value)
    settings = load_settings()
    (deployment,) = of_kind(documents, "Deployment")
    grace_s = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace_s >= settings.server.drain_delay_s + settings.server.drain_s + 5
    assert container(documents)["ports"][0]["containerPort"] == settings.server.port


def variables(of_container: dict[str, Any]) -> dict[str, Any]:
    names = [variable["name"] for variable in of_container.get("env", [])]
    assert len(names) == len(set(names))  # of two of a name the last would win
    return {variable["name"]: variable.get("value") for variable in of_container.get("env", [])}


def test_every_setting_can_be_given() -> None:
    check = (CHART / "templates" / "_check.tpl").read_text()
    own, secrets = (set(re.findall(r'"([A-Z_]+)"', line)) for line in re.findall(r"list (?:\"[A-Z_]+\" ?)+", check))
    known = {name.upper() for name in GROUP_OF}
    assert secrets == {name for name in known if f"{name}_FILE" in known}
    assert {f"{name}_FILE" for name in secrets} <= own <= known
    given = {f"VLM2REC_{name}": "1" for name in known - own - secrets}
    documents = rendered({name: value for name, value in ON_S3.items() if "settings" not in name}, given)
    env = variables(container(documents))
    assert {f"VLM2REC_{name}" for name in known - secrets} == {name for name in env if name.startswith("VLM2REC_")}
    assert given.items() <= env.items()
    assert env["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4318"


def test_a_job_gets_the_settings_of_the_store_and_of_redis_that_the_service_has() -> None:
    settings = {"VLM2REC_REGISTRY_CACHE_MB": "40000", "VLM2REC_REDIS_PREFIX": "shop", "VLM2REC_REDIS_TIMEOUT_MS": "900"}
    jobs = {
        name.removeprefix("shop-vlm2rec-"): variables(pod["containers"][0])
        for name, _, pod in pods(rendered(ON_S3, settings))
    }
    for name in ("reindex", "retrain", "milvus-push"):
        assert jobs[name]["VLM2REC_REGISTRY_CACHE_MB"] == "40000", name
    assert jobs["milvus-push"]["VLM2REC_RETRIEVER"] == "milvus+http://milvus:19531/shop"
    for name in ("events-export", "milvus-push"):  # a push spares what is pinned in Redis
        assert jobs[name]["VLM2REC_REDIS_URL_FILE"] == "/run/vlm2rec/redis/url"
        assert {key: jobs[name][key] for key in settings if "REDIS" in key} == {
            "VLM2REC_REDIS_PREFIX": "shop",
            "VLM2REC_REDIS_TIMEOUT_MS": "900",
        }


def test_a_push_to_milvus_has_a_token_of_its_own_where_one_is_named() -> None:
    for named, secret in (("milvus-writer", "milvus-writer"), ("", "milvus")):
        tokens = {
            name: volume["secret"]["secretName"]
            for name, _, pod in pods(rendered(ON_S3 | {"jobs.milvusPush.tokenSecret.name": named}))
            for volume in pod["volumes"]
            if volume["name"] == "retriever"
        }
        assert tokens == {"shop-vlm2rec": "milvus", "shop-vlm2rec-milvus-push": secret}


def test_milvus_may_be_reached_by_the_service_and_by_jobs() -> None:
    for policy in of_kind(rendered(ON_S3), "NetworkPolicy"):
        reached = [port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]]
        assert 19531 in reached


def test_no_name_is_too_long_for_kubernetes() -> None:
    for document in rendered(ON_S3, release="a" * 53):
        most = {"CronJob": 52, "Service": 63}.get(document["kind"], 253)
        assert len(document["metadata"]["name"]) <= most, document["metadata"]["name"]


def test_probes_and_scrapes_ask_for_routes(documents: list[dict[str, Any]], tmp_path: Path) -> None:
    routes = {
        route.path for route in create_app(load_settings(registry=str(tmp_path))).routes if "GET" in route.methods
    }
    served = container(documents)
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = served[probe]["httpGet"]
        assert asked["path"] in routes
        assert asked["port"] == served["ports"][0]["name"]
    assert served["readinessProbe"]["httpGet"]["path"] == "/readyz"
    for monitor in of_kind(documents, "ServiceMonitor"):
        assert all(endpoint["path"] in routes for endpoint in monitor["spec"]["endpoints"])


def test_every_job_is_a_command_with_options_that_exist(
    documents: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _, _, pod in pods(documents):
        for variable in ("VLM2REC_RETRIEVER", "VLM2REC_RETRIEVER_TOKEN_FILE"):
            monkeypatch.delenv(variable, raising=False)
            if (value := variables(pod["containers"][0]).get(variable)) is not None:
                monkeypatch.setenv(variable, value)
        words, command = list(pod["containers"][0]["args"]), get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context(None, words, resilient_parsing=False)  # refuses unknown options and bad values


def test_every_mount_has_its_volume_and_every_path_its_mount(documents: list[dict[str, Any]]) -> None:
    made = {claim["metadata"]["name"] for claim in of_kind(documents, "PersistentVolumeClaim")}
    asked = set()
    for name, _, pod in pods(documents):
        (only,) = pod["containers"]
        mounts = [mount["mountPath"] for mount in only["volumeMounts"]]
        assert {mount["name"] for mount in only["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}, name
        named = [*only["args"], *(variable.get("value", "") for variable in only.get("env", []))]
        assert all(any(path.startswith(mount) for mount in mounts) for path in named if path.startswith("/")), name
        asked |= {claim["claimName"] for volume in pod["volumes"] if (claim := volume.get("persistentVolumeClaim"))}
    assert asked == made


def test_the_copies_of_a_store_have_a_volume_where_the_image_keeps_them() -> None:
    (cache,) = re.findall(r"VLM2REC_REGISTRY_CACHE=(\S+)", (CHART.parents[2] / "Dockerfile").read_text())
    for name, _, pod in pods(rendered(ON_S3)):
        (only,) = pod["containers"]
        if any("s3://" in word for word in [*only["args"], *(v.get("value", "") for v in only.get("env", []))]):
            assert {"name": "cache", "mountPath": cache} in only["volumeMounts"], name


def test_pods_are_hardened(documents: list[dict[str, Any]]) -> None:
    for name, _, pod in pods(documents):
        security, (only,) = pod["securityContext"], pod["containers"]
        assert (security["runAsNonRoot"], security["runAsUser"]) == (True, 10001), name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
        assert only["securityContext"] == {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert "memory" in only["resources"]["limits"], name
    bundles = [mount for mount in container(documents)["volumeMounts"] if mount["name"] == "bundles"]
    assert all(mount["readOnly"] for mount in bundles)


def test_selectors_find_the_pods_that_they_mean(documents: list[dict[str, Any]]) -> None:
    labels = {name: labels for name, labels, _ in pods(documents)}
    service, jobs = labels.pop("shop-vlm2rec"), list(labels.values())
    (found,) = of_kind(documents, "Service")
    (budget,) = of_kind(documents, "PodDisruptionBudget")
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of_kind(documents, "NetworkPolicy")}
    selectors = [found["spec"]["selector"], budget["spec"]["selector"]["matchLabels"]]
    selectors += [policies["shop-vlm2rec-service"]["podSelector"]["matchLabels"]]
    for selector in selectors:
        assert selector.items() <= service.items()
        assert not any(selector.items() <= job.items() for job in jobs)
    for monitor in of_kind(documents, "ServiceMonitor"):
        assert monitor["spec"]["selector"]["matchLabels"].items() <= found["metadata"]["labels"].items()
    (component,) = policies["shop-vlm2rec-jobs"]["podSelector"]["matchExpressions"]
    assert {job["app.kubernetes.io/component"] for job in jobs} <= set(component["values"])
    assert "ingress" not in policies["shop-vlm2rec-jobs"]  # nothing may connect to a job


def test_no_peer_means_nobody_and_not_everybody() -> None:
    (policy, _) = of_kind(rendered(ON_S3), "NetworkPolicy")
    assert policy["spec"]["ingress"] == []
    (policy, _) = of_kind(rendered(REDIS), "NetworkPolicy")
    assert all(rule["from"] for rule in policy["spec"]["ingress"])


def test_every_port_of_redis_and_its_sentinels_may_be_reached() -> None:
    for values, ports in ((REDIS, [6379]), (EVERYTHING, [6379, 26379])):
        policies = of_kind(rendered(values), "NetworkPolicy")
        assert len(policies) == 2
        for policy in policies:
            reached = [[port["port"] for port in rule["ports"]] for rule in policy["spec"]["egress"]]
            assert reached == [[53, 53], ports]


def test_a_start_may_take_as_long_as_is_said_while_nothing_answers() -> None:
    for values, seconds in ((REDIS, 120), (EVERYTHING, 301)):
        probe = container(rendered(values))["startupProbe"]
        assert probe["timeoutSeconds"] < probe["periodSeconds"]  # an attempt that hangs delays no other
        assert seconds <= probe["failureThreshold"] * probe["periodSeconds"] < seconds + probe["periodSeconds"]


def test_there_are_as_many_workers_as_cpus_are_requested() -> None:
    served = container(rendered(REDIS))
    assert variables(served)["VLM2REC_WORKERS"] == served["resources"]["requests"]["cpu"]


def test_only_names_of_secrets_are_in_the_chart(documents: list[dict[str, Any]]) -> None:
    assert of_kind(documents, "Secret") == of_kind(documents, "ConfigMap") == []
    for _, _, pod in pods(documents):
        for volume in pod["volumes"]:
            assert volume.get("secret", {}).get("defaultMode", 0o440) == 0o440


def test_replicas_are_scaled_by_a_metric_that_exists() -> None:
    assert of_kind(rendered(REDIS), "HorizontalPodAutoscaler") == []
    documents = rendered(EVERYTHING)
    (scaler,) = of_kind(documents, "HorizontalPodAutoscaler")
    (deployment,) = of_kind(documents, "Deployment")
    assert "replicas" not in deployment["spec"]  # an upgrade would set the number back
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    (metric,) = scaler["spec"]["metrics"]
    families = {family.name for family in Metrics()._registry.collect()}
    assert metric["pods"]["metric"]["name"] in families


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"redis.urlSecret.name": ""}, "redis.urlSecret.name must name an existing Secret"),
        ({"service.replicas": "0"}, "service.replicas: Must be greater than or equal to 1"),
        ({"service.replica": "3"}, "Additional property replica is not allowed"),
        ({"service.settings.RATE_LIMIT": "3"}, "Additional property RATE_LIMIT is not allowed"),
        ({"service.settings.VLM2REC_API_KEYS": "abc"}, "service.settings.VLM2REC_API_KEYS is a secret"),
        ({"service.settings.VLM2REC_RETRIEVER_TOKEN": "a:b"}, "service.settings.VLM2REC_RETRIEVER_TOKEN is a secret"),
        ({"service.settings.VLM2REC_CONFIG": "x"}, "service.settings.VLM2REC_CONFIG names a file that no volume holds"),
        ({"service.extraEnv[0].name": "VLM2REC_OTEL"}, "service.extraEnv: VLM2REC_OTEL is a setting of the service"),
        ({"retriever.url": "http://milvus:19530"}, "retriever.url: Does not match pattern"),
        ({"retriever.url": "milvus+http://root:word@milvus"}, "retriever.url: Does not match pattern"),
        ({"retriever.tokenSecret.name": "milvus"}, "retriever.tokenSecret needs retriever.url"),
        ({"jobs.milvusPush.enabled": "true"}, "jobs.milvusPush.enabled needs retriever.url"),
        ({"service.settings.VLM2REC_HOST": "::"}, "service.settings.VLM2REC_HOST is set by the chart"),
        ({"service.resources.limits.memory": "2GB"}, "service.resources.limits.memory: Does not match pattern"),
        ({"redis.ports": "{}"}, "redis.ports"),
        ({"redis.ports": "{0}"}, "redis.ports.0: Must be greater than or equal to 1"),
        ({"registry.kind": "nfs"}, 'registry.kind must be one of the following: "pvc", "s3"'),
        ({"registry.kind": "s3"}, "registry.s3.url must be set where registry.kind is s3"),
        ({"registry.s3.url": "http://store"}, "registry.s3.url: Does not match pattern"),
        ({"jobs.reindex.dataset": "../other"}, "jobs.reindex.dataset: Does not match pattern"),
        ({"jobs.reindex.schedule": "nightly"}, "jobs.reindex.schedule: Does not match pattern"),
        ({"jobs.retrain.enabled": "true"}, "jobs.retrain.enabled needs jobs.eventsExport.enabled"),
        ({"autoscaling.enabled": "true", "autoscaling.minReplicas": "20"}, "autoscaling.maxReplicas (10) must be at"),
    ],
)
def test_a_bad_value_is_refused_by_its_name(values: dict[str, str], message: str) -> None:
    ran = template(REDIS | values)
    assert ran.returncode == 1
    assert message in ran.stderr
    assert ran.stdout == ""


def test_helm_finds_no_fault() -> None:
    ran = subprocess.run(
        ["helm", "lint", "--strict", str(CHART), "--set", "redis.urlSecret.name=redis"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout


@pytest.mark.program("kubernetes-validate")
@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_every_object_is_one_that_kubernetes_knows(
    documents: list[dict[str, Any]], tmp_path: Path, version: str
) -> None:
    known = [document for document in documents if document["kind"] not in CUSTOM]
    assert len(known) >= 7
    file = tmp_path / "objects.yaml"
    file.write_text(yaml.safe_dump_all(known))
    ran = subprocess.run(
        ["kubernetes-validate", "--strict", "-k", version, str(file)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (ran.stdout + ran.stderr).count(" passed for resource ") == len(known)
