{{- define "podcred.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Short enough for what is appended to it. */}}
{{- define "podcred.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 53 | trimSuffix "-" }}
{{- else }}
{{- $name := include "podcred.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 53 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 53 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "podcred.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "podcred.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "podcred.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "podcred.selectorLabels" . }}
{{- end }}

{{- define "podcred.selectorLabels" -}}
app.kubernetes.io/name: {{ include "podcred.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "podcred.image" -}}
{{- with .Values.image }}
{{- if .override }}
{{- .override }}
{{- else }}
{{- $repository := required "image.repository is needed: podcred is not published, so name the repository that you pushed it to" .repository }}
{{- if .digest }}
{{- printf "%s@%s" $repository .digest }}
{{- else }}
{{- printf "%s:%s" $repository (.tag | default $.Chart.AppVersion) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* A scalar as text. Helm reads every number as a float, and would write a million as 1e+06. */}}
{{- define "podcred.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else if not (kindIs "invalid" .) }}{{ . }}{{ end }}
{{- end }}

{{/* The flags among additionalArgs, by name: of a list of words, or of the official chart's map of flag to value. */}}
{{- define "podcred.flagsAmong" -}}
{{- $flags := list }}
{{- range (kindIs "map" . | ternary (keys (kindIs "map" . | ternary . dict)) (. | default list)) }}
{{- $flags = append $flags (first (splitList "=" (toString .))) }}
{{- end }}
{{- toJson $flags }}
{{- end }}

{{/*
Flags that more than the agent has to know: probes and monitors their ports, volumes their paths, RBAC what they ask the
API server. Among additionalArgs they would be half a setting. What takes the link away is no way to make it.
*/}}
{{- define "podcred.refuseHalfSettings" -}}
{{- range include "podcred.flagsAmong" .Values.agent.additionalArgs | fromJsonArray }}
{{- if has . (list "--port" "--probe-port" "--metrics-port" "--delegate" "--imds-except" "--startup-taint" "--pin" "--host-proc" "--cgroup-root" "--control-socket" "--token-file" "--jwks-url" "--issuer") }}
{{- fail (printf "agent.additionalArgs: %s is a value of its own: agent.%s" . (. | trimPrefix "--" | camelcase | untitle)) }}
{{- end }}
{{- end }}
{{- range include "podcred.flagsAmong" .Values.init.additionalArgs | fromJsonArray }}
{{- if has . (list "--remove" "--stay" "--pin") }}
{{- fail (printf "init.additionalArgs: %s is for the clean-up, which is the value cleanup: true" .) }}
{{- end }}
{{- end }}
{{- end }}

{{/* One agent would wait for itself. */}}
{{- define "podcred.refuseEqualPorts" -}}
{{- $seen := dict }}
{{- range $name, $port := dict "agent.port" (.Values.agent.port | default 80) "agent.probePort" (include "podcred.probePort" .) "agent.metricsPort" (include "podcred.metricsPort" .) }}
{{- $number := include "podcred.text" $port }}
{{- with get $seen $number }}
{{- fail (printf "%s and %s are both %s: each needs a port of its own" . $name $number) }}
{{- end }}
{{- $_ := set $seen $number $name }}
{{- end }}
{{- end }}

{{/*
Arguments: of each flag that is set, and after them additionalArgs, which is a list of words or the official chart's map
of flag to value. What is not set is left to podcred. To YAML an unquoted on and off are true and false.
*/}}
{{- define "podcred.args" -}}
{{- $args := list }}
{{- range $name, $value := .flags }}
{{- $text := kindIs "slice" $value | ternary (join "," $value) (include "podcred.text" $value) }}
{{- if and (kindIs "bool" $value) (ne $name "rotateCredentials") }}
{{- $text = ternary "on" "off" $value }}
{{- end }}
{{- if $text }}
{{- $args = append $args (printf "--%s=%s" (kebabcase $name) $text) }}
{{- end }}
{{- end }}
{{- if kindIs "map" .additionalArgs }}
{{- range $flag, $value := .additionalArgs }}
{{- $args = append $args $flag }}
{{- with include "podcred.text" $value }}
{{- $args = append $args . }}
{{- end }}
{{- end }}
{{- else }}
{{- $args = concat $args (.additionalArgs | default list) }}
{{- end }}
{{- toYaml $args }}
{{- end }}

{{/* A port by the number that the agent listens on. */}}
{{- define "podcred.metricsPort" -}}
{{- .Values.agent.metricsPort | default .Values.metrics.port | default 2705 | int64 }}
{{- end }}

{{- define "podcred.probePort" -}}
{{- .Values.agent.probePort | default 2703 | int64 }}
{{- end }}

{{/* The whole seconds of a duration such as 1m30s; what is below a second counts for nothing. */}}
{{- define "podcred.seconds" -}}
{{- $seconds := 0 }}
{{- range regexFindAll "[0-9.]+[a-zµ]+" (. | toString) -1 }}
{{- $number := regexFind "^[0-9]+" . | default "0" | int64 }}
{{- $unit := regexFind "[a-zµ]+$" . }}
{{- $seconds = add $seconds (mul $number (get (dict "h" 3600 "m" 60 "s" 1) $unit | default 0)) }}
{{- end }}
{{- $seconds }}
{{- end }}

{{/* Whether an update starts the next agent beside the old one. */}}
{{- define "podcred.surges" -}}
{{- with (.Values.updateStrategy).rollingUpdate }}
{{- $none := list "" "0" "0%" }}
{{- if not (has (include "podcred.text" .maxSurge) $none) }}
{{- if not (has (include "podcred.text" .maxUnavailable) $none) }}
{{- fail "updateStrategy.rollingUpdate: with a maxSurge Kubernetes wants maxUnavailable: 0" }}
{{- end }}true
{{- else if has (include "podcred.text" .maxUnavailable) (list "0" "0%") }}
{{- fail "updateStrategy.rollingUpdate: maxSurge and maxUnavailable are both 0: no agent could ever be replaced" }}
{{- end }}
{{- end }}
{{- end }}

{{/* Where the node's /proc is mounted; the container's own is not to be covered. */}}
{{- define "podcred.hostProc" -}}
{{- if ne (.Values.agent.hostProc | default "/proc") "/proc" }}{{ .Values.agent.hostProc }}{{ end }}
{{- end }}

{{/* Whether the agent asks for the node's pods. */}}
{{- define "podcred.watchesPods" -}}
{{- if or .Values.agent.delegate .Values.agent.imdsExcept }}true{{ end }}
{{- end }}

{{/* Whether the agent talks to the API server at all, and so needs its own token for it. */}}
{{- define "podcred.asksApiServer" -}}
{{- if or (include "podcred.watchesPods" .) .Values.agent.startupTaint (hasPrefix "https://kubernetes.default.svc" (.Values.agent.jwksUrl | default "")) }}true{{ else }}false{{ end }}
{{- end }}

{{/* Whether the API server holds each agent to its own node. Before 1.30 it has no such policies. */}}
{{- define "podcred.admissionPolicy" -}}
{{- if and .Values.agent.startupTaint .Values.admissionPolicy.create (semverCompare ">=1.30-0" .Capabilities.KubeVersion.Version) }}true{{ end }}
{{- end }}

{{/* What the pods of the agent and those that clean up have in common. */}}
{{- define "podcred.placement" -}}
hostNetwork: true
dnsPolicy: {{ .Values.dnsPolicy }}
# A Service called podcred-metrics would otherwise set PODCRED_METRICS_PORT.
enableServiceLinks: false
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* `podcred initialize` is about the link, and needs one capability. */}}
{{- define "podcred.initSecurityContext" -}}
{{- if .Values.privileged }}
{{- include "podcred.privileged" . }}
{{- else -}}
{{- $context := deepCopy .Values.securityContext }}
{{- $_ := set $context "capabilities" (dict "drop" (list "ALL") "add" (list "NET_ADMIN")) }}
{{- toYaml $context }}
{{- end }}
{{- end }}

{{- define "podcred.securityContext" -}}
{{- if .Values.privileged }}
{{- include "podcred.privileged" . }}
{{- else -}}
{{- toYaml .Values.securityContext }}
{{- end }}
{{- end }}

{{- define "podcred.privileged" -}}
privileged: true
readOnlyRootFilesystem: true
runAsUser: 0
{{- end }}
