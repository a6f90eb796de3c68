{{/* Settings of the queue server, as services/common/stages asks for them. */}}
{{- define "trimtab.valkeyConf" -}}
bind * -::*
protected-mode no
port 6379
dir /data
aclfile /run/valkey/users.acl
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
databases 1
{{- with .Values.queue.valkey.maxMemory }}
maxmemory {{ . }}
{{- end }}
{{- with .Values.queue.valkey.extraConfig }}
{{ . }}
{{- end }}
{{- end -}}
