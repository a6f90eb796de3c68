{{/* Values that do not fit together end the rendering, with what to set. */}}
{{- define "trimtab.check" -}}
{{- $queue := .Values.queue -}}
{{- if and $queue.externalUrl $queue.valkey.enabled -}}
{{- fail "queue: expected one of externalUrl and valkey.enabled, not both" -}}
{{- end -}}
{{- if and $queue.externalUrl $queue.existingSecret -}}
{{- fail "queue: expected one of externalUrl and existingSecret, not both" -}}
{{- end -}}
{{- if and .Values.operator.allNamespaces .Values.operator.namespaces -}}
{{- fail "operator: expected one of namespaces and allNamespaces, not both" -}}
{{- end -}}
{{- if and .Values.operator.allNamespaces (include "trimtab.queueSecret" .) (not $queue.existingSecret) -}}
{{- fail "queue: with operator.allNamespaces the chart does not know where its Secret has to be: make it, and name it in queue.existingSecret" -}}
{{- end -}}
{{- $preference := .Values.preference -}}
{{- if $preference.enabled -}}
{{- if not $preference.database.existingSecret -}}
{{- fail "preference.database.existingSecret: expected a Secret with the URL of a PostgreSQL database" -}}
{{- end -}}
{{- if and $preference.tls.enabled (not $preference.tls.secretName) (not .Values.certManager.enabled) -}}
{{- fail "preference.tls: expected secretName, or certManager.enabled" -}}
{{- end -}}
{{- if and $preference.accessKeys.existingSecret (not $preference.tls.enabled) (not $preference.accessKeys.allowPlaintext) -}}
{{- fail "preference.accessKeys without tls would send keys in the clear: set preference.tls.enabled, or accessKeys.allowPlaintext" -}}
{{- end -}}
{{- if and $preference.pages.enabled $preference.tls.enabled $preference.tls.clientCa -}}
{{- fail "preference.pages: browsers have no client certificates: set preference.tls.clientCa to false" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.certManager.certificates (not .Values.certManager.enabled) -}}
{{- fail "certManager.certificates: expected certManager.enabled" -}}
{{- end -}}
{{- end -}}
