{{/* Name of everything: the release's, which may already say vlm2rec. With `-events-compact` 52 characters, the most of a CronJob. */}}
{{- define "vlm2rec.name" -}}
{{- if contains "vlm2rec" .Release.Name }}{{ .Release.Name | trunc 37 | trimSuffix "-" }}{{ else }}{{ printf "%s-vlm2rec" .Release.Name | trunc 37 | trimSuffix "-" }}{{ end -}}
{{- end }}

{{- define "vlm2rec.labels" -}}
app.kubernetes.io/name: vlm2rec
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* What selects the pods of the service alone; never changed, as a Deployment's selector is fixed. */}}
{{- define "vlm2rec.serviceLabels" -}}
app.kubernetes.io/name: vlm2rec
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: service
{{- end }}

{{- define "vlm2rec.claim" -}}
{{- $claim := index . 0 }}{{ $name := index . 1 }}{{ $root := index . 2 -}}
{{ $claim.existingClaim | default (printf "%s-%s" (include "vlm2rec.name" $root) $name) }}
{{- end }}

{{- define "vlm2rec.registry" -}}
{{ if eq .Values.registry.kind "s3" }}{{ .Values.registry.s3.url }}{{ else }}/var/lib/vlm2rec/bundles{{ end }}
{{- end }}
