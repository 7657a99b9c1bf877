#!/usr/bin/env python3
"""Checks the Helm chart, the alerts and the dashboard. No cluster is needed.

    tests/tools.sh && target/tools/venv/bin/python tests/chart/run.py

    --update     writes the golden files anew; read their difference before committing it
    NAME…        only the value sets of these names

For each value set (values/*.yaml here and examples/*.yaml of the chart): helm lint --strict; helm template for the oldest
and the newest Kubernetes, each object against its schema; the golden file; whether the objects fit together; whether the
program itself accepts the configuration and every command line. For each file in bad/: that it is refused, in the words of
its first line. And what belongs to no set: the README of values, the schema, the alerts, the dashboard, the runbooks.

$PIERHEAD names the program, or else target/release/pierhead or target/debug/pierhead. The last line says 'N passed, N failed'.
"""

import argparse
import copy
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib

import kubernetes_validate
import yaml

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CHART = ROOT / "charts/pierhead"
GOLDEN = HERE / "golden"
RUNBOOKS = ROOT / "docs/src/runbooks"
TOOLS = ROOT / "target/tools/bin"

# What the program does not have yet. Such checks are skipped and counted as such; a line whose time has come is told.
WAITING_COMMANDS = set()
WAITING_METRICS = set()

# Containers that may run as root, because what they write belongs to root.
ROOT_CONTAINERS = {"prepare-cache", "node-setup", "remove"}

counts = {"passed": 0, "failed": 0, "skipped": 0}


class Skipped(Exception):
    """The check cannot be made yet."""


def check(name, function, *arguments):
    """Runs one check, counts it, and returns what it returned, or None."""
    try:
        result = function(*arguments)
    except Skipped as why:
        counts["skipped"] += 1
        print(f"  skip  {name}: {why}")
        return None
    except Exception as error:  # whatever it is, the other checks go on
        counts["failed"] += 1
        text = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        print(f"  FAIL  {name}\n" + "\n".join(f"        {line}" for line in text.splitlines()))
        return None
    counts["passed"] += 1
    print(f"  ok    {name}")
    return result


def run(*command, stdin=None, env=None, good=True):
    """Runs a program and returns what it printed; `good` says whether it has to succeed, or to fail."""
    done = subprocess.run([str(c) for c in command], input=stdin, env=env, capture_output=True, text=True)
    text = done.stdout + done.stderr
    assert (done.returncode == 0) == good, f"{' '.join(map(str, command))}: exit code {done.returncode}\n{text}"
    return done.stdout if good else text


def tool(name):
    """A program that must be there: what cannot be checked has not passed."""
    found = TOOLS / name if (TOOLS / name).exists() else shutil.which(name)
    return found or sys.exit(f"there is no {name}: run tests/tools.sh first, and see its head for Debian's packages")


HELM, PROMTOOL, CRDCHECK = tool("helm"), tool("promtool"), tool("crdcheck")


def program():
    candidates = [os.environ.get("PIERHEAD", ""), ROOT / "target/release/pierhead", ROOT / "target/debug/pierhead"]
    found = next((c for c in candidates if c and os.access(c, os.X_OK)), None)
    return found or sys.exit("there is no pierhead: run 'cargo build --release' first, or set PIERHEAD")


PIERHEAD = program()


def helm(*arguments, **more):
    # Nothing of the machine's own Helm, and no cluster.
    env = {**os.environ, "HELM_CONFIG_HOME": "/nonexistent", "KUBECONFIG": "/dev/null"}
    return run(HELM, *arguments, env=env, **more)


def oldest_and_newest():
    lowest = re.search(r">=\s*(\d+\.\d+)", yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"])[1]
    return lowest, kubernetes_validate.latest_version()


OLDEST, NEWEST = oldest_and_newest()


def template(values, version=NEWEST, chart=CHART, good=True):
    return helm("template", "rel", chart, "--namespace", "site", "--values", values,
                "--kube-version", f"v{version.removesuffix('.0')}.0", good=good)


# --- rendered objects --------------------------------------------------------------------------------------------------


def read_objects(text):
    return [o for o in yaml.safe_load_all(text) if o]


def validate(objects, version):
    """Against Kubernetes' schemas, closed; what is for operators, against their types."""
    assert objects, "nothing was rendered"
    for each in objects:
        if each["apiVersion"].split("/")[0] in ("monitoring.coreos.com", "cert-manager.io"):
            run(CRDCHECK, stdin=json.dumps(each))
            continue
        try:
            kubernetes_validate.validate(each, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = "/".join(map(str, error.path))
            raise AssertionError(f"{each['kind']} {each['metadata']['name']}: {where}: {error.message}") from None


class Readable(yaml.SafeDumper):
    """Texts of several lines as such, so that a difference can be read."""


Readable.add_representer(str, lambda dumper, text: dumper.represent_scalar(
    "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None))


def golden_text(objects):
    """Sorted, without comments, and without what is a file of its own."""
    objects = copy.deepcopy(objects)
    for each in objects:
        if "pierhead.json" in each.get("data", {}):
            each["data"]["pierhead.json"] = "(files/dashboard.json)"
        if each["kind"] == "PrometheusRule":
            for group in each["spec"]["groups"]:
                for rule in group["rules"]:
                    rule["expr"] = "(files/alerts.yaml)"
                    rule["annotations"] = {"runbook_url": rule["annotations"]["runbook_url"]}
    objects.sort(key=lambda o: (o["kind"], o["metadata"].get("namespace", ""), o["metadata"]["name"]))
    return yaml.dump_all(objects, Dumper=Readable, sort_keys=True, width=120, allow_unicode=True)


def compare(path, text, update):
    if update:
        path.write_text(text)
        return
    assert path.exists(), f"there is no {path.name}: run with --update, and read what it writes"
    if path.read_text() != text:
        difference = subprocess.run(["diff", "-u", path, "-"], input=text, capture_output=True, text=True).stdout
        raise AssertionError(f"not as in {path.relative_to(ROOT)} (--update writes it anew):\n{difference}")


def pod_of(each):
    """(metadata, spec) of an object's pods, or None."""
    if each["kind"] == "Pod":
        return each["metadata"], each["spec"]
    found = each.get("spec", {}).get("template")
    return (found["metadata"], found["spec"]) if found else None


def ours(spec):
    """The containers that run the program; the others are the user's."""
    return [c for c in spec.get("initContainers", []) + spec["containers"] if "pierhead" in c["image"]]


def selects(selector, labels):
    return all(labels.get(k) == v for k, v in selector.items())


def hardened(objects):
    """No pod that the chart writes has more rights than it needs."""
    for each in objects:
        if not (pod := pod_of(each)):
            continue
        name, spec = f"{each['kind']} {each['metadata']['name']}", pod[1]
        assert spec["automountServiceAccountToken"] is False, f"{name} mounts a token"
        assert spec["enableServiceLinks"] is False, f"{name} takes variables of Services for settings"
        assert spec["securityContext"]["runAsNonRoot"] is True, f"{name} may run as root"
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", f"{name} has no seccomp"
        for container in ours(spec):
            about, context = f"{name}, container {container['name']}", container["securityContext"]
            assert context["capabilities"] == {"drop": ["ALL"]}, f"{about} has capabilities"
            assert context["readOnlyRootFilesystem"] is True, f"{about} can write to its root"
            assert context["allowPrivilegeEscalation"] is False, f"{about} can gain rights"
            assert "limits" in container["resources"], f"{about} has no limits"
            root = context.get("runAsUser", spec["securityContext"]["runAsUser"]) == 0
            assert root == (container["name"] in ROOT_CONTAINERS), f"{about}: root is {root}"


def fits_together(objects):
    """What schemas cannot see: that names, labels, ports and volumes lead somewhere."""
    seen = set()
    for each in objects:
        key = (each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"])
        assert key not in seen, f"{key} is there twice"
        assert len(key[2]) <= 63, f"the name {key[2]} is too long"
        seen.add(key)
    names = {(kind, name) for kind, _, name in seen}
    workload = next(o for o in objects if o["kind"] in ("Deployment", "StatefulSet", "DaemonSet")
                    and "helm.sh/hook" not in o["metadata"].get("annotations", {}))
    labels, spec = pod_of(workload)[0]["labels"], pod_of(workload)[1]
    main = spec["containers"][0]
    ports = {p["name"]: p for p in main["ports"]}
    assert len({p["containerPort"] for p in main["ports"]}) == len(main["ports"]), "two ports are the same"

    for each in objects:
        kind, name = each["kind"], each["metadata"]["name"]
        if pod := pod_of(each):
            pod_labels, pod_spec = pod[0].get("labels", {}), pod[1]
            if "selector" in each.get("spec", {}):
                assert selects(each["spec"]["selector"]["matchLabels"], pod_labels), f"{kind} {name} does not select its pods"
            # Neither the Services nor the policies may take a hook for the mirror.
            if each is not workload:
                assert not selects(workload["spec"]["selector"]["matchLabels"], pod_labels), f"{kind} {name} looks like the mirror"
            volumes = {v["name"] for v in pod_spec.get("volumes", [])}
            volumes |= {c["metadata"]["name"] for c in each.get("spec", {}).get("volumeClaimTemplates", [])}
            for container in ours(pod_spec):
                mounts = container.get("volumeMounts", [])
                missing = {m["name"] for m in mounts} - volumes
                assert not missing, f"{kind} {name}, container {container['name']}: no volume {missing}"
                assert len({m["mountPath"] for m in mounts}) == len(mounts), f"{kind} {name}: one path is mounted twice"
                known = {p["name"] for p in container.get("ports", [])}
                for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                    for handler in container.get(probe, {}).values():
                        if isinstance(handler, dict):
                            assert handler["port"] in known, f"{probe}: no port {handler['port']}"
        if kind == "Service":
            target = next(o for o in objects if (p := pod_of(o)) and selects(each["spec"]["selector"], p[0]["labels"]))
            known = {p["name"] for c in pod_of(target)[1]["containers"] for p in c["ports"]}
            for port in each["spec"]["ports"]:
                assert port["targetPort"] in known, f"Service {name}: no port {port['targetPort']}"
            published = {p["port"] for p in each["spec"]["ports"]}
            assert len(published) == len(each["spec"]["ports"]), f"Service {name}: two ports are the same"
            if each["spec"].get("clusterIP") != "None":
                assert "admin" not in {p["targetPort"] for p in each["spec"]["ports"]}, "the admin port is on the pull Service"
        if kind == "NetworkPolicy":
            assert selects(each["spec"]["podSelector"]["matchLabels"], labels), "the policy is for nobody"
            admitted = {p["port"] for rule in each["spec"]["ingress"] for p in rule["ports"]}
            assert set(ports) - {"admin"} <= admitted <= set(ports), f"the policy admits {admitted} of {set(ports)}"
            assert all("from" in r for r in each["spec"]["ingress"] if {"port": "admin"} in r["ports"]), "admin is open to all"
        if kind == "PodDisruptionBudget":
            assert selects(each["spec"]["selector"]["matchLabels"], labels), "the budget is for nobody"
        if kind == "ServiceMonitor":
            found = [o for o in objects if o["kind"] == "Service"
                     and selects(each["spec"]["selector"]["matchLabels"], o["metadata"]["labels"])
                     and o["metadata"]["namespace"] in each["spec"]["namespaceSelector"]["matchNames"]]
            assert len(found) == 1, f"the ServiceMonitor finds {len(found)} Services"
            assert each["spec"]["endpoints"][0]["port"] in {p["name"] for p in found[0]["spec"]["ports"]}
            # The alerts and the dashboard go by this job.
            assert found[0]["metadata"]["labels"][each["spec"]["jobLabel"]] == "pierhead"
        if kind == "StatefulSet":
            assert ("Service", each["spec"]["serviceName"]) in names, "the StatefulSet has no Service of its own"

    account = spec["serviceAccountName"]
    assert account == "default" or ("ServiceAccount", account) in names, f"there is no ServiceAccount {account}"
    for volume in spec["volumes"]:
        if volume["name"] == "config":
            assert ("ConfigMap", volume["configMap"]["name"]) in names, "there is no ConfigMap"
    mounted = {m["mountPath"] for m in main["volumeMounts"]}
    assert "/var/lib/pierhead" in mounted, "the cache is on the read-only root"

    sleep = main.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    config = next(yaml.safe_load(o["data"]["pierhead.yaml"]) for o in objects if "pierhead.yaml" in o.get("data", {}))
    drain = config.get("server", {}).get("drain_timeout", "30s")
    drain = int(re.match(r"\d+", drain)[0]) * {"s": 1, "m": 60}[drain[-1]]
    assert sleep + drain < spec["terminationGracePeriodSeconds"], "the pod is killed before its transfers have ended"


# --- the program's own word ----------------------------------------------------------------------------------------------


@functools.cache
def listen_keys():
    """The keys of an entry of `listen` that this program knows."""
    return json.loads(run(PIERHEAD, "config", "schema"))["$defs"]["Listen"]["properties"].keys()


@functools.cache
def certificate():
    """A certificate for where a Secret would hold one, made once."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="pierhead-chart-"))
    run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
        "-subj", "/CN=test", "-addext", "subjectAltName=DNS:test", "-keyout", folder / "tls.key", "-out", folder / "tls.crt")
    shutil.copy(folder / "tls.crt", folder / "ca.crt")
    return folder


def accepted(objects, folder):
    """Each configuration, with the environment and the files its pod has, is good to `pierhead check`."""
    found = [o for o in objects if "pierhead.yaml" in o.get("data", {})]
    assert found, "no configuration was rendered"
    texts = {o["data"]["pierhead.yaml"] for o in found}
    assert len(texts) == 1, "what is checked before an upgrade is not what is then served"
    spec = next(pod_of(o)[1] for o in objects if o["kind"] in ("Deployment", "StatefulSet", "DaemonSet"))
    main = spec["containers"][0]
    assert main["args"][-1] == "/etc/pierhead/config/pierhead.yaml"

    etc = folder / "etc"
    for mount in main["volumeMounts"]:
        if mount["mountPath"].startswith("/etc/pierhead/secrets/"):
            secret = etc / mount["mountPath"].removeprefix("/etc/pierhead/")
            secret.mkdir(parents=True)
            (secret / "token").write_text("secret\n")
        if mount["mountPath"] in ("/etc/pierhead/tls", "/etc/pierhead/client-ca"):
            shutil.copytree(certificate(), etc / mount["mountPath"].removeprefix("/etc/pierhead/"))
    config = etc / "config/pierhead.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(texts.pop().replace("/etc/pierhead/", f"{etc}/"))

    unknown = {k for entry in yaml.safe_load(config.read_text())["listen"] if isinstance(entry, dict) for k in entry}
    if unknown := unknown - listen_keys():
        raise Skipped(f"the program does not know {', '.join(sorted(unknown))} in listen yet")
    env = {e["name"]: e.get("value", "from-a-secret") for e in main.get("env", [])}
    said = subprocess.run([PIERHEAD, "check", "--config", config], env=env, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    # That all who reach the mirror can read what its login can is true and known: it is for the NetworkPolicy.
    warned = [w for w in re.findall(r"pierhead\.yaml:\d+:\d+: (.*)", said.stderr) if not w.startswith("whoever reaches")]
    assert not warned, f"it warns:\n{said.stderr}"


def parsed(objects):
    """Every command line in the pods is one that the program knows. `--help` at its end: parse the rest, then do nothing."""
    lacking = set()
    for each in objects:
        for container in ours(pod_of(each)[1]) if pod_of(each) else ():
            line = [a.replace("$(NODE_IP)", "192.0.2.1") for a in container["args"]]
            said = subprocess.run([PIERHEAD, *line, "--help"], env={}, capture_output=True, text=True)
            if said.returncode == 0:
                continue
            missing = re.search(r"unrecognized subcommand '(\S+)'|unexpected argument '(\S+?)'", said.stderr)
            missing = next(filter(None, missing.groups())) if missing else None
            assert missing in WAITING_COMMANDS, f"{each['kind']} {each['metadata']['name']}: {line}\n{said.stderr}"
            lacking.add(missing)
    if lacking:
        raise Skipped(f"the program does not have {', '.join(sorted(lacking))} yet")


def notes(values):
    text = helm("install", "rel", CHART, "--namespace", "site", "--values", values, "--dry-run=client")
    text = text.split("\nNOTES:\n", 1)[1].rstrip() + "\n"
    long = [line for line in text.splitlines() if len(line) > 120 and "kubectl" not in line]
    assert not long, f"too long for a terminal: {long}"
    # The snippets must be what the clients can read.
    for snippet in re.findall(r"(?m)(?:^    .*\n)+", text):
        if snippet.strip().startswith("{"):
            json.loads(snippet)
        elif snippet.strip().startswith(("[", "server")):
            # One of these headings is for each version of containerd.
            tomllib.loads(re.sub(r"(?m)^.*# containerd 1$", "", snippet))
    return text


def value_set(path, update):
    name = path.stem if path.parent.name == "values" else f"example-{path.stem}"
    print(f"\n== {name}")
    check("helm lint --strict", helm, "lint", CHART, "--strict", "--values", path)
    for version in (OLDEST, NEWEST):
        text = check(f"helm template for Kubernetes {version}", template, path, version)
        if text:
            objects = read_objects(text)
            check(f"valid for Kubernetes {version}", validate, objects, version)
    if not text:
        return
    check("as in the golden file", compare, GOLDEN / f"{name}.yaml", golden_text(objects), update)
    told = check("notes", notes, path)
    if told:
        check("notes as in the golden file", compare, GOLDEN / f"{name}.txt", told, update)
    check("hardened", hardened, objects)
    check("fits together", fits_together, objects)
    with tempfile.TemporaryDirectory(prefix="pierhead-chart-") as folder:
        check("pierhead accepts the configuration", accepted, objects, pathlib.Path(folder))
    check("pierhead knows the command lines", parsed, objects)


# --- what belongs to no set ----------------------------------------------------------------------------------------------


def refused(path):
    wanted = path.read_text().splitlines()[0].removeprefix("# refused: ")
    said = template(path, good=False)
    assert wanted in said, f"refused, but not by {wanted!r}:\n{said}"


def schema_and_values_agree():
    """Each value has a place in the schema, each place a value, and every object is closed."""
    schema = json.loads((CHART / "values.schema.json").read_text())

    def shape(node):
        while "$ref" in node:
            node = schema["definitions"][node["$ref"].rsplit("/", 1)[1]]
        return node

    def walk(node, values, path):
        node = shape(node)
        if "properties" not in node:
            return
        assert node.get("additionalProperties") is False, f"{path or 'the root'} is not closed"
        known = set(node["properties"]) - ({"global", "enabled"} if not path else set())
        if path.split(".")[-1] in ("resources", "helperResources"):
            assert set(values) <= known
            return
        assert known == set(values), f"{path or 'the root'}: only in one of both: {sorted(known ^ set(values))}"
        for key, value in values.items():
            if isinstance(value, dict):
                walk(node["properties"][key], value, f"{path}.{key}".strip("."))

    walk(schema, yaml.safe_load((CHART / "values.yaml").read_text()), "")


def no_value_is_unused():
    """A value that no template reads is a promise not kept."""
    templates = "".join(p.read_text() for p in (CHART / "templates").rglob("*.*"))
    aliases = {"$v", "$service", "$rule", "$cert", "$image"}

    def walk(values, path):
        for key, value in values.items():
            here = [*path, key]
            if isinstance(value, dict) and value and key not in (
                    "podSecurityContext", "securityContext", "resources", "helperResources", "nodeSelector", "startupProbe",
                    "readinessProbe", "livenessProbe", "issuerRef", "labels"):
                walk(value, here)
                continue
            dotted = ".".join(here)
            tails = [rf"\.Values\.{re.escape(dotted)}\b"]
            tails += [rf"{re.escape(a)}\.{re.escape('.'.join(here[i:]))}\b" for a in aliases for i in range(len(here))]
            assert any(re.search(t, templates) for t in tails), f"no template reads {dotted}"

    walk(yaml.safe_load((CHART / "values.yaml").read_text()), [])


def package_is_clean():
    with tempfile.TemporaryDirectory(prefix="pierhead-chart-") as folder:
        helm("package", CHART, "--destination", folder)
        with tarfile.open(next(pathlib.Path(folder).glob("*.tgz"))) as archive:
            inside = {n.removeprefix("pierhead/") for n in archive.getnames()}
    unwanted = {n for n in inside if n.endswith((".py", ".in", ".pyc"))}
    assert not unwanted, f"what does not belong there is packed: {unwanted}"
    wanted = {"Chart.yaml", "values.yaml", "values.schema.json", "README.md", "files/alerts.yaml", "files/dashboard.json",
              "templates/NOTES.txt", "examples/node-cache.yaml"}
    assert wanted <= inside, f"not packed: {wanted - inside}"


def upgrade_keeps_what_cannot_change():
    """Kubernetes refuses changes of selectors, volume claim templates and roles' names: no version may be in them."""
    for values in ("statefulset", "deployment-replicas", "daemonset"):
        with tempfile.TemporaryDirectory(prefix="pierhead-chart-") as folder:
            newer = pathlib.Path(folder) / "pierhead"
            shutil.copytree(CHART, newer)
            about = newer / "Chart.yaml"
            about.write_text(re.sub(r"(?m)^(version|appVersion): .*$", r"\1: 99.0.0", about.read_text()))
            fixed = []
            for chart in (CHART, newer):
                each = next(o for o in read_objects(template(HERE / f"values/{values}.yaml", chart=chart))
                            if o["kind"] in ("StatefulSet", "Deployment", "DaemonSet"))
                fixed.append((each["metadata"]["name"], each["spec"]["selector"], each["spec"].get("volumeClaimTemplates"),
                              each["spec"].get("serviceName"), each["spec"].get("podManagementPolicy")))
        assert fixed[0] == fixed[1], f"{values}: an upgrade changes what cannot be changed: {fixed}"


def changed_configuration_restarts():
    def checksum(*more):
        objects = read_objects(helm("template", "rel", CHART, *more))
        each = next(o for o in objects if o["kind"] == "Deployment")
        return each["spec"]["template"]["metadata"]["annotations"]["checksum/config"]

    same = checksum()
    assert same == checksum("--set", "service.type=NodePort"), "a change beside the configuration restarts the pods"
    assert same != checksum("--set", "config.cache.memory=1GiB"), "a change of the configuration does not restart the pods"


def goes_below_another_chart():
    """As a dependency: with a condition, and with the global values of the chart above."""
    with tempfile.TemporaryDirectory(prefix="pierhead-chart-") as folder:
        above = pathlib.Path(folder) / "above"
        (above / "charts").mkdir(parents=True)
        shutil.copytree(CHART, above / "charts/pierhead")
        (above / "Chart.yaml").write_text(
            "apiVersion: v2\nname: above\nversion: 1.0.0\n"
            f"dependencies: [{{name: pierhead, version: '>=0.0.0-0', condition: pierhead.enabled}}]\n")
        (above / "values.yaml").write_text("global: {site: here}\npierhead: {enabled: true, replicas: 2}\n")
        kinds = [o["kind"] for o in read_objects(helm("template", "rel", above))]
    assert "Deployment" in kinds, kinds


def alerts():
    return [r for g in yaml.safe_load((CHART / "files/alerts.yaml").read_text())["groups"] for r in g["rules"]]


def alerts_have_pages_and_tests():
    named = {r["alert"] for r in alerts()}
    pages = {p.stem for p in RUNBOOKS.glob("*.md")} - {"README"}
    assert named == pages, f"only an alert or only a page: {sorted(named ^ pages)}"
    index = (RUNBOOKS / "README.md").read_text()
    tests = (HERE / "alerts_test.yaml").read_text()
    for rule in alerts():
        name, page = rule["alert"], (RUNBOOKS / f"{rule['alert']}.md").read_text()
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}, f"{name}: annotations"
        assert rule["annotations"]["runbook_url"].endswith(f"/docs/src/runbooks/{name}.md"), f"{name}: runbook_url"
        assert f"Severity: {rule['labels']['severity']}." in page, f"{name}: the page names another severity"
        assert f"[{name}]({name}.md) | {rule['labels']['severity']} |" in index, f"{name}: not so in the index"
        assert f'alertname="{name}"' in tests, f"{name}: no test makes it fire"
    for page in RUNBOOKS.glob("*.md"):
        for link in re.findall(r"\]\(([^)#]+\.md)\)", page.read_text()):
            assert (RUNBOOKS / link).exists(), f"{page.name} leads to {link}, which is not there"


def rendered_rules_are_good():
    """The PrometheusRule holds rules that Prometheus takes, the disabled left out, labels and links as asked for."""
    rule = next(o for o in read_objects(template(HERE / "values/monitoring.yaml")) if o["kind"] == "PrometheusRule")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(rule["spec"], file)
        file.flush()
        run(PROMTOOL, "check", "rules", file.name)
    rules = [r for g in rule["spec"]["groups"] for r in g["rules"]]
    assert {r["alert"] for r in alerts()} - {r["alert"] for r in rules} == {"PierheadServingStale", "PierheadCacheTooSmall"}
    assert all(r["labels"]["team"] == "platform" and r["labels"]["severity"] for r in rules)
    assert all(r["annotations"]["runbook_url"] == f"https://wiki.example.com/runbooks/{r['alert']}.md" for r in rules)


def dashboard_queries():
    lines = run(sys.executable, ROOT / "packaging/grafana/generate.py", "--queries").splitlines()
    return [line.split("\t") for line in lines]


def dashboard_is_good():
    text = (CHART / "files/dashboard.json").read_text()
    board = json.loads(text)
    assert board["uid"] == "pierhead" and "__inputs" not in board
    assert [v["name"] for v in board["templating"]["list"]] == ["datasource", "job", "instance"]
    ids = [p["id"] for p in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in board["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
            assert panel["targets"], f"{panel['title']} asks nothing"
    for a in board["panels"]:
        for b in board["panels"]:
            p, q = a["gridPos"], b["gridPos"]
            apart = p["x"] + p["w"] <= q["x"] or q["x"] + q["w"] <= p["x"] or p["y"] + p["h"] <= q["y"] or q["y"] + q["h"] <= p["y"]
            assert a is b or apart, f"{a['title']} and {b['title']} overlap"
    rendered = next(o for o in read_objects(template(HERE / "values/monitoring.yaml")) if "pierhead.json" in o.get("data", {}))
    assert rendered["data"]["pierhead.json"] == text, "the ConfigMap does not hold the file"


def queries_are_good():
    """promtool reads rules, so each query becomes one."""
    rules = [{"record": f"query:{i}", "expr": expression} for i, (_, expression) in enumerate(dashboard_queries())]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}, file)
        file.flush()
        run(PROMTOOL, "check", "rules", file.name)


def metrics_exist():
    """Alerts and dashboard ask for no metric that the program does not have."""
    source = (ROOT / "src/metrics.rs").read_text()
    known = {f"pierhead_{name}" for name in re.findall(r'"([a-z][a-z0-9_]+)"', source)}
    asked = "\n".join([*(e for _, e in dashboard_queries()), *(r["expr"] for r in alerts())])
    asked = {re.sub(r"_bucket$", "", name) for name in re.findall(r"\bpierhead_[a-z0-9_]+", asked)}
    lacking = asked - known
    assert lacking <= WAITING_METRICS, f"no such metric: {sorted(lacking - WAITING_METRICS)}"
    for name in sorted(WAITING_METRICS & known):
        print(f"        {name} is there now: take it from WAITING_METRICS")
    if lacking:
        raise Skipped(f"the program does not have {', '.join(sorted(lacking))} yet")


def is_current(script):
    run(sys.executable, script, "--check")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the golden files anew")
    parser.add_argument("names", nargs="*", help="only these value sets")
    arguments = parser.parse_args()
    sets = [*sorted((HERE / "values").glob("*.yaml")), *sorted((CHART / "examples").glob("*.yaml"))]
    if arguments.update and not arguments.names:
        for old in GOLDEN.glob("*"):
            old.unlink()
    for path in sets:
        if not arguments.names or path.stem in arguments.names:
            value_set(path, arguments.update)
    if not arguments.names:
        print("\n== values that are refused")
        for path in sorted((HERE / "bad").glob("*.yaml")):
            check(path.stem, refused, path)
        print("\n== the chart as a whole")
        check("README.md is what generate.py writes", is_current, CHART / "generate.py")
        check("schema and values agree", schema_and_values_agree)
        check("no value is unused", no_value_is_unused)
        check("the package is clean", package_is_clean)
        check("an upgrade keeps what cannot change", upgrade_keeps_what_cannot_change)
        check("a changed configuration restarts the pods", changed_configuration_restarts)
        check("it goes below another chart", goes_below_another_chart)
        print("\n== alerts and dashboard")
        check("promtool check rules", run, PROMTOOL, "check", "rules", CHART / "files/alerts.yaml")
        check("promtool test rules", run, PROMTOOL, "test", "rules", HERE / "alerts_test.yaml")
        check("each alert has a page and a test", alerts_have_pages_and_tests)
        check("the rendered rules are good", rendered_rules_are_good)
        check("dashboard.json is what generate.py writes", is_current, ROOT / "packaging/grafana/generate.py")
        check("the dashboard is good", dashboard_is_good)
        check("the dashboard's queries are good", queries_are_good)
        check("the metrics exist", metrics_exist)
    if certificate.cache_info().currsize:
        shutil.rmtree(certificate())
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    print(f"\n{counts['passed']} passed, {counts['failed']} failed{skipped}")
    sys.exit(1 if counts["failed"] or not counts["passed"] else 0)


if __name__ == "__main__":
    main()
