{{/* The preference service's configuration; the database's URL comes as a variable. */}}
{{- define "trimtab.preferenceToml" -}}
{{- $preference := .Values.preference -}}
{{- $guarded := or $preference.accessKeys.existingSecret (and $preference.tls.enabled $preference.tls.clientCa) -}}
[server]
host = "0.0.0.0"
port = 50055
health_port = 50155
metrics_port = 50255
{{- if $preference.pages.enabled }}
http_port = 8055
{{- end }}
drain_seconds = {{ $preference.drainSeconds }}
{{- if not $guarded }}
allow_unauthenticated = true
{{- end }}

[log]
level = "info"
json_lines = true
{{- if $preference.tls.enabled }}

[tls]
certificate = "/run/trimtab/tls/tls.crt"
private_key = "/run/trimtab/tls/tls.key"
{{- if $preference.tls.clientCa }}
client_ca = "/run/trimtab/tls/ca.crt"
{{- end }}
{{- end }}
{{- if $preference.accessKeys.existingSecret }}

[access]
keys_file = "/run/trimtab/keys/keys.toml"
allow_plaintext = {{ $preference.accessKeys.allowPlaintext }}
{{- end }}
{{- with $preference.config }}

{{ . }}
{{- end }}
{{- end -}}

{{- define "trimtab.preferenceName" -}}
{{ include "trimtab.fullname" . }}-preference
{{- end -}}

{{- define "trimtab.preferenceTlsSecret" -}}
{{- default (printf "%s-tls" (include "trimtab.preferenceName" .)) .Values.preference.tls.secretName -}}
{{- end -}}
