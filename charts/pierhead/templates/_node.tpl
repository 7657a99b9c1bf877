{{/* The containers that touch the node itself. */}}

{{/*
The kubelet makes a hostPath folder for root alone, and fsGroup does not apply to it. As root but without capabilities
a process may still hand a folder that it owns to its own group, which is the group that Pierhead runs as.
*/}}
{{- define "pierhead.prepareContainer" -}}
- name: prepare-cache
  image: {{ include "pierhead.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args: [prepare, /var/lib/pierhead, --group, {{ default 0 .Values.podSecurityContext.runAsGroup | int | quote }}]
  securityContext:
    {{- include "pierhead.rootSecurityContext" . | nindent 4 }}
  resources:
    {{- toYaml .Values.helperResources | nindent 4 }}
  volumeMounts:
    - name: cache
      mountPath: /var/lib/pierhead
{{- end }}

{{/* Before the mirror is up its hosts.toml does no harm: containerd finds nobody there and asks the registry. */}}
{{- define "pierhead.nodeSetupContainer" -}}
- name: node-setup
  image: {{ include "pierhead.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args:
    - client
    - containerd
    - --config=/etc/pierhead/config/pierhead.yaml
    - --listen={{ include "pierhead.nodeAddress" . }}
    - --write=/host/certs.d
  env:
    - name: NODE_IP
      valueFrom:
        fieldRef:
          fieldPath: status.hostIP
    {{- with .Values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.extraEnvFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- include "pierhead.rootSecurityContext" . | nindent 4 }}
  resources:
    {{- toYaml .Values.helperResources | nindent 4 }}
  volumeMounts:
    - name: certs-d
      mountPath: /host/certs.d
    {{- include "pierhead.configMounts" . | nindent 4 }}
{{- end }}

{{/* As hardened as the others, but for the user. */}}
{{- define "pierhead.rootSecurityContext" -}}
{{- mergeOverwrite (deepCopy .Values.securityContext) (dict "runAsUser" 0 "runAsNonRoot" false) | toYaml }}
{{- end }}
