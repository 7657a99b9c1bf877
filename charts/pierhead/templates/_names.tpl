{{/* Names and labels. */}}

{{- define "pierhead.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Cut to 48 characters, so that "-node-cleanup-wait" still fits into the 63 of a name. */}}
{{- define "pierhead.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 45 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 45 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 45 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "pierhead.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride }}
{{- end }}

{{/* What never changes in the life of a release, without the component. */}}
{{- define "pierhead.instanceLabels" -}}
app.kubernetes.io/name: {{ include "pierhead.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The pods that serve. The component keeps the pods of hooks and tests out of the Services. */}}
{{- define "pierhead.selectorLabels" -}}
{{ include "pierhead.instanceLabels" . }}
app.kubernetes.io/component: mirror
{{- end }}

{{/* For every object but the pods. "part-of" is the same in every release: Prometheus takes its job's name from it. */}}
{{- define "pierhead.commonLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: pierhead
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "pierhead.labels" -}}
{{ include "pierhead.selectorLabels" . }}
{{ include "pierhead.commonLabels" . }}
{{- end }}

{{/* For hooks and tests, as (list . "component"). */}}
{{- define "pierhead.labelsFor" -}}
{{- $top := first . -}}
{{ include "pierhead.instanceLabels" $top }}
app.kubernetes.io/component: {{ last . }}
{{ include "pierhead.commonLabels" $top }}
{{- end }}

{{- define "pierhead.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "pierhead.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* repository:tag, repository:tag@digest where there is a digest, or repository@digest where it comes without a tag. */}}
{{- define "pierhead.image" -}}
{{- $image := .Values.image -}}
{{- if and $image.digest (not $image.tag) -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default .Chart.AppVersion $image.tag }}{{ with $image.digest }}@{{ . }}{{ end }}
{{- end -}}
{{- end }}

{{/* Where cert-manager puts the certificate, or where it already is. */}}
{{- define "pierhead.tlsSecret" -}}
{{- default (printf "%s-tls" (include "pierhead.fullname" .)) .Values.tls.existingSecret }}
{{- end }}
