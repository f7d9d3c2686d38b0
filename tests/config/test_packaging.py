from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from configparser import RawConfigParser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from poller.config.model import Daemon
from poller.model import (
    ApiRequest,
    Failed,
    FunctionError,
    Invoked,
    MappingState,
    Received,
    Workers,
)
from poller.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "config/poller.service"
TEMPLATE = ROOT / "config/poller@.service"
KUBERNETES = ROOT / "config/kubernetes"
ALERTS = (ROOT / "config/alerts.yml").read_text()
DASHBOARD = (ROOT / "config/grafana-dashboard.json").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()


@dataclass(frozen=True)
class Shard:
    shard: str = "shardId-000000000000"
    iterator_age: float | None = 1.0
    checkpoint_age: float = 0.0


@dataclass(frozen=True)
class Parked:
    keys: int = 1
    records: int = 2


@dataclass(frozen=True)
class Mapping:
    name: str = "orders"
    state: str = "running"
    in_flight_invocations: int = 0
    in_flight_records: int = 0
    buffered_bytes: int = 0
    receivers: int = 1
    shards: tuple[Shard, ...] = (Shard(),)
    circuit: str | None = "open"
    spool: tuple[object, ...] = ()
    parked: Parked | None = Parked()


@dataclass(frozen=True)
class Function:
    name: str = "f"
    in_flight: int = 0
    workers: Workers = Workers()  # noqa: RUF009  it is frozen


@dataclass(frozen=True)
class Status:
    mappings: tuple[Mapping, ...] = (Mapping(),)
    functions: tuple[Function, ...] = (Function(),)


# --- alerts and dashboard -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported() -> str:
    metrics = Metrics(Status)
    metrics.received(Received("orders", 1))
    metrics.invoked(Invoked("orders", "f", "id", 1, 1, Failed(FunctionError("E", "no")), 0.1))
    metrics.api_request(ApiRequest("sqs", "ReceiveMessage", "ok", 0.1))
    return metrics.render()[0].decode()


@pytest.mark.parametrize("text", [ALERTS, DASHBOARD], ids=["alerts", "dashboard"])
def test_alerts_and_dashboard_name_only_metrics_that_are_exported(text: str, exported: str) -> None:
    names = set(re.findall(r"\b(?:poller|process)_[a-z_]+", text))
    known = set(re.findall(r"^(?:# TYPE )?(\w+)", exported, re.MULTILINE))
    assert len(names) > 10
    assert names - known == set()


@pytest.mark.parametrize("text", [ALERTS, DASHBOARD.replace('\\"', '"')], ids=["alerts", "dashboard"])
def test_alerts_and_dashboard_use_only_labels_and_states_that_exist(text: str, exported: str) -> None:
    grouped = re.findall(r"(?:by|on) \(([a-z, ]+)\)", text)
    labels = {label.strip() for group in grouped for label in group.split(",")}
    assert labels - {"instance"} <= set(re.findall(r'[{,](\w+)="', exported))
    assert set(re.findall(r'state="(\w+)"', text)) <= {state.value for state in MappingState}


def test_every_alert_has_what_the_person_who_is_called_needs() -> None:
    alerts = ALERTS.split("- alert: ")[1:]
    assert len(alerts) >= 10
    for alert in alerts:
        name = alert.split("\n")[0]
        assert name.startswith("Poller")
        for key in ("expr", "severity", "summary", "description", "runbook"):
            assert re.search(rf"^ +{key}: \S", alert, re.MULTILINE), (name, key)


def test_every_panel_of_the_dashboard_has_a_place_a_title_and_an_expression() -> None:
    panels = json.loads(DASHBOARD)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["title"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert all(target["expr"] for target in panel["targets"])


# --- systemd ------------------------------------------------------------------------------------------------------


def service() -> dict[str, str]:
    parser = RawConfigParser(strict=False, delimiters="=")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return dict(parser["Service"])


def complaints(unit: Path) -> str:
    """What systemd says about `unit`; nothing where there is no systemd to ask."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        return ""
    done = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, check=False)
    return "".join(line for line in done.stderr.splitlines(keepends=True) if unit.name in line)


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/poller/bin/poller", sys.executable))
    assert complaints(unit) == ""


def test_the_unit_leaves_time_to_drain_and_to_give_a_sign_of_life() -> None:
    unit = service()
    assert int(unit["TimeoutStopSec"]) > Daemon().shutdown_timeout
    assert int(unit["WatchdogSec"]) >= 10
    assert unit["Type"] == "notify"


def test_the_unit_does_not_restart_a_wrong_configuration_nor_signal_the_workers() -> None:
    unit = service()
    assert unit["RestartPreventExitStatus"] == "2"
    assert unit["Restart"] == "on-failure"
    assert unit["KillMode"] == "mixed"


def test_the_unit_gives_no_privilege() -> None:
    unit = service()
    for key in ("DynamicUser", "NoNewPrivileges", "PrivateTmp", "ProtectHome", "LockPersonality"):
        assert unit[key] == "yes", key
    assert unit["ProtectSystem"] == "strict"
    assert unit["CapabilityBoundingSet"] == ""
    assert unit["SystemCallFilter"] == "@system-service"


def test_the_template_unit_is_the_unit_for_several() -> None:
    own, template = UNIT.read_text().splitlines(), TEMPLATE.read_text().splitlines()
    added = {line for line in template if line not in own and not line.startswith("#")}
    assert {line for line in own if line not in template and not line.startswith("#")} == {
        "Description=poller: AWS Lambda's event source mappings, outside AWS"
    }
    assert added == {
        "Description=poller %i: AWS Lambda's event source mappings, outside AWS",
        "Environment=POLLER_INSTANCE=%i",
        "User=poller",
    }


def test_systemd_accepts_the_template(tmp_path: Path) -> None:
    unit = tmp_path / "poller@1.service"
    unit.write_text(TEMPLATE.read_text().replace("/opt/poller/bin/poller", sys.executable))
    assert complaints(unit) == ""


# --- Kubernetes ---------------------------------------------------------------------------------------------------


def manifests() -> dict[str, Any]:
    found = [
        one for file in sorted(KUBERNETES.glob("*.yaml")) for one in yaml.safe_load_all(file.read_text())
    ]
    return {one["kind"]: one for one in found}


def test_there_is_what_a_fleet_needs() -> None:
    assert manifests().keys() == {
        "ServiceAccount",
        "Deployment",
        "Service",
        "PodDisruptionBudget",
        "ServiceMonitor",
        "ScaledObject",
    }
    for one in manifests().values():
        assert one["apiVersion"]
        assert one["metadata"]["name"] == "poller"


def test_everything_selects_the_pods_of_the_deployment() -> None:
    found = manifests()
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for kind in ("Deployment", "PodDisruptionBudget", "ServiceMonitor"):
        assert found[kind]["spec"]["selector"]["matchLabels"] == labels, kind
    assert found["Service"]["spec"]["selector"] == labels
    assert found["Service"]["metadata"]["labels"] == labels, "the ServiceMonitor looks for it"
    assert found["ScaledObject"]["spec"]["scaleTargetRef"]["name"] == "poller"


def test_pods_have_time_to_hand_over_and_no_privilege() -> None:
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > Daemon().shutdown_timeout
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["args"] == json.loads(instruction("CMD"))
    (port,) = container["ports"]
    assert port == {"name": "http", "containerPort": Daemon().port}
    probes = container["readinessProbe"], container["livenessProbe"]
    assert [one["httpGet"]["path"] for one in probes] == ["/readyz", "/healthz"]


def test_the_autoscaler_asks_for_a_metric_that_is_exported(exported: str) -> None:
    (trigger,) = manifests()["ScaledObject"]["spec"]["triggers"]
    (metric,) = re.findall(r"poller_\w+", trigger["metadata"]["query"])
    assert f"\n{metric}{{" in exported


# --- the container ------------------------------------------------------------------------------------------------


def instruction(name: str) -> str:
    (*_, last) = re.findall(rf"^{name} ((?:.*\\\n)*.*)", DOCKERFILE, re.MULTILINE)
    return str(last)


def test_the_container_runs_as_nobody_special_and_stops_by_a_signal_that_reaches_poller() -> None:
    assert instruction("USER").isdecimal()
    assert int(instruction("USER")) > 0
    assert instruction("STOPSIGNAL") == "SIGTERM"
    assert json.loads(instruction("ENTRYPOINT")) == ["poller"]
    assert json.loads(instruction("CMD")) == ["run", "-c", "/etc/poller/poller.toml"]


def test_the_health_check_is_a_program_that_asks_the_port_that_is_exposed() -> None:
    program = json.loads(instruction("HEALTHCHECK").partition("CMD ")[2])
    assert program[:2] == ["python", "-c"]
    compile(program[2], "healthcheck", "exec")
    assert "ProxyHandler({})" in program[2]  # a proxy of the environment does not lead to loopback
    assert f"127.0.0.1:{instruction('EXPOSE')}/healthz" in program[2]
    assert str(Daemon().port) == instruction("EXPOSE")


def test_the_image_has_all_that_the_wheel_is_built_from() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = " ".join(re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)).split()
    needed = ["pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]]
    assert {*needed, *wheel["packages"], *wheel["force-include"]} <= set(copied)


def test_the_license_is_the_whole_apache_license() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
