{{/* The operator's configuration. JSON's strings and lists are TOML's. Its ports are its own defaults, 50256 and 50156. */}}
{{- define "trimtab.operatorToml" -}}
namespaces = {{ include "trimtab.namespaces" . }}
resync_seconds = {{ .Values.operator.resyncSeconds | int64 }}
scaling_seconds = {{ .Values.operator.scalingSeconds | int64 }}
checkpoint_seconds = {{ .Values.operator.checkpointSeconds | int64 }}
requests_seconds = {{ .Values.operator.drainSeconds | int64 }}
workers = {{ .Values.operator.workers | int64 }}

[log]
level = {{ .Values.operator.logLevel | toJson }}
json_lines = true

[lease]
name = {{ include "trimtab.leaseName" . | toJson }}
namespace = {{ .Release.Namespace | toJson }}

[render]
operator_namespace = {{ .Release.Namespace | toJson }}
monitoring_namespace = {{ .Values.monitoring.namespace | toJson }}
listen_on_pod_ip = {{ .Values.operator.listenOnPodIp }}
user = {{ .Values.userId | int64 }}
kueue_version = {{ .Values.operator.kueue.version | toJson }}

[render.operator_labels]
{{- range $name, $value := include "trimtab.selector" (list . "operator") | fromYaml }}
{{ $name | toJson }} = {{ $value | toJson }}
{{- end }}

[render.images]
{{- range list "policy" "reference" "reward" "learner" "redis" "transfer" }}
{{ . }} = {{ include "trimtab.image" (list $ .) | toJson }}
{{- end }}
{{- end -}}
