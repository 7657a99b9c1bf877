{{/*
What values.schema.json cannot see: values that are right by themselves and make no sense together. Each refusal says
what to write instead. Included by the workloads, so that nothing is rendered from such values.
*/}}
{{- define "pierhead.refuse" -}}
{{- $v := .Values }}
{{- $storage := include "pierhead.storage" . }}

{{- /* Storage that does not fit the mode. */}}
{{- if and (eq $v.mode "statefulset") (ne $storage "pvc") }}
  {{- fail (printf "persistence.type: %s does not go with mode: statefulset, which is there for a volume for each pod; write pvc, or mode: deployment" $storage) }}
{{- end }}
{{- if and (eq $v.mode "daemonset") (eq $storage "pvc") }}
  {{- fail "persistence.type: pvc does not go with mode: daemonset, as all nodes would share one volume; write hostPath or emptyDir" }}
{{- end }}
{{- if and (eq $v.mode "deployment") (eq $storage "hostPath") }}
  {{- fail "persistence.type: hostPath does not go with mode: deployment, whose pod moves between nodes; write pvc or emptyDir, or mode: daemonset" }}
{{- end }}
{{- if and (eq $v.mode "deployment") (eq $storage "pvc") (gt (int $v.replicas) 1) }}
  {{- fail (printf "replicas: %d does not go with persistence.type: pvc and mode: deployment, as a cache folder is for one Pierhead; write mode: statefulset" (int $v.replicas)) }}
{{- end }}
{{- if and $v.persistence.existingClaim (not (and (eq $v.mode "deployment") (eq $storage "pvc"))) }}
  {{- fail "persistence.existingClaim is for mode: deployment with persistence.type: pvc; remove it, or set these" }}
{{- end }}

{{- /* Two listeners on one port. */}}
{{- $pull := include "pierhead.pullPort" . }}
{{- $pullKey := ternary "hostPort.port" "ports.pull" $v.hostNetwork }}
{{- $taken := dict $pull $pullKey }}
{{- $admin := toString $v.ports.admin }}
{{- if hasKey $taken $admin }}
  {{- fail (printf "%s and ports.admin are both %s; give one of them another port" $pullKey $admin) }}
{{- end }}
{{- $_ := set $taken $admin "ports.admin" }}
{{- $names := list "pull" "admin" }}
{{- range $v.extraListeners }}
  {{- if hasKey $taken (toString .port) }}
    {{- fail (printf "the extraListener %s has port %v, which is already that of %s; give it another" .name .port (get $taken (toString .port))) }}
  {{- end }}
  {{- if has .name $names }}
    {{- fail (printf "there is already a listener called %s; give the extraListener another name" .name) }}
  {{- end }}
  {{- if and (not $v.hostNetwork) (eq (int .port) (int $v.service.port)) }}
    {{- fail (printf "the extraListener %s has port %v, which is already service.port; give one of them another" .name .port) }}
  {{- end }}
  {{- $_ := set $taken (toString .port) (printf "the extraListener %s" .name) }}
  {{- $names = append $names .name }}
{{- end }}

{{- /* Ways to the node that only a node cache has. */}}
{{- if and $v.hostPort.enabled $v.hostNetwork }}
  {{- fail "hostPort.enabled and hostNetwork are two ways to the same end; keep one" }}
{{- end }}
{{- if has $v.bindAddress (list "127.0.0.1" "::1") }}
  {{- if not $v.hostNetwork }}
    {{- fail (printf "bindAddress: %s is the pod's own loopback, where nobody could reach it; write 0.0.0.0 or \"::\"" $v.bindAddress) }}
  {{- end }}
  {{- if $v.serviceMonitor.enabled }}
    {{- fail (printf "serviceMonitor.enabled needs an admin port that Prometheus can reach, and bindAddress: %s is the node's loopback; write 0.0.0.0 and guard the port by a firewall" $v.bindAddress) }}
  {{- end }}
{{- end }}
{{- if ne $v.mode "daemonset" }}
  {{- if or $v.hostPort.enabled $v.hostNetwork }}
    {{- fail (printf "%s is for a mirror on each node; write mode: daemonset, or service.type: NodePort" (ternary "hostNetwork" "hostPort.enabled" $v.hostNetwork)) }}
  {{- end }}
  {{- if $v.nodeSetup.enabled }}
    {{- fail "nodeSetup.enabled is for a mirror on each node; write mode: daemonset, or set the nodes up with pierhead client containerd --write" }}
  {{- end }}
{{- end }}
{{- if $v.nodeSetup.enabled }}
  {{- if not (include "pierhead.nodeAddress" .) }}
    {{- fail "nodeSetup.enabled needs an address for the node's containerd; set hostPort.enabled or hostNetwork, or service.type: NodePort with a service.nodePort" }}
  {{- end }}
  {{- if $v.tls.enabled }}
    {{- fail "nodeSetup.enabled writes http:// addresses, which tls.enabled does not serve; on the node itself leave TLS off" }}
  {{- end }}
{{- end }}
{{- if and $v.service.nodePort (eq $v.service.type "ClusterIP") }}
  {{- fail "service.nodePort needs service.type: NodePort or LoadBalancer" }}
{{- end }}

{{- /* TLS without a certificate, or with two. */}}
{{- if $v.tls.enabled }}
  {{- if and $v.tls.certManager.enabled $v.tls.existingSecret }}
    {{- fail "tls.existingSecret and tls.certManager.enabled each name a certificate; keep one" }}
  {{- else if not (or $v.tls.certManager.enabled $v.tls.existingSecret) }}
    {{- fail "tls.enabled needs a certificate; set tls.existingSecret or tls.certManager.enabled" }}
  {{- else if and $v.tls.certManager.enabled (not $v.tls.certManager.issuerRef.name) }}
    {{- fail "tls.certManager.enabled needs an issuer; set tls.certManager.issuerRef.name" }}
  {{- end }}
{{- else if or $v.tls.certManager.enabled $v.tls.existingSecret $v.tls.clientCASecret }}
  {{- fail "there is a certificate under tls, but tls.enabled is false; set it to true" }}
{{- end }}

{{- /* What the chart knows better than the configuration. */}}
{{- if hasKey $v.config "listen" }}
  {{- fail "config.listen is set by the chart; use ports.pull, bindAddress, tls and extraListeners" }}
{{- end }}
{{- if hasKey $v.config "admin" }}
  {{- fail "config.admin is set by the chart; use ports.admin and bindAddress" }}
{{- end }}
{{- if hasKey (default dict $v.config.cache) "path" }}
  {{- fail "config.cache.path is set by the chart; use persistence" }}
{{- end }}

{{- /* A ConfigMap is no place for a password; `${NAME}` only names one. */}}
{{- range $name, $upstream := default dict $v.config.upstreams }}
  {{- $auth := dig "auth" "" (default dict $upstream) }}
  {{- if kindIs "map" $auth }}
    {{- $password := toString (dig "password" "" $auth) }}
    {{- if and $password (not (contains "${" $password)) }}
      {{- fail (printf "config.upstreams.%s.auth.password would stand in a ConfigMap for all to read; put it into a Secret, name that in existingSecrets, and write password_file: /etc/pierhead/secrets/SECRET/KEY" $name) }}
    {{- end }}
  {{- end }}
{{- end }}

{{- if and $v.podDisruptionBudget.enabled (eq $v.mode "daemonset") }}
  {{- fail "podDisruptionBudget.enabled does nothing with mode: daemonset, whose pods a drain leaves alone; remove it" }}
{{- end }}
{{- end }}
