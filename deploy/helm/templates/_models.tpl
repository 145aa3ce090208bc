{{- /*
The volume `models` of a pod, and what fills it. Triton's image holds no models, so those of the
gateway's image are copied for it; for the gateway itself `builtin` needs nothing.
*/ -}}

{{- define "sid.models.volume" -}}
{{- $models := .root.Values.models -}}
{{- if eq $models.source "image" }}
- name: models
  image:
    reference: {{ $models.image.reference | quote }}
    pullPolicy: {{ $models.image.pullPolicy }}
{{- else if eq $models.source "claim" }}
- name: models
  persistentVolumeClaim: {claimName: {{ $models.claim | quote }}, readOnly: true}
{{- else if or (eq $models.source "bundles") (eq .part "triton") }}
- name: models
  emptyDir: {sizeLimit: {{ $models.sizeLimit }}}
{{- end }}
{{- if eq $models.source "bundles" }}
- name: fetch
  configMap: {name: {{ include "sid.name" (dict "root" .root "part" "bundles") }}}
{{- end }}
{{- end }}

{{- define "sid.models.mount" -}}
{{- if or (ne .root.Values.models.source "builtin") (eq .part "triton") }}
- {name: models, mountPath: /models, readOnly: true}
{{- end }}
{{- end }}

{{- define "sid.models.init" -}}
{{- $source := .root.Values.models.source -}}
{{- $fetched := eq $source "bundles" -}}
{{- if or $fetched (and (eq $source "builtin") (eq .part "triton")) }}
- name: models
  image: {{ include "sid.image" (dict "root" .root "image" .root.Values.gateway.image) }}
  imagePullPolicy: {{ .root.Values.gateway.image.pullPolicy }}
  {{- if $fetched }}
  command: [python, /fetch/fetch_bundles.py, /fetch/bundles.json, /filled]
  {{- else }}
  command: [cp, -R, /models/., /filled]
  {{- end }}
  securityContext:
    {{- include "sid.containerSecurity" . | nindent 4 }}
  resources:
    requests: {cpu: 100m, memory: 256Mi}
    limits: {cpu: "1", memory: 256Mi}
  volumeMounts:
    - {name: models, mountPath: /filled}
    - {name: tmp, mountPath: /tmp}
    {{- if $fetched }}
    - {name: fetch, mountPath: /fetch, readOnly: true}
    {{- end }}
{{- end }}
{{- end }}
