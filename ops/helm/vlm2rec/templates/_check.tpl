{{/* What the schema cannot say. Each message: the value, the rule, what to do. */}}
{{- define "vlm2rec.check" -}}
{{- $own := list "HOST" "PORT" "WORKERS" "DRAIN_DELAY_S" "DRAIN_S" "REGISTRY" "REGISTRY_CACHE" "DIRECTIVES_FILE" "REDIS_URL_FILE" "API_KEYS_FILE" "ADMIN_KEYS_FILE" "METRICS_KEYS_FILE" "RETRIEVER" "RETRIEVER_TOKEN_FILE" }}
{{- range $variable, $value := .Values.service.settings }}
{{- if has (trimPrefix "VLM2REC_" $variable) (list "API_KEYS" "ADMIN_KEYS" "METRICS_KEYS" "REDIS_URL" "RETRIEVER_TOKEN") }}
{{- fail (printf "service.settings.%s is a secret, and a value would be stored in the release; put it into a Secret and name that under secrets, redis.urlSecret or retriever.tokenSecret" $variable) }}
{{- end }}
{{- if has (trimPrefix "VLM2REC_" $variable) $own }}
{{- fail (printf "service.settings.%s is set by the chart; use the value of its own (service.port, service.workers, service.drainDelaySeconds, service.drainSeconds, registry, redis, secrets, retriever)" $variable) }}
{{- end }}
{{- if eq $variable "VLM2REC_CONFIG" }}
{{- fail "service.settings.VLM2REC_CONFIG names a file that no volume holds; give each setting of it in service.settings" }}
{{- end }}
{{- end }}
{{- range .Values.service.extraEnv }}
{{- if hasPrefix "VLM2REC_" .name }}
{{- fail (printf "service.extraEnv: %s is a setting of the service; give it in service.settings" .name) }}
{{- end }}
{{- end }}
{{- if and .Values.retriever.tokenSecret.name (not .Values.retriever.url) }}
{{- fail "retriever.tokenSecret needs retriever.url, such as milvus+http://milvus:19530" }}
{{- end }}
{{- if and .Values.jobs.milvusPush.enabled (not .Values.retriever.url) }}
{{- fail "jobs.milvusPush.enabled needs retriever.url: it puts bundles into Milvus" }}
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
