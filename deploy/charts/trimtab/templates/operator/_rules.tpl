{{/* What the operator does where runs are. A test holds this against the kinds that it renders. */}}
{{- define "trimtab.operatorRules" -}}
- apiGroups: [trimtab.dev]
  resources: [trainingruns, rewardmodels]
  verbs: [get, list, watch, patch, delete] # delete: ttlAfterFinished
- apiGroups: [trimtab.dev]
  resources: [trainingruns/status, rewardmodels/status]
  verbs: [get, patch]
- apiGroups: [trimtab.dev] # owner references that block deletion
  resources: [trainingruns/finalizers, rewardmodels/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments, statefulsets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments/scale]
  verbs: [patch]
- apiGroups: [batch] # never changed: an attempt is a Job of its own
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [configmaps, serviceaccounts, services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""] # never listed: it reads those that it made, and those that a run names
  resources: [secrets]
  verbs: [get, create, delete]
- apiGroups: [""] # patch: deletion cost, drain
  resources: [pods]
  verbs: [get, list, watch, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- if .Values.operator.kueue.enabled }}
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
{{- end -}}
