{{/* The beginning of all names. */}}
{{- define "adclick.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "adclick.selector" -}}
app.kubernetes.io/name: adclick
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .kind }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{- define "adclick.labels" -}}
{{ include "adclick.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "adclick.image" -}}
{{- $image := .root.Values.image -}}
{{- $tag := .of.tag | default $image.tag | default .root.Chart.AppVersion -}}
{{- if and $image.digest (not .of.tag) -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $tag }}
{{- end -}}
{{- end -}}

{{/*
Which kinds get a secret: those that use it (docs/operating.md has the table). A secret that is not named here is for all.
*/}}
{{- define "adclick.users" -}}
redis: [migrate, ingest, archive, stream, router, notify, reconcile]
clickhouse: [migrate, stream, router, notify, reconcile]
archive: [archive, router, notify, reconcile]
user_secret: [ingest, router]
api_key: [router]
token_secret: [router]
former_token_secret: [router]
trace_collector: [router]
alert_webhook: [reconcile]
spark_properties: [reconcile]
{{- end -}}

{{/* The secrets of a kind, as JSON: setting -> {name, key}. */}}
{{- define "adclick.secrets" -}}
{{- $users := include "adclick.users" . | fromYaml -}}
{{- $kind := .kind -}}
{{- $secrets := dict -}}
{{- range $setting, $source := merge (dict) .of.secrets .root.Values.secrets -}}
{{- if or (not (hasKey $users $setting)) (has $kind (get $users $setting)) -}}
{{- $_ := set $secrets $setting $source -}}
{{- end -}}
{{- end -}}
{{- toJson $secrets -}}
{{- end -}}

{{/* A number as it was written: Helm has large ones as 2e+06. */}}
{{- define "adclick.text" -}}
{{- if kindIs "float64" . -}}
{{- if eq (floor .) . }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{- define "adclick.env" -}}
{{- $root := .root -}}
{{- $kind := .kind -}}
{{- $secrets := include "adclick.secrets" . | fromJson -}}
{{- $settings := merge (dict) .of.settings $root.Values.settings -}}
{{- if $root.Values.archiveVolume.claim -}}
{{- $_ := set $settings "archive" "/var/lib/adclick/archive" -}}
{{- end -}}
- name: ADCLICK_WORKER
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
{{- if eq $kind "router" }}
- name: ADCLICK_HTTP
  value: {{ if .of.tls.secret }}"https://0.0.0.0:8080"{{ else }}"http://0.0.0.0:8080"{{ end }}
{{- if .of.tls.secret }}
- name: ADCLICK_TLS_CERTIFICATE
  value: /etc/adclick/tls/tls.crt
- name: ADCLICK_TLS_KEY
  value: /etc/adclick/tls/tls.key
{{- end }}
{{- end }}
{{- range $setting, $value := $settings }}
{{- if not (hasKey $secrets $setting) }}
- name: ADCLICK_{{ upper $setting }}
  value: {{ include "adclick.text" $value | quote }}
{{- end }}
{{- end }}
{{- range $setting, $source := $secrets }}
- name: ADCLICK_{{ upper $setting }}_FILE
  value: /etc/adclick/secrets/{{ $setting }}
{{- end }}
{{- with $root.Values.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The container of a process, but for its command, ports and probes. */}}
{{- define "adclick.container" -}}
name: {{ .kind }}
image: {{ include "adclick.image" . | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
env:
{{ include "adclick.env" . }}
resources:
{{ toYaml .of.resources | indent 2 }}
volumeMounts:
- {name: tmp, mountPath: /tmp}
- {name: secrets, mountPath: /etc/adclick/secrets, readOnly: true}
{{- range .root.Values.files }}
- {name: file-{{ .name }}, mountPath: /etc/adclick/files/{{ .name }}, readOnly: true}
{{- end }}
{{- if and .root.Values.archiveVolume.claim (has .kind (list "archive" "router" "notify" "reconcile")) }}
- {name: archive, mountPath: /var/lib/adclick/archive, readOnly: {{ ne .kind "archive" }}}
{{- end }}
{{- if and (eq .kind "router") .root.Values.router.tls.secret }}
- {name: tls, mountPath: /etc/adclick/tls, readOnly: true}
{{- end }}
{{- end -}}

{{/* All of a pod but its containers. */}}
{{- define "adclick.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.serviceAccount.name }}
serviceAccountName: {{ . }}
{{- end }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
{{ toYaml . }}
{{- end }}
securityContext:
{{ toYaml .root.Values.podSecurityContext | indent 2 }}
{{- with .of.terminationGracePeriodSeconds }}
terminationGracePeriodSeconds: {{ . }}
{{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector:
{{ toYaml . | indent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations:
{{ toYaml . }}
{{- end }}
{{- with .root.Values.affinity }}
affinity:
{{ toYaml . | indent 2 }}
{{- end }}
{{- if and .root.Values.spreadOver (not (has .kind (list "reconcile" "migrate"))) }}
topologySpreadConstraints:
- maxSkew: 1
  topologyKey: {{ .root.Values.spreadOver }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
{{ include "adclick.selector" . | indent 6 }}
{{- end }}
volumes:
- name: tmp
  emptyDir: {sizeLimit: {{ .of.tmpSize | default "2Gi" }}}
- name: secrets
  projected:
    defaultMode: 0444
    sources:
    {{- range $setting, $source := include "adclick.secrets" . | fromJson }}
    - secret:
        name: {{ $source.name }}
        items: [{key: {{ $source.key | quote }}, path: {{ $setting }}}]
    {{- end }}
{{- range .root.Values.files }}
- name: file-{{ .name }}
  {{- if .secret }}
  secret: {secretName: {{ .secret }}, defaultMode: 0444}
  {{- else }}
  configMap: {name: {{ .configMap }}}
  {{- end }}
{{- end }}
{{- if and .root.Values.archiveVolume.claim (has .kind (list "archive" "router" "notify" "reconcile")) }}
- name: archive
  persistentVolumeClaim: {claimName: {{ .root.Values.archiveVolume.claim }}}
{{- end }}
{{- if and (eq .kind "router") .root.Values.router.tls.secret }}
- name: tls
  secret: {secretName: {{ .root.Values.router.tls.secret }}, defaultMode: 0444}
{{- end }}
{{- end -}}

{{- define "adclick.podmeta" -}}
labels:
{{ include "adclick.labels" . | indent 2 }}
{{- with .root.Values.podLabels }}
{{ toYaml . | indent 2 }}
{{- end }}
{{- with .root.Values.podAnnotations }}
annotations:
{{ toYaml . | indent 2 }}
{{- end }}
{{- end -}}

{{/* What the schema cannot say. */}}
{{- define "adclick.check" -}}
{{- $v := .Values -}}
{{- if not (or $v.archiveVolume.claim (hasKey $v.settings "archive") (hasKey $v.secrets "archive")) -}}
{{- fail "no archive: set settings.archive (or secrets.archive) to s3://BUCKET/PREFIX, or archiveVolume.claim to a claim of a volume" -}}
{{- end -}}
{{- if and $v.archiveVolume.claim (or (hasKey $v.settings "archive") (hasKey $v.secrets "archive")) -}}
{{- fail "archiveVolume.claim and settings.archive (or secrets.archive) are both set; remove one" -}}
{{- end -}}
{{- if and (hasKey $v.settings "archive") (not (hasPrefix "s3://" $v.settings.archive)) -}}
{{- fail "settings.archive names a folder, which is gone with the pod; set archiveVolume.claim instead" -}}
{{- end -}}
{{- range $setting, $_ := $v.settings -}}
{{- if hasKey $v.secrets $setting }}{{ fail (printf "settings.%s and secrets.%s are both set; remove one" $setting $setting) }}{{ end -}}
{{- end -}}
{{- if and (or $v.ingest.autoscaling.enabled $v.stream.autoscaling.enabled) (not $v.prometheus.address) -}}
{{- fail "autoscaling of ingest and stream asks Prometheus; set prometheus.address" -}}
{{- end -}}
{{- end -}}
