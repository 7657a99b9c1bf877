{{/* The pod that serves, the same for every mode but for its volume and its way to the network. */}}

{{- define "pierhead.podTemplate" -}}
{{- include "pierhead.refuse" . }}
{{- $storage := include "pierhead.storage" . }}
{{- $daemonset := eq .Values.mode "daemonset" }}
metadata:
  annotations:
    # A changed configuration replaces the pods, one after the other.
    checksum/config: {{ include "pierhead.config" . | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  labels:
    {{- include "pierhead.selectorLabels" . | nindent 4 }}
    app.kubernetes.io/part-of: pierhead
    {{- with mergeOverwrite (dict) .Values.commonLabels .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "pierhead.serviceAccountName" . }}
  automountServiceAccountToken: false
  # A Service called "pierhead" would give the pod variables such as PIERHEAD_PORT, which look like settings.
  enableServiceLinks: false
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if .Values.hostNetwork }}
  hostNetwork: true
  {{- end }}
  dnsPolicy: {{ default (ternary "Default" "ClusterFirst" $daemonset) .Values.dnsPolicy }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
  securityContext:
    {{- toYaml .Values.podSecurityContext | nindent 4 }}
  {{- if or .Values.extraInitContainers .Values.nodeSetup.enabled (eq $storage "hostPath") }}
  initContainers:
    {{- with .Values.extraInitContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- if eq $storage "hostPath" }}
    {{- include "pierhead.prepareContainer" . | nindent 4 }}
    {{- end }}
    {{- if .Values.nodeSetup.enabled }}
    {{- include "pierhead.nodeSetupContainer" . | nindent 4 }}
    {{- end }}
  {{- end }}
  containers:
    - name: pierhead
      image: {{ include "pierhead.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: [serve, --config, /etc/pierhead/config/pierhead.yaml]
      {{- with include "pierhead.environment" . | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      ports:
        - name: pull
          containerPort: {{ include "pierhead.pullPort" . }}
          {{- if .Values.hostPort.enabled }}
          hostPort: {{ .Values.hostPort.port }}
          hostIP: {{ .Values.hostPort.hostIP | quote }}
          {{- end }}
        {{- range .Values.extraListeners }}
        - name: {{ .name }}
          containerPort: {{ .port }}
          {{- if $.Values.hostPort.enabled }}
          hostPort: {{ .port }}
          hostIP: {{ $.Values.hostPort.hostIP | quote }}
          {{- end }}
        {{- end }}
        - name: admin
          containerPort: {{ .Values.ports.admin }}
      startupProbe:
        {{- include "pierhead.probe" (list . "/livez" .Values.startupProbe) | nindent 8 }}
      readinessProbe:
        {{- include "pierhead.probe" (list . "/readyz" .Values.readinessProbe) | nindent 8 }}
      livenessProbe:
        {{- include "pierhead.probe" (list . "/livez" .Values.livenessProbe) | nindent 8 }}
      {{- if and .Values.preStopSleepSeconds (semverCompare ">=1.30-0" .Capabilities.KubeVersion.Version) }}
      lifecycle:
        preStop:
          sleep:
            seconds: {{ .Values.preStopSleepSeconds }}
      {{- end }}
      securityContext:
        {{- toYaml .Values.securityContext | nindent 8 }}
      {{- with .Values.resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts:
        - name: cache
          mountPath: /var/lib/pierhead
        {{- include "pierhead.configMounts" . | nindent 8 }}
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: config
      configMap:
        name: {{ include "pierhead.fullname" . }}
    {{- with include "pierhead.secretVolumes" . | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- if eq $storage "hostPath" }}
    - name: cache
      hostPath:
        path: {{ .Values.persistence.hostPath }}
        type: DirectoryOrCreate
    {{- else if eq $storage "emptyDir" }}
    - name: cache
      emptyDir:
        sizeLimit: {{ .Values.persistence.size }}
    {{- else if eq .Values.mode "deployment" }}
    - name: cache
      persistentVolumeClaim:
        claimName: {{ default (include "pierhead.fullname" .) .Values.persistence.existingClaim }}
    {{- end }}
    {{- if .Values.nodeSetup.enabled }}
    - name: certs-d
      hostPath:
        path: {{ .Values.nodeSetup.certsDir }}
        type: DirectoryOrCreate
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- $all := list (dict "operator" "Exists") }}
  {{- with ternary (default $all .Values.tolerations) .Values.tolerations $daemonset }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if and .Values.topologySpreadConstraints (not $daemonset) }}
  topologySpreadConstraints:
    {{- $selector := dict "matchLabels" (include "pierhead.selectorLabels" . | fromYaml) }}
    {{- range .Values.topologySpreadConstraints }}
    {{- list (hasKey . "labelSelector" | ternary . (set (deepCopy .) "labelSelector" $selector)) | toYaml | nindent 4 }}
    {{- end }}
  {{- end }}
{{- end }}

{{/* The pods of hooks and tests: they run once, write nothing, and go where Pierhead may go. */}}
{{- define "pierhead.helperPodSpec" -}}
automountServiceAccountToken: false
enableServiceLinks: false
restartPolicy: Never
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What the values give to every container that reads the configuration. */}}
{{- define "pierhead.environment" -}}
{{- with .Values.extraEnv }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The configuration and what it refers to, as folders: a file mounted by subPath would not follow its Secret. */}}
{{- define "pierhead.configMounts" -}}
- name: config
  mountPath: /etc/pierhead/config
  readOnly: true
{{- if .Values.tls.enabled }}
- name: tls
  mountPath: /etc/pierhead/tls
  readOnly: true
{{- if .Values.tls.clientCASecret }}
- name: client-ca
  mountPath: /etc/pierhead/client-ca
  readOnly: true
{{- end }}
{{- end }}
{{- range $index, $name := .Values.existingSecrets }}
- name: secret-{{ $index }}
  mountPath: /etc/pierhead/secrets/{{ $name }}
  readOnly: true
{{- end }}
{{- end }}

{{- define "pierhead.secretVolumes" -}}
{{- if .Values.tls.enabled }}
- name: tls
  secret:
    secretName: {{ include "pierhead.tlsSecret" . }}
    defaultMode: 0440
{{- with .Values.tls.clientCASecret }}
- name: client-ca
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items:
      - key: ca.crt
        path: ca.crt
{{- end }}
{{- end }}
{{- range $index, $name := .Values.existingSecrets }}
- name: secret-{{ $index }}
  secret:
    secretName: {{ $name }}
    defaultMode: 0440
{{- end }}
{{- end }}

{{/*
A probe, as (list . PATH VALUES). Whoever gives a handler of his own gets just that. Where the admin port is bound to
the node's loopback, the kubelet has to be told, as it would ask the pod's address.
*/}}
{{- define "pierhead.probe" -}}
{{- $top := index . 0 }}
{{- $get := dict "path" (index . 1) "port" "admin" }}
{{- if and $top.Values.hostNetwork (has $top.Values.bindAddress (list "127.0.0.1" "::1")) }}
  {{- $_ := set $get "host" $top.Values.bindAddress }}
{{- end }}
{{- $given := index . 2 }}
{{- if not (or $given.httpGet $given.exec $given.tcpSocket $given.grpc) }}
  {{- $given = merge (dict "httpGet" $get) $given }}
{{- end }}
{{- toYaml $given }}
{{- end }}
