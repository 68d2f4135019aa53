{{/* The image of operator, caches and agents. */}}
{{- define "breakwater.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels of a part: its name, what it belongs to, and the user's beside them. Takes (dict "name" "breakwater-operator" "labels"
.Values.commonLabels). */}}
{{- define "breakwater.labels" -}}
{{ toYaml (merge (dict "app.kubernetes.io/name" .name "app.kubernetes.io/part-of" "breakwater") (default (dict) .labels)) }}
{{- end -}}

{{/* The objects of files that `make manifests` copies from config/, with the user's labels. Takes (dict "root" $ "glob"
"files/rbac/*.yaml"), and as it needs "labels", "annotations", and "runbooks", where links to runbooks begin. */}}
{{- define "breakwater.objects" -}}
{{- $labels := merge (dict) (default (dict) .labels) .root.Values.commonLabels -}}
{{- $annotations := default (dict) .annotations -}}
{{- $runbooks := default "" .runbooks -}}
{{- range $path, $bytes := .root.Files.Glob .glob }}
{{- range splitList "\n---\n" (toString $bytes | replace "runbook_url: " (print "runbook_url: " $runbooks)) }}
{{- $object := fromYaml . }}
{{- $metadata := $object.metadata }}
{{- with $labels }}
{{- $_ := set $metadata "labels" (merge (dict) (default (dict) $metadata.labels) .) }}
{{- end }}
{{- with $annotations }}
{{- $_ := set $metadata "annotations" (merge (dict) (default (dict) $metadata.annotations) .) }}
{{- end }}
---
{{ toYaml $object }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Where the runtime of a distribution keeps its files: see config/node-agent/presets. */}}
{{- define "breakwater.presets" -}}
containerd:
  config: /etc/containerd
  certs: /etc/containerd/certs.d
  run: /run/containerd
k3s:
  config: /var/lib/rancher/k3s/agent/etc/containerd
  file: config.toml
  certs: /var/lib/rancher/k3s/agent/etc/containerd/certs.d
  run: /run/k3s/containerd
  socket: containerd.sock
rke2:
  config: /var/lib/rancher/rke2/agent/etc/containerd
  file: config.toml
  certs: /var/lib/rancher/rke2/agent/etc/containerd/certs.d
  run: /run/k3s/containerd
  socket: containerd.sock
k0s:
  config: /etc/k0s
  file: containerd.toml
  certs: /etc/containerd/certs.d
  run: /run/k0s
  socket: containerd.sock
microk8s:
  config: /var/snap/microk8s/current/args
  file: containerd.toml
  certs: /var/snap/microk8s/current/args/certs.d
  run: /var/snap/microk8s/common/run
  socket: containerd.sock
talos:
  config: /etc/cri
  file: containerd.toml
  certs: /etc/cri/conf.d/hosts
  run: /run/containerd
  socket: containerd.sock
cri-o:
  registries: /etc/containers
  run: /run/crio
  socket: crio.sock
{{- end -}}
