{{- define "vlm2rec.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "vlm2rec.containerSecurity" -}}
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
{{- end }}

{{/* How S3 is reached, where the registry is there. */}}
{{- define "vlm2rec.registryEnv" -}}
{{- if eq .Values.registry.kind "s3" -}}
- {name: VLM2REC_REGISTRY_CACHE, value: /var/lib/vlm2rec/cache}
{{- with .Values.registry.s3.credentialsSecret }}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ . }}, key: AWS_ACCESS_KEY_ID}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ . }}, key: AWS_SECRET_ACCESS_KEY}}
{{- end }}
{{- with .Values.registry.s3.endpoint }}
- {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
{{- end }}
{{- with .Values.registry.s3.region }}
- {name: AWS_REGION, value: {{ . }}}
{{- end }}
{{- end }}
{{- end }}

{{/* Where Milvus is, where items are searched there. Arguments: root, the Secret of the token. */}}
{{- define "vlm2rec.retrieverEnv" -}}
{{- $root := index . 0 }}{{ $secret := index . 1 -}}
{{- with $root.Values.retriever.url }}
- {name: VLM2REC_RETRIEVER, value: {{ . | quote }}}
{{- if $secret.name }}
- {name: VLM2REC_RETRIEVER_TOKEN_FILE, value: /run/vlm2rec/retriever/token}
{{- end }}
{{- end }}
{{- end }}

{{- define "vlm2rec.tokenVolume" -}}
- name: retriever
  secret:
    secretName: {{ .name }}
    defaultMode: 0440
    items: [{key: {{ .key }}, path: token}]
{{- end }}

{{- define "vlm2rec.podOfJob" -}}
serviceAccountName: {{ include "vlm2rec.name" . }}
automountServiceAccountToken: false
enableServiceLinks: false
restartPolicy: Never
# A stopped job ends after the shard at hand and goes on with the next start.
terminationGracePeriodSeconds: 300
securityContext:
  {{- include "vlm2rec.podSecurity" . | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.jobs.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.jobs.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
A CronJob. Arguments: root, name, job (its values), image, command (a list), mounts (volume: {claim, path, readOnly}),
redis and registry: whether it reaches these, token: the Secret for Milvus where it reaches that.
Exit codes 1 (refused), 2 (bad input) and 70 (a defect) would be the same again, so the Job fails at once; a node that
is drained costs nothing.
*/}}
{{- define "vlm2rec.cronJob" -}}
{{- $root := .root }}
apiVersion: batch/v1
kind: CronJob
metadata:
  name: {{ include "vlm2rec.name" $root }}-{{ .name }}
  labels:
    {{- include "vlm2rec.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .name }}
spec:
  schedule: {{ .job.schedule | quote }}
  concurrencyPolicy: Forbid
  startingDeadlineSeconds: 3600
  successfulJobsHistoryLimit: 3
  failedJobsHistoryLimit: 3
  jobTemplate:
    spec:
      backoffLimit: 3
      activeDeadlineSeconds: {{ .job.activeDeadlineSeconds }}
      podFailurePolicy:
        rules:
          - action: Ignore
            onPodConditions: [{type: DisruptionTarget, status: "True"}]
          - action: FailJob
            onExitCodes: {containerName: {{ .name }}, operator: In, values: [1, 2, 70]}
      template:
        metadata:
          labels:
            {{- include "vlm2rec.labels" $root | nindent 12 }}
            app.kubernetes.io/component: {{ .name }}
        spec:
          {{- include "vlm2rec.podOfJob" $root | nindent 10 }}
          containers:
            - name: {{ .name }}
              image: "{{ .image.repository }}:{{ .image.tag }}"
              imagePullPolicy: {{ $root.Values.image.pullPolicy }}
              args: {{- toYaml .command | nindent 16 }}
              {{- $env := list }}
              {{- if .redis }}
              {{- $env = append $env "\n- {name: VLM2REC_REDIS_URL_FILE, value: /run/vlm2rec/redis/url}" }}
              {{- range $variable, $value := $root.Values.service.settings }}
              {{- if hasPrefix "VLM2REC_REDIS_" $variable }}
              {{- $env = append $env (printf "\n- {name: %s, value: %s}" $variable (quote $value)) }}
              {{- end }}
              {{- end }}
              {{- end }}
              {{- if .registry }}
              {{- $env = append $env (printf "\n%s" (include "vlm2rec.registryEnv" $root)) }}
              {{- if eq $root.Values.registry.kind "s3" }}
              {{- with $root.Values.service.settings.VLM2REC_REGISTRY_CACHE_MB }}
              {{- $env = append $env (printf "\n- {name: VLM2REC_REGISTRY_CACHE_MB, value: %s}" (quote .)) }}
              {{- end }}
              {{- end }}
              {{- if hasKey . "token" }}
              {{- $env = append $env (include "vlm2rec.retrieverEnv" (list $root .token)) }}
              {{- end }}
              {{- end }}
              {{- with trim (join "" $env) }}
              env: {{- . | nindent 16 }}
              {{- end }}
              resources: {{- toYaml .job.resources | nindent 16 }}
              securityContext:
                {{- include "vlm2rec.containerSecurity" $root | nindent 16 }}
              volumeMounts:
                - {name: tmp, mountPath: /tmp}
                {{- if .redis }}
                - {name: redis, mountPath: /run/vlm2rec/redis, readOnly: true}
                {{- end }}
                {{- if (.token).name }}
                - {name: retriever, mountPath: /run/vlm2rec/retriever, readOnly: true}
                {{- end }}
                {{- if and .registry (eq $root.Values.registry.kind "s3") }}
                - {name: cache, mountPath: /var/lib/vlm2rec/cache}
                {{- end }}
                {{- range $volume, $mount := .mounts }}
                - {name: {{ $volume }}, mountPath: {{ $mount.path }}, readOnly: {{ $mount.readOnly }}}
                {{- end }}
          volumes:
            - {name: tmp, emptyDir: {}}
            {{- if .redis }}
            - name: redis
              secret:
                secretName: {{ $root.Values.redis.urlSecret.name }}
                defaultMode: 0440
                items: [{key: {{ $root.Values.redis.urlSecret.key }}, path: url}]
            {{- end }}
            {{- with .token }}
            {{- if .name }}
            {{- include "vlm2rec.tokenVolume" . | nindent 12 }}
            {{- end }}
            {{- end }}
            {{- if and .registry (eq $root.Values.registry.kind "s3") }}
            - {name: cache, emptyDir: {sizeLimit: {{ $root.Values.registry.s3.cacheSize }}}}
            {{- end }}
            {{- range $volume, $mount := .mounts }}
            - name: {{ $volume }}
              persistentVolumeClaim: {claimName: {{ include "vlm2rec.claim" (list $mount.claim $volume $root) }}}
            {{- end }}
{{- end }}
