{{/* Peers and ports of NetworkPolicies. */}}

{{/* All pods of runs and reward models, wherever runs are. */}}
{{- define "trimtab.runPeers" -}}
{{- range $i, $label := list "trimtab.dev/run" "trimtab.dev/reward-model" }}
{{- if $i }}
{{ end }}- podSelector:
    matchExpressions:
      - {key: {{ $label }}, operator: Exists}
  {{- include "trimtab.runNamespaces" $ | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "trimtab.runNamespaces" -}}
{{- $namespaces := include "trimtab.namespaces" . | fromJsonArray -}}
namespaceSelector:
{{- if $namespaces }}
  matchExpressions:
    - {key: kubernetes.io/metadata.name, operator: In, values: {{ $namespaces | toJson }}}
{{- else }} {}
{{- end }}
{{- end -}}

{{/* All pods of namespaces. Takes a list of names. */}}
{{- define "trimtab.namespacePeer" -}}
- namespaceSelector:
    matchExpressions:
      - {key: kubernetes.io/metadata.name, operator: In, values: {{ . | toJson }}}
{{- end -}}

{{/* The pods of one part of this release. Takes (list $ part). */}}
{{- define "trimtab.partPeer" -}}
- podSelector:
    matchLabels:
      {{- include "trimtab.selector" . | nindent 6 }}
{{- end -}}

{{/* Addresses; none: anybody. Takes a list of CIDRs. */}}
{{- define "trimtab.cidrs" -}}
{{- with . -}}
to:
  {{- range . }}
  - ipBlock: {cidr: {{ . | quote }}}
  {{- end }}
{{- end }}
{{- end -}}
