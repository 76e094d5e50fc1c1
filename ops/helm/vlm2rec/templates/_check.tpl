{{/* What the schema cannot say. Each message: the value, the rule, what to do. */}}
{{- define "vlm2rec.check" -}}
{{- $own := list "HOST" "PORT" "WORKERS" "DRAIN_DELAY_S" "DRAIN_S" "REGISTRY" "REGISTRY_CACHE" "DIRECTIVES_FILE" "REDIS_URL_FILE" "API_KEYS_FILE" "ADMIN_KEYS_FILE" "METRICS_KEYS_FILE" }}
{{- range $variable, $value := .Values.service.settings }}
{{- if has (trimPrefix "VLM2REC_" $variable) (list "API_KEYS" "ADMIN_KEYS" "METRICS_KEYS" "REDIS_URL") }}
{{- fail (printf "service.settings.%s is a secret, and a value would be stored in the release; put it into a Secret and name that under secrets or redis.urlSecret" $variable) }}
{{- end }}
{{- if has (trimPrefix "VLM2REC_" $variable) $own }}
{{- fail (printf "service.settings.%s is set by the chart; use the value of its own (service.port, service.workers, service.drainDelaySeconds, service.drainSeconds, registry, redis, secrets)" $variable) }}
{{- end }}
{{- end }}
{{- if not .Values.redis.urlSecret.name }}
{{- fail "redis.urlSecret.name must name an existing Secret whose key redis.urlSecret.key holds the URL of Redis, such as redis://:PASSWORD@redis:6379/0" }}
{{- end }}
{{- if and (eq .Values.registry.kind "s3") (not .Values.registry.s3.url) }}
{{- fail "registry.s3.url must be set where registry.kind is s3, such as s3://bucket/prefix" }}
{{- end }}
{{- if and .Values.autoscaling.enabled (lt (int .Values.autoscaling.maxReplicas) (int .Values.autoscaling.minReplicas)) }}
{{- fail (printf "autoscaling.maxReplicas (%d) must be at least autoscaling.minReplicas (%d)" (int .Values.autoscaling.maxReplicas) (int .Values.autoscaling.minReplicas)) }}
{{- end }}
{{- if and .Values.jobs.retrain.enabled (not .Values.jobs.eventsExport.enabled) }}
{{- fail "jobs.retrain.enabled needs jobs.eventsExport.enabled: it learns from the exported events" }}
{{- end }}
{{- end }}
