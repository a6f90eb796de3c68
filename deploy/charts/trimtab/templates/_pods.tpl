{{/* What every pod has. */}}

{{/* Pod Security `restricted`; volumes belong to the group, so that it can write. */}}
{{- define "trimtab.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .Values.userId | int64 }}
runAsGroup: {{ .Values.userId | int64 }}
fsGroup: {{ .Values.userId | int64 }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "trimtab.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
readOnlyRootFilesystem: true
{{- end -}}

{{/* The pod's own address as a variable, where it listens on that alone. */}}
{{- define "trimtab.podIp" -}}
{{- if .Values.operator.listenOnPodIp }}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- end }}
{{- end -}}

{{/* Where pods run. Takes (list $ part settings). Without an affinity, replicas prefer different nodes. */}}
{{- define "trimtab.place" -}}
{{- $root := index . 0 -}}
{{- $settings := index . 2 -}}
{{- with $root.Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $settings.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $settings.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $settings.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
affinity:
{{- if $settings.affinity }}
  {{- toYaml $settings.affinity | nindent 2 }}
{{- else }}
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- include "trimtab.selector" (list $root (index . 1)) | nindent 14 }}
{{- end }}
{{- end -}}
