{{/* Names, labels and images. */}}

{{- define "trimtab.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that the pods of one part, and no others, have. Takes (list $ part). Never changed: selectors are immutable. */}}
{{- define "trimtab.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: trimtab-{{ index . 1 }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
trimtab.dev/release: {{ $root.Release.Name | quote }}
{{- end -}}

{{/* Labels of pods: nothing that changes with a release of the chart, which would restart them. Takes (list $ part). */}}
{{- define "trimtab.podLabels" -}}
{{- $root := index . 0 -}}
{{ include "trimtab.selector" . }}
app.kubernetes.io/component: {{ index . 1 }}
app.kubernetes.io/part-of: trimtab
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- end -}}

{{/* All labels of an object. Takes (list $ part). */}}
{{- define "trimtab.labels" -}}
{{- $root := index . 0 -}}
{{ include "trimtab.podLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* A reference to an image. Takes (list $ role). What has a tag or a digest is taken as it stands. */}}
{{- define "trimtab.image" -}}
{{- $images := (index . 0).Values.images -}}
{{- $name := index $images (index . 1) -}}
{{- if or (contains "@" $name) (contains ":" (base $name)) -}}
{{- $name -}}
{{- else -}}
{{- with $images.registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- $name }}:{{ default (index . 0).Chart.AppVersion $images.tag -}}
{{- end -}}
{{- end -}}

{{- define "trimtab.operatorName" -}}
{{ include "trimtab.fullname" . }}-operator
{{- end -}}

{{- define "trimtab.accountName" -}}
{{- default (ternary (include "trimtab.operatorName" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "trimtab.leaseName" -}}
{{- default (include "trimtab.operatorName" .) .Values.operator.leaseName -}}
{{- end -}}

{{/* Namespaces of runs as a JSON list; empty: all. */}}
{{- define "trimtab.namespaces" -}}
{{- if .Values.operator.allNamespaces -}}
[]
{{- else -}}
{{- default (list .Release.Namespace) .Values.operator.namespaces | uniq | toJson -}}
{{- end -}}
{{- end -}}

{{/* The Secret that runs name in spec.redis.urlSecret; empty: each run has a server of its own. */}}
{{- define "trimtab.queueSecret" -}}
{{- $queue := .Values.queue -}}
{{- if or $queue.valkey.enabled $queue.externalUrl $queue.existingSecret -}}
{{- default (printf "%s-queue" (include "trimtab.fullname" .)) $queue.existingSecret -}}
{{- end -}}
{{- end -}}

{{/* Port of a queue server elsewhere; empty where there is none, or only a Secret knows it (then Redis' own). */}}
{{- define "trimtab.externalQueuePort" -}}
{{- $queue := .Values.queue -}}
{{- if $queue.externalUrl -}}
{{- $host := (urlParse $queue.externalUrl).host -}}
{{- ternary (last (splitList ":" $host)) "6379" (contains ":" $host) -}}
{{- else if and $queue.existingSecret (not $queue.valkey.enabled) -}}
6379
{{- end -}}
{{- end -}}
