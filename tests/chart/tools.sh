#!/usr/bin/env bash
# Installs what tests/chart/run.py needs into target/chart-tools, from the package registries: helm and the checker of
# operators' objects by go, the Kubernetes schemas by pip. promtool comes with Debian's package prometheus, python3-venv
# with its own. A second call finds everything there.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tools=$here/../../target/chart-tools
helm=v4.3.1

mkdir -p "$tools/bin"
tools=$(cd "$tools" && pwd)

if [ "$(cat "$tools/bin/helm.version" 2>/dev/null)" != "$helm" ]; then
  GOBIN=$tools/bin go install "helm.sh/helm/v4/cmd/helm@$helm"
  echo "$helm" >"$tools/bin/helm.version"
fi
(cd "$here/crds" && go build -o "$tools/bin/crdcheck" .)

[ -x "$tools/venv/bin/python" ] || python3 -m venv "$tools/venv"
"$tools/venv/bin/pip" install --quiet --disable-pip-version-check 'kubernetes-validate==1.37.0' 'PyYAML>=6,<7'
