{{- /* What several manifests share. Each takes the root context, or a dict with it as "root". */ -}}

{{- /* The name of a part: RELEASE-gateway, RELEASE-triton. Never cut, or two might become one. */ -}}
{{- define "sid.name" -}}
{{- $name := printf "%s-%s" .root.Release.Name .part -}}
{{- if gt (len $name) 63 -}}
{{- fail (printf "the release's name is too long: %s would have %d characters, and 63 is the most" $name (len $name)) -}}
{{- end -}}
{{ $name }}
{{- end }}

{{- /* What pods of a part are selected by: it may never change. */ -}}
{{- define "sid.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "sid.labels" -}}
{{ include "sid.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- /* Of what the operators of Prometheus and Grafana find by labels of your choice. */ -}}
{{- define "sid.watcherLabels" -}}
{{ include "sid.labels" . }}
{{- with .root.Values.monitoring.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "sid.image" -}}
{{- $tag := .image.tag | default .root.Chart.AppVersion -}}
{{ .image.repository }}:{{ $tag }}{{ with .image.digest }}@{{ . }}{{ end }}
{{- end }}

{{- define "sid.triton.address" -}}
{{ include "sid.name" (dict "root" . "part" "triton") }}.{{ .Release.Namespace }}.svc:8001
{{- end }}

{{- /* The most pods that compute. */ -}}
{{- define "sid.most" -}}
{{ eq .autoscaling.by "none" | ternary .triton.replicas .autoscaling.maxReplicas }}
{{- end }}

{{- /* As in docker-compose.yml: nobody in particular, who writes nowhere but in what is mounted. */ -}}
{{- define "sid.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .user }}
runAsGroup: {{ .user }}
fsGroup: {{ .user }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "sid.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* Over nodes and zones, as far as that can be; each version of a Deployment by itself. */ -}}
{{- define "sid.spread" -}}
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
- topologyKey: {{ . }}
  maxSkew: 1
  whenUnsatisfiable: ScheduleAnyway
  matchLabelKeys: [pod-template-hash]
  labelSelector:
    matchLabels:
      {{- include "sid.selector" $ | nindent 6 }}
{{- end }}
{{- end }}

{{- /* What every pod has, whatever runs in it. */ -}}
{{- define "sid.pod" -}}
serviceAccountName: {{ include "sid.name" (dict "root" .root "part" "pods") }}
automountServiceAccountToken: false
enableServiceLinks: false # a Service named sid would be SID_PORT=tcp://...
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "sid.podSecurity" . | nindent 2 }}
topologySpreadConstraints:
  {{- include "sid.spread" . | trim | nindent 2 }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
