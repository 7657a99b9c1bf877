{{/* From values to Pierhead's own configuration. */}}

{{/* emptyDir, pvc or hostPath. */}}
{{- define "pierhead.storage" -}}
{{- $byMode := dict "deployment" "emptyDir" "statefulset" "pvc" "daemonset" "hostPath" }}
{{- default (get $byMode .Values.mode) .Values.persistence.type }}
{{- end }}

{{/* IP:PORT, given as (list IP PORT). */}}
{{- define "pierhead.address" -}}
{{- $ip := first . -}}
{{ ternary (printf "[%s]" $ip) $ip (contains ":" $ip) }}:{{ last . }}
{{- end }}

{{/* In the node's network the pull port is the node's; otherwise a host port leads to the pod's. */}}
{{- define "pierhead.pullIP" -}}
{{- ternary .Values.hostPort.hostIP .Values.bindAddress .Values.hostNetwork }}
{{- end }}
{{- define "pierhead.pullPort" -}}
{{- ternary .Values.hostPort.port .Values.ports.pull .Values.hostNetwork }}
{{- end }}

{{/* 90 % of persistence.size: downloads under way and the file system itself need the rest. */}}
{{- define "pierhead.cacheSize" -}}
{{- $bytes := dict "M" 1000000 "G" 1000000000 "T" 1000000000000 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 }}
{{- $number := regexFind "^[0-9]+" .Values.persistence.size }}
{{- $unit := regexFind "[A-Za-z]+$" .Values.persistence.size }}
{{- printf "%dMiB" (div (mul $number (get $bytes $unit) 9) 10485760) }}
{{- end }}

{{/* The configuration file. What the chart sets itself is refused in config by pierhead.refuse. */}}
{{- define "pierhead.config" -}}
{{- $ip := include "pierhead.pullIP" . }}
{{- $tls := dict }}
{{- if .Values.tls.enabled }}
  {{- $tls = dict "cert" "/etc/pierhead/tls/tls.crt" "key" "/etc/pierhead/tls/tls.key" }}
  {{- if .Values.tls.clientCASecret }}
    {{- $_ := set $tls "client_ca" "/etc/pierhead/client-ca/ca.crt" }}
  {{- end }}
{{- end }}
{{- $main := dict "port" (include "pierhead.pullPort" .) }}
{{- $listen := list }}
{{- range prepend .Values.extraListeners $main }}
  {{- $entry := dict "address" (include "pierhead.address" (list $ip .port)) }}
  {{- if $tls }}
    {{- $_ := set $entry "tls" $tls }}
  {{- end }}
  {{- with .serves }}
    {{- $_ := set $entry "serves" . }}
  {{- end }}
  {{- /* The short form where it says all there is. */}}
  {{- $listen = append $listen (ternary $entry.address $entry (eq (len $entry) 1)) }}
{{- end }}
{{- $config := deepCopy .Values.config }}
{{- $_ := set $config "listen" $listen }}
{{- $_ := set $config "admin" (include "pierhead.address" (list .Values.bindAddress .Values.ports.admin)) }}
{{- $cache := dict "path" "/var/lib/pierhead" "max_size" (include "pierhead.cacheSize" .) }}
{{- if ne (include "pierhead.storage" .) "pvc" }}
  {{- $_ := set $cache "min_free" "20%" }}
{{- end }}
{{- $_ := set $config "cache" (merge (default dict $config.cache) $cache) }}
{{- toYaml $config }}
{{- end }}

{{/* What clients on a node reach the mirror at, for nodeSetup: IP:PORT, or nothing where there is no such address. */}}
{{- define "pierhead.nodeAddress" -}}
{{- if or .Values.hostPort.enabled .Values.hostNetwork }}
{{- $ip := .Values.hostPort.hostIP }}
{{- include "pierhead.address" (list (ternary "127.0.0.1" $ip (has $ip (list "0.0.0.0" "::"))) .Values.hostPort.port) }}
{{- else if and (ne .Values.service.type "ClusterIP") .Values.service.nodePort }}
{{- printf "$(NODE_IP):%d" (int .Values.service.nodePort) }}
{{- end }}
{{- end }}
